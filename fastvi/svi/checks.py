"""Modes in which a model runs: deferred checks of distributions, and errors for wrong names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# In these files a truth value is true for a wrong argument, not for a right one.
_INVERTED = ("torch.distributions.wishart", "torch.distributions.von_mises")


class DeferredChecks(TorchFunctionMode):
    """Answer true when torch.distributions asks for a truth value, and keep the value for later.

    Under ``torch.func.vmap`` a truth value of one sample cannot be read. The mode works in this
    thread only, and answers only torch.distributions: vmap handles other truth values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._truths: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__bool__:
            asks = sys._getframe(1).f_globals.get("__name__", "")
            if asks.startswith("torch.distributions") and asks not in _INVERTED:
                self._truths.append(args[0])
                return True
        return func(*args, **(kwargs or {}))

    def passed(self) -> list[Tensor]:
        """Return one truth value for the sample in a list, which is empty if there was no check."""
        if not self._truths:
            return []
        return [torch.stack([truth.reshape(()) for truth in self._truths]).all()]


class RefuseNames(TorchFunctionMode):
    """Raise an error that explains a tensor, if it is indexed by a name as a mapping is."""

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
