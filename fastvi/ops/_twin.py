"""A density with formulas for its value, its first and its second derivatives.

Automatic differentiation of an exact formula may be inexact: an unused branch gives 0 · ∞, and two
slopes cancel. So the first two derivatives are formulas too. They run
under all transforms of ``torch.func``, in forward mode and with ``create_graph``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function


class Twin(Protocol):
    """A function of a few tensors of one shape, element by element."""

    @property
    def value(self) -> Callable[..., Tensor]: ...

    @property
    def slopes(self) -> Callable[..., tuple[Tensor, ...]]: ...

    # The slopes of each slope, row by row.
    @property
    def curvatures(self) -> Callable[..., tuple[tuple[Tensor, ...], ...]]: ...


def _weighted(weights: Any, terms: Any) -> Tensor | None:
    """Return the sum of products; None means zero."""
    total = None
    for weight, term in zip(weights, terms, strict=True):
        if weight is not None:
            product = weight * term
            total = product if total is None else total + product
    return total


def _keep_inputs(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.twin, *x = inputs
    # A tangent of zero times an infinite slope would be NaN.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*x)
    ctx.save_for_forward(*x)


class _Value(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(twin: Twin, *x: Tensor) -> Tensor:  # type: ignore[override]
        return twin.value(*x)

    setup_context = staticmethod(_keep_inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        slopes = _Slopes.apply(ctx.twin, *ctx.saved_tensors)
        return None, *(grad * slope for slope in slopes)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:  # type: ignore[override]
        return _weighted(tangents, _Slopes.apply(ctx.twin, *ctx.saved_tensors))


class _Slopes(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(twin: Twin, *x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return twin.slopes(*x)

    setup_context = staticmethod(_keep_inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        # The matrix is symmetric, so a column equals a row.
        rows = ctx.twin.curvatures(*ctx.saved_tensors)
        return None, *(_weighted(grads, row) for row in rows)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> Any:  # type: ignore[override]
        rows = ctx.twin.curvatures(*ctx.saved_tensors)
        return tuple(_weighted(tangents, row) for row in rows)


def evaluate(twin: Twin, *x: Tensor) -> Tensor:
    """Return the value at tensors that broadcast, in their widest type; it computes in float64."""
    dtype = x[0].dtype
    for other in x[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    wide = torch.broadcast_tensors(*(one.double() for one in x))
    if torch._C._get_tracing_state() is not None:
        # A trace needs plain formulas, because a custom node would differ at each run.
        return twin.value(*wide).to(dtype)
    return _Value.apply(twin, *wide).to(dtype)
