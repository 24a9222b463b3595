"""Values with a gradient of their own, and products in which zero times infinity is zero.

A surrogate term, x - x.detach(), is NaN if x is infinite, and so is zero times infinity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sent_on(derivative: Tensor, grad: Tensor) -> Tensor:
    """Return a derivative times the incoming gradient, and zero for a gradient of zero."""
    return torch.where(grad == 0, 0.0, derivative * grad)


def weighed(weight: float, x: Tensor) -> Tensor:
    """Return weight * x, which is zero for a weight of zero, even if x is infinite or NaN."""
    if weight == 0:
        # It is still a function of x, whose gradient is zero.
        return x.masked_fill(torch.ones_like(x, dtype=torch.bool), 0.0)
    return weight * x


def moving_along(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """Return the value, (K, *batch), with the slope as its derivative by x, (K, *batch, *event)."""
    return _MovingAlong.apply(value.detach(), x, slope)


class _MovingAlong(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor, slope: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        grad = grad.reshape(grad.shape + (1,) * (slope.ndim - grad.ndim))
        return None, sent_on(slope, grad).to(slope.dtype), None


def with_gradient(bound: Tensor, *parts: tuple[Tensor, Tensor], once: bool = True) -> Tensor:
    """Return the bound with the gradient of sum_k weight_k term_k for each (term, weight).

    A surrogate term would be NaN for a weight of zero and a term of minus infinity. ``once``
    refuses second derivatives, in which the weights are no constants.
    """
    weights = [weight.detach() for _, weight in parts]
    node = _WithGradientOnce if once else _WithGradient
    return node.apply(bound.detach(), len(parts), *weights, *(term for term, _ in parts))


class _WithGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(bound: Tensor, count: int, *both: Tensor) -> Tensor:
        return bound.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, count, *both = inputs
        ctx.count = count
        ctx.dtypes = [term.dtype for term in both[count:]]
        ctx.save_for_backward(*both[:count])
        ctx.save_for_forward(*both[:count])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        needed = ctx.needs_input_grad[2 + ctx.count :]
        # Terms with the same weight share their product.
        products: dict[int, Tensor] = {}
        sent: list[Tensor | None] = []
        for weight, dtype, need in zip(ctx.saved_tensors, ctx.dtypes, needed, strict=True):
            if not need:
                sent.append(None)
                continue
            if id(weight) not in products:
                products[id(weight)] = sent_on(weight, grad)
            sent.append(products[id(weight)].to(dtype))
        return None, None, *(None for _ in range(ctx.count)), *sent

    @staticmethod
    def jvp(ctx: Any, bound: Tensor | None, _: None, *tangents: Tensor | None) -> Tensor:
        total = torch.zeros_like(ctx.saved_tensors[0].sum(0)) if bound is None else 0.0 * bound
        for weight, tangent in zip(ctx.saved_tensors, tangents[ctx.count :], strict=True):
            if tangent is not None:
                total = total + sent_on(weight, tangent).sum(0).to(total.dtype)
        return total


class _WithGradientOnce(_WithGradient):
    backward = staticmethod(torch.autograd.function.once_differentiable(_WithGradient.backward))  # type: ignore[assignment]
