"""The guide and the prior of a streamed bound, and the sums of gradients over its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi._loss_arguments import Prior
from fastvi.ops.gaussian_rsample import rsample


@dataclass(frozen=True)
class Draw:
    """Which samples: a range of k under a key."""

    key: Tensor
    offset: int
    size: int


@dataclass(frozen=True)
class Guide:
    """q(z given x) and the prior without a graph: loc and log_var of one shape and dtype."""

    loc: Tensor
    log_var: Tensor
    prior: Prior | None
    needs_grad: bool

    @property
    def batch(self) -> torch.Size:
        return self.loc.shape[:-1]

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.loc.dtype == torch.float64 else torch.float32

    def sample(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """z, log q and log p, without a graph."""
        with torch.no_grad():
            return rsample(
                self.loc, self.log_var, "log_var", draw.size, draw.key, draw.offset, self.prior,
                "path",
            )  # fmt: skip

    def sample_backward(
        self,
        draw: Draw,
        gradient: str,
        *,
        z: Tensor | None = None,
        log_q: Tensor | None = None,
        log_p: Tensor | None = None,
        path_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From gradients of a draw's results to those of loc, log_var and the prior's two."""
        prior_loc, prior_log_var = self.prior or (None, None)
        return torch.ops.fastvi._gaussian_rsample_backward(
            z, log_q, log_p, path_weight, self.loc, self.log_var, "log_var", draw.key, draw.size,
            draw.offset, prior_loc, prior_log_var, gradient,
        )  # fmt: skip


class Gradients:
    """Sums over chunks: of the guide's and the prior's gradients, and of all that is captured."""

    def __init__(self, guide: Guide, num_captured: int) -> None:
        self.guide = guide
        # Small, and the sums of as many terms as there are chunks.
        self.loc = torch.zeros_like(guide.loc, dtype=torch.float64)
        self.log_var = torch.zeros_like(guide.log_var, dtype=torch.float64)
        self.prior = [torch.zeros_like(p, dtype=torch.float64) for p in guide.prior or ()]
        self.captured: list[Tensor | None] = [None] * num_captured
        self._owned = [False] * num_captured

    def add_captured(self, index: int, grad: Tensor) -> None:
        grad = grad.float() if grad.dtype.itemsize < 4 else grad
        total = self.captured[index]
        if total is None:
            self.captured[index] = grad
        elif self._owned[index]:
            total.add_(grad)
        else:
            # The first one may share its memory with something else.
            self.captured[index] = total + grad
            self._owned[index] = True

    def add_path(
        self,
        draw: Draw,
        gradient: str,
        grad_z: Tensor | None,
        grad: Tensor,
        path_weight: Tensor | None = None,
        *,
        with_prior: bool = True,
    ) -> None:
        """Add the sampler's gradient, where log p has gradient ``grad`` and log q its negative."""
        loc, log_var, *prior = self.guide.sample_backward(
            draw, gradient, z=grad_z, log_q=-grad, log_p=grad, path_weight=path_weight
        )
        self._add(loc, log_var, prior if with_prior else [])

    def add_score(self, draw: Draw, grad: Tensor) -> None:
        """Add sum_k grad_k d log q(z_k) at fixed z_k, which leaves the score.

        With e the noise, the path's part of d log q is (-e / sigma, -e^2) for loc and log sigma;
        the score is (e / sigma, e^2 - 1).
        """
        loc, log_var, *_ = self.guide.sample_backward(draw, "path", log_q=-grad)
        self._add(loc, log_var - 0.5 * grad.sum(0, dtype=torch.float64)[..., None], [])
        self.add_prior(draw, grad)

    def add_prior(self, draw: Draw, grad: Tensor) -> None:
        """Add the prior's gradient alone: it is part of the model."""
        if self.prior:
            _, _, *prior = self.guide.sample_backward(draw, "path", log_p=grad)
            self._add(None, None, prior)

    def _add(self, loc: Tensor | None, log_var: Tensor | None, prior: Sequence[Tensor]) -> None:
        if loc is not None and log_var is not None:
            self.loc += loc
            self.log_var += log_var
        # Without a prior the op returns empty tensors.
        for total, part in zip(self.prior, prior, strict=False):
            total += part
