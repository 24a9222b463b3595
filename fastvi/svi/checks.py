"""Looking on while a model runs: torch's checks of distributions, and tensors taken by a name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# These ask for what is wrong, not for what is right.
_TURNED_ROUND = ("torch.distributions.wishart", "torch.distributions.von_mises")


class DeferredChecks(TorchFunctionMode):
    """Let torch.distributions go on where it asks a truth value, and keep it for later.

    Under ``torch.func.vmap`` it could not look at that of one sample. Of this thread alone, and
    nothing else is asked: other truth values are vmap's own business.
    """

    def __init__(self) -> None:
        super().__init__()
        self._truths: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__bool__:
            asks = sys._getframe(1).f_globals.get("__name__", "")
            if asks.startswith("torch.distributions") and asks not in _TURNED_ROUND:
                self._truths.append(args[0])
                return True
        return func(*args, **(kwargs or {}))

    def passed(self) -> list[Tensor]:
        """Return one truth value for the sample, or None if nothing was asked."""
        if not self._truths:
            return []
        return [torch.stack([truth.reshape(()) for truth in self._truths]).all()]


class RefuseNames(TorchFunctionMode):
    """Say what a tensor is that is looked up by a name, as if it were a mapping."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], str):
            raise ValueError(
                f"SVI: expected the model to use z as the one tensor that a guide of one "
                f"distribution samples, of shape {list(args[0].shape)}, got the name {args[1]!r}; "
                f"latents with names need a guide that returns a mapping of names to distributions"
            )
        return func(*args, **(kwargs or {}))
