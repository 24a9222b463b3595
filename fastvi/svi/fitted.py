"""What the loop and its checkpoints ask of whatever they fit."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastvi.svi.finding import Found


class Fitted(Protocol):
    """Something that takes steps, and says what of it changes. :class:`fastvi.SVI` is one."""

    objective: Any
    num_data: int | None

    def step(self, batch: Any = None) -> Tensor:
        """Take one step of the optimizers; returns the bound."""

    def evaluate(self, batch: Any = None, num_samples: int | None = None) -> Tensor:
        """Compute the bound without a step."""

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that are fitted, by names that stay."""

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators of the model's own."""

    def names(self) -> dict[int, str]:
        """Return the name of each parameter, by its id."""

    def found_parts(self) -> dict[str, Found]:
        """Return modules, tensors and generators, by where they were found."""

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers that take the steps."""

    def optimized(self) -> list[Tensor]:
        """Return the parameters of the optimizers."""
