"""Sums over chunks: of gradients, and of a number by which two passes are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# If the log-weights of two passes differ by this many nats (more, if they are large), two different
# functions were run. Rounding alone changes large ones by far less.
_PASSES_AGREE = 1e-3
_ROUNDING = 1e-6
# Gradients of at most so many numbers are summed in float64, whatever the number of chunks.
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
    """Return the sum of the finite log-weights, because infinities and NaN tell nothing."""
    return torch.nan_to_num(log_w, 0.0, 0.0, 0.0).sum(dtype=torch.float64)


def differs(before: Tensor, log_w: Tensor) -> Tensor:
    """Tell whether a chunk's log-weights are different from before, if only at random."""
    log_w = torch.nan_to_num(log_w, 0.0, 0.0, 0.0)
    count = max(1, log_w.numel())
    size = log_w.abs().sum(dtype=torch.float64) / count
    slack = _PASSES_AGREE * math.sqrt(count) * (1.0 + 1e-2 * size) + _ROUNDING * count * size
    return (log_w.sum(dtype=torch.float64) - before).abs() > slack


def unlike(expected: Tensor, log_w: Tensor, *, coarse: bool) -> Tensor:
    """Tell whether the chosen samples have different log-weights than among all samples.

    Matrix products of other shapes round differently, and more so in low precision: ``coarse``.
    """
    expected = torch.nan_to_num(expected, 0.0, 0.0, 0.0)
    log_w = torch.nan_to_num(log_w, 0.0, 0.0, 0.0)
    count = max(1, log_w.numel())
    apart = (log_w - expected).abs().sum(dtype=torch.float64) / count
    size = expected.abs().sum(dtype=torch.float64) / count
    return apart > (1e-1 if coarse else 1e-2) * (1.0 + 1e-2 * size)
