"""What is added up over chunks: gradients, and a number by which two passes are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Log-weights of two passes that differ by this many nats (more, where they are large) ran two
# functions; what rounding alone does to large ones is far less.
_PASSES_AGREE = 1e-3
_ROUNDING = 1e-6
# Gradients of so many numbers are summed in float64: of any number of chunks.
_SMALL = 2**20


class Gradients:
    """Sums of gradients over chunks: small ones in float64, so that many chunks round as one."""

    def __init__(self, captured: Sequence[Tensor]) -> None:
        self.captured = captured
        self._sums: list[Tensor | None] = [None] * len(captured)
        self._owned = [False] * len(captured)

    def add(self, index: int, grad: Tensor) -> None:
        total = self._sums[index]
        if self._owned[index]:
            assert total is not None
            total.add_(grad)
            return
        # The first one may share its memory with something else.
        if grad.numel() <= _SMALL:
            wide = grad.double()
        else:
            wide = grad.float() if grad.dtype.itemsize < 4 else grad
        self._sums[index] = wide if total is None else total + wide
        self._owned[index] = total is not None or wide is not grad

    def finished(self) -> list[Tensor | None]:
        return [
            None if total is None else total.to(leaf.dtype)
            for total, leaf in zip(self._sums, self.captured, strict=True)
        ]


def checksum(log_w: Tensor) -> Tensor:
    """The sum of the finite log-weights: infinities and NaN tell nothing."""
    return torch.nan_to_num(log_w, 0.0, 0.0, 0.0).sum(dtype=torch.float64)


def differs(before: Tensor, log_w: Tensor) -> Tensor:
    """Whether a chunk's log-weights are others than before, if only in a random way."""
    log_w = torch.nan_to_num(log_w, 0.0, 0.0, 0.0)
    count = max(1, log_w.numel())
    size = log_w.abs().sum(dtype=torch.float64) / count
    slack = _PASSES_AGREE * math.sqrt(count) * (1.0 + 1e-2 * size) + _ROUNDING * count * size
    return (log_w.sum(dtype=torch.float64) - before).abs() > slack


def unlike(expected: Tensor, log_w: Tensor, *, coarse: bool) -> Tensor:
    """Whether chosen samples have other log-weights than before, among fewer others.

    Products of other shapes round differently; ``coarse`` where they are in low precision.
    """
    expected = torch.nan_to_num(expected, 0.0, 0.0, 0.0)
    log_w = torch.nan_to_num(log_w, 0.0, 0.0, 0.0)
    count = max(1, log_w.numel())
    apart = (log_w - expected).abs().sum(dtype=torch.float64) / count
    size = expected.abs().sum(dtype=torch.float64) / count
    return apart > (1e-1 if coarse else 1e-2) * (1.0 + 1e-2 * size)
