"""Whether the ends of a distribution's support move with its parameters.

If they do, and the density does not vanish there, the mean of the score is not zero:

    E[d log q / d phi] = -(density at the end) * (d end / d phi)

Estimators that leave the score out, because its mean is zero, are wrong for such a distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    IndependentTransform,
    TransformedDistribution,
    constraints,
)

# Two distances from an end: a density that vanishes is smaller at the second.
_NEAR, _NEARER = 1e-6, 1e-12
_FAR, _FARTHER = 1e3, 1e6
_FALLS = 0.1  # in nats, between the two distances: x^0.01 falls more
_BOUNDS = ("lower_bound", "upper_bound")
# A derivative of an end above this is no rounding error.
_ROUNDING = 1e-4


def chain_of(q: Distribution) -> tuple[Distribution, list[Any]] | None:
    """Return the base and the transforms of a distribution that has only these, or None.

    The caller handles dimensions of ``Independent``. Subclasses with a density of their own, as
    ``HalfNormal``, are no chains.
    """
    while isinstance(q, Independent):
        q = q.base_dist
    if not isinstance(q, TransformedDistribution):
        return None
    for method in ("log_prob", "rsample"):
        if getattr(type(q), method) is not getattr(TransformedDistribution, method):
            return None
    return q.base_dist, list(q.transforms)


@torch.enable_grad()
def moves(q: Distribution) -> bool:
    """Return whether the support moves with parameters of q that require a gradient."""
    # The base of Independent and of Pyro's wrappers: expanded, masked.
    while hasattr(q, "base_dist") and not isinstance(q, TransformedDistribution):
        q = q.base_dist
    chain = chain_of(q)
    if chain is None or _has_own_support(q):
        pulled_back = _pulled_back(q)
        if pulled_back is not None:
            return pulled_back
        inner = [getattr(q, "base", None), *(getattr(q, "marginals", None) or ())]
        inner = [part for part in inner if isinstance(part, Distribution)]
        if inner:
            return any(moves(part) for part in inner)
        return _has_moving_ends(q)
    base, transforms = chain
    if moves(base):
        return True
    return any(_is_moved(base, transforms, number) for number in range(len(_ends(base))))


def _has_own_support(q: Distribution) -> bool:
    return type(q).support is not TransformedDistribution.support


def _has_moving_ends(q: Distribution) -> bool:
    support = _support_of_each(q)
    ends = [getattr(support, name, None) for name in _BOUNDS]
    return any(isinstance(end, Tensor) and _is_moving(end) for end in ends)


def _support_of_each(q: Distribution) -> Any:
    """Return the support of each number, or None for a joint support of several."""
    try:
        support: Any = q.support
    except (NotImplementedError, AttributeError):
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return None if support is None or support.event_dim or support.is_discrete else support


def _ends(q: Distribution) -> list[Tensor]:
    """Return the ends of the support of each number, maybe infinite; none if it is joint."""
    support = _support_of_each(q)
    if support is None:
        return []
    found = []
    for name, default in zip(_BOUNDS, (-math.inf, math.inf), strict=True):
        end = torch.as_tensor(getattr(support, name, default))
        end = end if end.is_floating_point() else end.to(torch.get_default_dtype())
        found.append(end.expand(torch.broadcast_shapes(end.shape, q.batch_shape + q.event_shape)))
    return found


def _is_moving(end: Tensor) -> bool:
    """Return whether the derivative of a finite end by any leaf is more than rounding."""
    finite = torch.isfinite(end)
    if not end.requires_grad or not bool(finite.any()):
        return False
    # The weights differ, so that no two derivatives cancel.
    seen = torch.where(finite, end, 0.0).flatten()
    weights = torch.linspace(1.0, 2.0, seen.numel(), dtype=seen.dtype, device=seen.device)
    leaves = _leaves(seen)
    grads = torch.autograd.grad(
        (weights * seen).sum(), leaves, retain_graph=True, allow_unused=True
    )
    scale = 1.0 + float(seen.detach().abs().max())
    return any(g is not None and bool((g.abs() > _ROUNDING * scale).any()) for g in grads)


def _is_moved(base: Distribution, transforms: Sequence[Any], number: int) -> bool:
    """Return whether the transforms move an end of the base at which the density is not zero."""
    end = _ends(base)[number].detach().double()
    image, before = end, transforms
    for position, transform in enumerate(transforms):
        if _is_joint(transform):
            before = transforms[:position]
            if not bool(torch.isfinite(image).any()):
                return False
            image = _image(transform, image)
            break
        image = _image(transform, image)
    return _is_moving(image) and not _vanishes(base, before, end, 1.0 if number == 0 else -1.0)


def _image(transform: Any, x: Tensor) -> Tensor:
    try:
        return transform(x)
    except RuntimeError:  # in one type, as in networks
        return transform(x.to(torch.get_default_dtype()))


def _is_joint(transform: Any) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return transform.domain.event_dim > 0 or transform.codomain.event_dim > 0


@torch.no_grad()
def _vanishes(base: Distribution, transforms: Sequence[Any], end: Tensor, inwards: float) -> bool:
    """Return whether the density goes to zero as all its numbers go towards an end."""
    values = []
    for near, far in ((_NEAR, _FAR), (_NEARER, _FARTHER)):
        x = torch.where(torch.isfinite(end), end + inwards * near * (1 + end.abs()), -inwards * far)
        log_prob = _unchecked_log_prob(base, x)
        for transform in transforms:
            y = _image(transform, x)
            ladj = transform.log_abs_det_jacobian(x, y)
            log_prob = log_prob - (
                ladj.flatten(log_prob.ndim).sum(-1) if ladj.ndim > log_prob.ndim else ladj
            )
            x = y
        values.append(log_prob)
    return bool((values[1] < values[0] - _FALLS).all())


def _unchecked_log_prob(q: Distribution, x: Tensor) -> Tensor:
    checks, q._validate_args = q._validate_args, False
    try:
        return q.log_prob(x)
    finally:
        q._validate_args = checks


def _pulled_back(q: Distribution) -> bool | None:
    """Return the answer for a flow from data to its base, as in zuko; None for others."""
    transform: Any = getattr(q, "transform", None)
    base = getattr(q, "base", None)
    if not isinstance(base, Distribution) or not hasattr(transform, "inv"):
        return None
    ends = [end for end in _ends_within(base) if bool(torch.isfinite(end).any())]
    if not ends:
        return False
    # A circle has no ends: a shift moves one side into the other.
    if any(type(part).__name__.startswith("Circular") for part in _pieces(transform)):
        return False
    return any(_is_moving(transform.inv(end)) for end in ends)


def _ends_within(q: Distribution) -> list[Tensor]:
    shape = q.batch_shape + q.event_shape
    while isinstance(q, Independent):
        q = q.base_dist
    return [end.expand(shape) for end in _ends(q)]


def _pieces(transform: Any) -> list[Any]:
    """Return the transforms inside a composition, and those inside them."""
    found = [transform]
    for inner in (
        *(getattr(transform, "transforms", None) or ()),
        getattr(transform, "base", None),
    ):
        if inner is not None:
            found += _pieces(inner)
    return found


def _leaves(tensor: Tensor) -> list[Tensor]:
    found: dict[int, Tensor] = {}
    seen = {tensor.grad_fn}
    waiting = [tensor.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        for after, _ in () if node is None else node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return list(found.values())
