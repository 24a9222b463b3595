"""What the gradient of a sample is multiplied by on its way from the model to the guide."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvi._surrogates import sent_on


class Ratio:
    """The guide's weight over the model's: found after the samples are, needed before the guide."""

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
