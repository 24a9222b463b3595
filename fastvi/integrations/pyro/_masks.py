"""Log-densities whose masked elements have no part in the value or in any gradient.

A masked element may be NaN, or outside of the support, and 0 times its derivative would be NaN. So
a value inside the support replaces it before the density is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.distributions.util import broadcast_shape, sum_rightmost
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution, transform_to

from fastvi.integrations.pyro.acceleration import fused_copy

Mask = bool | Tensor | None


def masked_log_prob(fn: Any, value: Any, mask: Mask, fused: bool, *args: Any, **kwargs: Any) -> Any:
    """Return the log-density of each element; a masked one has that of some other value.

    The distribution's own mask is applied; the caller has to apply ``mask``.
    """
    if mask is False:
        return _nothing(fn, value)
    if isinstance(mask, Tensor) and isinstance(value, Tensor):
        value = replaced(fn, value, mask)
    if isinstance(fn, MaskedDistribution):
        own = fn._mask
        log_prob = masked_log_prob(fn.base_dist, value, own, fused, *args, **kwargs)
        return torch.where(own, log_prob, 0.0) if isinstance(own, Tensor) else log_prob
    if _has_mask(fn):
        inner = masked_log_prob(fn.base_dist, value, None, fused, *args, **kwargs)
        if isinstance(fn, Independent):
            return sum_rightmost(inner, fn.reinterpreted_batch_ndims)
        return inner.expand(_shape(fn, value))
    return (fused_copy(fn) if fused else fn).log_prob(value, *args, **kwargs)


def _has_mask(fn: Any) -> bool:
    """Return whether there is a mask below the events and repetitions of a distribution."""
    while isinstance(fn, Independent | ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def _shape(fn: Any, value: Tensor) -> torch.Size:
    """Return the shape of the log-density."""
    return broadcast_shape(fn.batch_shape, value.shape[: value.ndim - fn.event_dim])


def _nothing(fn: Any, value: Any) -> Tensor:
    like = value if isinstance(value, Tensor) else torch.zeros(())
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.zeros((), dtype=dtype, device=like.device).expand(_shape(fn, like))


def replaced(fn: Any, value: Tensor, mask: Tensor) -> Tensor:
    """Return the value, with one inside the support in place of each masked event."""
    mask = mask.reshape(*mask.shape, *[1] * fn.event_dim)
    with torch.no_grad():
        inside = inside_support(fn, value.detach())
    return torch.where(mask, value, inside.to(value.dtype))


# ---- a value inside the support -----------------------------------------------------------------
def inside_support(fn: Any, value: Tensor) -> Tensor:
    """Return a value of finite density, which broadcasts with ``value`` and adds no dimension.

    It is the mean, or the mode of a discrete distribution, if that is in the support; else the
    image of zero in the support.
    """
    if isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        return inside_support(fn.base_dist, value)
    if isinstance(fn, TransformedDistribution):
        base = fn.base_dist
        inside = inside_support(base, value.new_zeros(base.batch_shape + base.event_shape))
        for transform in fn.transforms:
            inside = transform(inside)
        return _narrowed(inside, value)
    support = fn.support
    first, second = ("mode", "mean") if support.is_discrete else ("mean", "mode")
    asked = (
        _asked(lambda: getattr(fn, first)),
        _asked(lambda: getattr(fn, second)),
        _asked(lambda: _of_zero(fn, support, value)),
    )
    found = [x for x in asked if x is not None]
    if not found:
        return torch.zeros((), dtype=value.dtype, device=value.device)
    if not _depends(support):
        # One value is enough for all samples, so it is not copied for each of them.
        found = [_narrowed(x, value) for x in found]
    return _first_inside(support, found)


def _asked(question: Callable[[], Any]) -> Tensor | None:
    """Return an attribute of a distribution, or None if it has none."""
    try:
        answer = question()
    except (NotImplementedError, AttributeError, RuntimeError, ValueError, TypeError):
        return None
    return answer if isinstance(answer, Tensor) else None


def _of_zero(fn: Any, support: Any, value: Tensor) -> Tensor:
    shape = fn.batch_shape + fn.event_shape
    zeros = torch.zeros(shape, device=value.device)
    if not support.is_discrete:
        return transform_to(support)(zeros.to(value.dtype))
    if support.event_dim:  # all counts are in the first class
        zeros[..., 0] = torch.as_tensor(getattr(support, "upper_bound", 1)).to(zeros)
        return zeros
    return zeros + getattr(support, "lower_bound", 0)


def _depends(support: Any) -> bool:
    """Return whether the support depends on the parameters."""
    inner = [
        x
        for x in vars(support).values()
        if isinstance(x, torch.distributions.constraints.Constraint)
    ]
    own = any(isinstance(x, Tensor) and x.numel() > 1 for x in vars(support).values())
    return own or any(_depends(x) for x in inner)


def _narrowed(x: Tensor, value: Tensor) -> Tensor:
    """Return the first element along dimensions in which the value has size one."""
    x = x[(0,) * max(x.ndim - value.ndim, 0)]
    for dim in range(-x.ndim, 0):
        if value.shape[dim] == 1 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def _first_inside(support: Any, found: list[Tensor]) -> Tensor:
    """Return for each event the first of several values that is finite and in the support."""
    best = found[-1]
    for x in reversed(found[:-1]):
        valid = support.check(x)
        each = x.isfinite()
        events = x.ndim - valid.ndim
        if events > 0:
            each = each.flatten(-events).all(-1)
        valid = (valid & each).reshape(*valid.shape, *[1] * events)
        best = torch.where(valid, x, best.to(x.dtype))
    return best
