"""The parts of an SVI: modules, parameters and generators of model, guide and objective."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastvi.svi.finding import Found, find_parts


class Parts:
    """Find the parts of an :class:`fastvi.SVI`, wherever a function or an object keeps them."""

    model: Any
    guide: Any
    objective: Any
    optimizer: Any

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of model, guide and objective, and those that their functions use."""
        return {
            name: part for name, part in self.found_parts().items() if isinstance(part, nn.Module)
        }

    def generators(self) -> dict[str, torch.Generator]:
        """Return the generators that model, guide and objective own."""
        found = self.found_parts().items()
        return {name: part for name, part in found if isinstance(part, torch.Generator)}

    def names(self) -> dict[int, str]:
        """Return the name of each parameter by its id; names are the same in every run."""
        found: dict[int, str] = {}
        for where, part in self.found_parts().items():
            for name, value in _tensors(part):
                found.setdefault(id(value), f"{where}.{name}" if name else where)
        for number, one in enumerate(self.optimizers()):
            own = (p for group in one.param_groups for p in group["params"])
            for place, value in enumerate(own):
                found.setdefault(id(value), f"optimizer.{number}.{place}")
        return found

    def found_parts(self) -> dict[str, Found]:
        """Return modules, tensors and generators of model, guide and objective, by their places."""
        whole = {"model": self.model, "guide": self.guide, "objective": self.objective}
        return find_parts("svi", whole)

    def _parameters(self) -> list[Tensor]:
        found = {
            id(value): value
            for part in self.found_parts().values()
            for _, value in _tensors(part)
            if value.requires_grad
        }
        if not found:
            raise ValueError(
                "SVI: expected model, guide or objective to work with parameters that require a "
                "gradient, for optimizer to be made of, got none; give the optimizer itself"
            )
        return list(found.values())

    def optimizers(self) -> list[Optimizer]:
        return self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]

    def optimized(self) -> list[Tensor]:
        groups = [group for one in self.optimizers() for group in one.param_groups]
        return [p for group in groups for p in group["params"]]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        training = [
            part for top in self.modules().values() for part in top.modules() if part.training
        ]
        for part in training:
            part.training = False
        try:
            yield
        finally:
            for part in training:
                part.training = True


def _tensors(part: Found) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's parameters, and buffers that require a gradient, by their names."""
    if isinstance(part, Tensor):
        yield "", part
    elif isinstance(part, nn.Module):
        yield from part.named_parameters()
        yield from ((name, b) for name, b in part.named_buffers() if b.requires_grad and b.is_leaf)
