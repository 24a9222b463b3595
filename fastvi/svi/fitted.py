"""The protocol between the loop, with its checkpoints, and the object that it fits."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastvi.svi.finding import Found


class Fitted(Protocol):
    """An object that takes steps and lists its changing parts, as :class:`fastvi.SVI` does."""

    objective: Any
    num_data: int | None

    def step(self, batch: Any = None) -> Tensor:
        """Take one step of the optimizers; returns the bound."""

    def evaluate(self, batch: Any = None, num_samples: int | None = None) -> Tensor:
        """Compute the bound without a step."""

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules that are fitted, by stable names."""

    def generators(self) -> dict[str, torch.Generator]:
        """Return the model's own generators."""

    def names(self) -> dict[int, str]:
        """Return the name of each parameter, by its id."""

    def found_parts(self) -> dict[str, Found]:
        """Return modules, tensors and generators, by the places at which they were found."""

    def optimizers(self) -> list[Optimizer]:
        """Return the optimizers that take the steps."""

    def optimized(self) -> list[Tensor]:
        """Return the parameters of the optimizers."""
