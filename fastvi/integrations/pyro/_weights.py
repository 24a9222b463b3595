"""What each sample counts, for the model and for the guide, from all log-weights of a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvi._surrogates import sent_on
from fastvi.bounds.estimators import Estimator
from fastvi.objectives.score_function import vimco_signal
from fastvi.ops import iwlb


@dataclass(frozen=True)
class Weights:
    """The bound of each cell, and the samples' weights, (K, *cells) each."""

    bound: Tensor
    # The gradient of the bound by the log-weights.
    model: Tensor
    # What of it goes on from the samples to the guide; None for all.
    path: Tensor | None
    # What the log-probability of sites without a path is credited with.
    score: Tensor | None

    def part(self, begin: int, end: int) -> Weights:
        path = None if self.path is None else self.path[begin:end]
        score = None if self.score is None else self.score[begin:end]
        return Weights(self.bound, self.model[begin:end], path, score)


def weigh(log_w: Tensor, estimator: Estimator, alpha: float, with_score: bool) -> Weights:
    """Weigh all log-weights, shape (K, *cells), which have no graph."""
    with torch.enable_grad():
        leaf = log_w.detach().requires_grad_()
        bound = iwlb(leaf, alpha=alpha)
        (model,) = torch.autograd.grad(bound.sum(), leaf)
    path = None if estimator.path_weight is None else estimator.path_weight(model, alpha)
    score = None
    if estimator.gradient == "score":
        # The wake phase ascends sum_k v_k log q(z_k).
        score = model
    elif with_score:
        score = _signal(log_w, alpha)
    return Weights(bound.detach(), model, path, score)


def _signal(log_w: Tensor, alpha: float) -> Tensor:
    """The bound less what it is without knowing the sample: VIMCO's, of any order."""
    num_samples = len(log_w)
    if num_samples == 1 or alpha == 1.0:
        # Of an impossible sample the bound is -inf, which no direction improves.
        impossible = torch.isneginf(log_w).any(0)
        log_w = log_w.masked_fill(impossible, 0.0)
        return log_w if num_samples == 1 else (log_w - log_w.mean(0)) / (num_samples - 1)
    order = 1.0 - alpha
    return vimco_signal(order * log_w) / order


class _Bound(torch.autograd.Function):
    """The bound, whose gradient by log-weights and scores is the weights that were found."""

    @staticmethod
    def forward(ctx: Any, weights: Weights, log_w: Tensor, score: Tensor | None) -> Tensor:
        ctx.weights = weights
        return weights.bound.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        weights = ctx.weights
        score = sent_on(weights.score, grad) if ctx.needs_input_grad[2] else None
        return None, sent_on(weights.model, grad), score


def bound_of(weights: Weights, log_w: Tensor, score: Tensor | None) -> Tensor:
    """The bound of each cell, differentiable through log-weights and scores."""
    return _Bound.apply(weights, log_w, score)


class Ratio:
    """The path's weight over the model's: found after the samples are, needed before the guide."""

    def __init__(self) -> None:
        # Of shape (K, *plates), all dimensions of plates, those that are summed over of size 1.
        self.value: Tensor | None = None

    def weigh(self, x: Tensor, event_dim: int) -> Tensor:
        """x itself, whose gradient is weighed on its way back."""
        return _WeighPath.apply(self, event_dim, x)


class _WeighPath(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ratio: Ratio, event_dim: int, x: Tensor) -> Tensor:
        ctx.ratio, ctx.event_dim = ratio, event_dim
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        value = ctx.ratio.value
        if value is None:
            return None, None, grad
        # One sample alone has no dimension of samples, nor those of plates it is not in.
        batch = grad.ndim - ctx.event_dim
        shape = (*value.shape[value.ndim - batch :], *[1] * ctx.event_dim)
        return None, None, sent_on(grad, value.reshape(shape))
