"""The running log-sum-exp of log-weights: a maximum and a sum for each datum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi.chunks.sample_group import SampleGroup


@dataclass(frozen=True)
class Terms:
    """The three terms of log-weights, [K, *batch] each, of one dtype and without a graph."""

    log_px: Tensor
    log_p: Tensor
    log_q: Tensor

    @classmethod
    def of_weights(cls, log_w: Tensor) -> Terms:
        nothing = torch.zeros_like(log_w)
        return cls(log_w, nothing, nothing)

    @property
    def log_w(self) -> Tensor:
        return self.log_px + self.log_p - self.log_q


class Totals:
    """Sums over samples for the bound of order alpha, over chunks and over ranks.

    With c = 1 - alpha: ``shift`` is max_k c log w_k and ``total`` is sum_k exp(c log w_k - shift),
    in float64, so that thousands of chunks add no rounding that a single one has not. At alpha = 1
    the shift means nothing, and the total is sum_k log w_k.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.shift: Tensor | None = None
        self.total: Tensor | None = None
        self.met = False

    def add(self, terms: Terms) -> None:
        bound, shift, total = torch.ops.fastvi.iwlb(
            terms.log_px, terms.log_p, terms.log_q, False, self.alpha
        )
        if self.alpha == 1.0:
            total = bound.double() * len(terms.log_px)
        total = total.double()
        if self.shift is None or self.total is None:
            self.shift, self.total = shift, total
        elif self.alpha == 1.0:
            self.total = self.total + total
        else:
            largest = torch.maximum(self.shift, shift)
            self.total = _rescale(self.total, self.shift, largest) + _rescale(total, shift, largest)
            self.shift = largest

    @contextlib.contextmanager
    def awaited(self, group: SampleGroup | None, batch: torch.Size, like: Tensor) -> Iterator[None]:
        """Let the other ranks know, who wait for this one's totals, where it raises instead."""
        try:
            yield
        except Exception:
            if group is not None and not self.met:
                with contextlib.suppress(RuntimeError):
                    self.meet(group, batch, like, failed=True)
            raise

    def meet(
        self, group: SampleGroup, batch: torch.Size, like: Tensor, *, failed: bool = False
    ) -> None:
        """Take in the totals of all ranks, those of a rank without samples too."""
        self.met = True
        dtype = like.dtype if self.shift is None else self.shift.dtype
        if self.shift is None or self.total is None:
            self.shift = torch.full(batch, torch.finfo(dtype).min, dtype=dtype, device=like.device)
            self.total = torch.zeros(batch, dtype=torch.float64, device=like.device)
        if self.alpha == 1.0:
            self.total = group.add(self.total, failed)
            return
        largest = group.maximum(self.shift.double(), failed)
        if failed:
            return
        self.total = group.add(_rescale(self.total, self.shift.double(), largest))
        self.shift = largest.to(dtype)

    def bound(self, num_samples: int) -> Tensor:
        """The bound, in nats."""
        assert self.shift is not None and self.total is not None
        if self.alpha == 1.0:
            return (self.total / num_samples).to(self.shift.dtype)
        shift = self.shift.double()
        # log(total / K), not log(total) - log(K): equal weights give exactly their value.
        mean = torch.where(shift == torch.inf, shift, shift + (self.total / num_samples).log())
        return (mean / (1.0 - self.alpha)).to(self.shift.dtype)

    def weights(self, terms: Terms, num_samples: int) -> Tensor:
        """The normalised weight of each of the samples among all ``num_samples``."""
        assert self.shift is not None and self.total is not None
        if self.alpha == 1.0:
            # Where the mean is -inf no direction improves it.
            weights = torch.full_like(terms.log_px, 1.0 / num_samples)
            return weights.masked_fill_(torch.isneginf(self.total), 0.0)
        dtype = terms.log_px.dtype
        return torch.ops.fastvi._iwlb_backward(
            torch.ones_like(self.shift, dtype=dtype),
            terms.log_px,
            terms.log_p,
            terms.log_q,
            self.shift.to(dtype),
            self.total.to(dtype),
            False,
            self.alpha,
        )


def _rescale(total: Tensor, shift: Tensor, to: Tensor) -> Tensor:
    # Equal shifts, infinite ones among them, need no factor.
    return torch.where(shift == to, total, total * (shift - to).double().exp())
