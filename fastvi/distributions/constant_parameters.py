r"""The log-density of samples as a function of the samples alone, the parameters held constant.

It is what the estimators ``"dreg"``, ``"stl"`` and ``"rws_dreg"`` differentiate. With
:math:`z = T_\phi(x_\phi)`,

.. math::
    \frac{\mathrm{d}}{\mathrm{d}\phi} \log q_{\text{held}}(z)
    = \frac{\partial \log q_\phi(z)}{\partial z} \frac{\mathrm{d}z}{\mathrm{d}\phi},

there are three ways to the slope :math:`s = \partial \log q_\phi(z) / \partial z`:

- for any density it is the derivative at a tensor that is in no cache of a transform;
- for transforms without parameters at the end of a chain it is not needed: log q is a function of
  their input, in which nothing cancels if they saturate;
- for transforms that cannot be inverted :math:`J^\top s = \partial h / \partial x` is solved, with
  :math:`h(x)` the density as a function of the base's sample, and J the Jacobian of T.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.utils import _sum_rightmost

from fastvi._gradients import moving_along
from fastvi.distributions._parts import is_inverse, parts_of, tensors_of
from fastvi.distributions._support import chain_of, moves

# The errors of a transform that can invert only its own last result.
_NO_INVERSE = (NotImplementedError, KeyError)


def check_score(where: str, what: str, q: Distribution) -> None:
    """Refuse a distribution whose score has a mean other than zero, and cannot be left out.

    Raises:
        ValueError: the support of q moves with parameters that require a gradient.
    """
    if moves(q):
        raise ValueError(
            f"{where}: expected {what} to have a support that does not move with its parameters, "
            f"for an estimator that holds the parameters of log q constant, got {kind_of(q)}: its "
            f"support moves, so the mean of its score is not zero; take the total derivative, "
            f"estimator 'iwae'"
        )


def checked(
    where: str, q: Distribution, value: Tensor, along: Callable[[], Tensor]
) -> Callable[[], Tensor]:
    """Return the function for log q at constant parameters, after a check of q."""

    def path() -> Tensor:
        if value.requires_grad:
            check_score(where, "the guide", q)
        return along()

    return path


def kind_of(q: Distribution) -> str:
    """Return the names of a distribution's class and of its inner classes."""
    base = getattr(q, "base_dist", getattr(q, "base", None))
    name = type(q).__name__
    return f"{name}({kind_of(base)})" if isinstance(base, Distribution) else name


def draw(
    where: str, q: Distribution, num_samples: int
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    r"""Draw samples with their log-densities, and return log q at constant parameters.

    Args:
        where: the name in errors.
        q: with ``has_rsample``.
        num_samples: K.

    Returns:
        The samples, shape (K, \*batch, \*event); their log-densities in nats, shape (K, \*batch);
        and a function that returns the log-densities as a function of the samples alone.
    """
    chain = chain_of(q)
    if chain is not None:
        return _draw_chain(where, q, *chain, num_samples)
    value = q.rsample(torch.Size((num_samples,)))
    # Not the tensor that the distribution knows: nothing that it remembers of its own draw is
    # found, which would hide a part of the derivative.
    seen = value.view_as(value)
    try:
        log_q = q.log_prob(seen)
    except _NO_INVERSE:
        seen, log_q = value, q.log_prob(value)
    return value, log_q, lambda: _along(where, q, value, seen, log_q)


def log_prob_along_path(where: str, q: Distribution, value: Tensor) -> Tensor:
    r"""Evaluate log q of reparameterised samples with its parameters held constant.

    Args:
        where: the name in errors.
        q: from which the value was drawn.
        value: shape (K, \*batch, \*event).

    Returns:
        log q in nats, shape (K, \*batch), as a function of the value alone.
    """
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        log_q = q.log_prob(leaf)
    return _along(where, q, value, leaf, log_q)


def log_prob_at(q: Distribution, leaf: Tensor, drawn_from: Distribution, drawn: Tensor) -> Tensor:
    r"""Evaluate log q at a leaf with the value of a sample, even if q has no inverse.

    Transforms without an inverse remember the input x of the sample. With this x, and with
    :math:`s = \partial \log q / \partial z` at it, to first order in z and in q's parameters

    .. math:: \log q(z) = h(x) + s^\top (z - T(x)), \qquad
        h(x) = \log q_{\text{base}}(x) - \log |\det J_T(x)|

    Args:
        q: the distribution, whose parameters may depend on other leaves.
        leaf: it has the value of ``drawn``, shape (K, \*batch, \*event).
        drawn_from: the q that drew the sample, and remembers it.
        drawn: the sample itself.

    Returns:
        log q in nats, shape (K, \*batch), a function of the leaf and of q's parameters.
    """
    try:
        return q.log_prob(leaf)
    except _NO_INVERSE:
        old, new = chain_of(drawn_from), chain_of(q)
        if old is None or new is None:
            raise
    with torch.no_grad():
        x = drawn
        for transform in reversed(old[1]):
            x = transform.inv(x)
    chain = _Chain(q, *new)
    fresh = [_without_memory(transform) for transform in chain.transforms]
    points = [x.detach()]
    for transform in fresh:
        points.append(transform(points[-1]))
    slope = chain.slope([point.detach() for point in points], len(fresh))
    value = chain.minus_ladj(chain.of_base(chain.base.log_prob(points[0])), points, fresh, 0)
    moved = slope * (leaf - points[-1])
    return value + moved.flatten(value.ndim).sum(-1) if moved.ndim > value.ndim else value + moved


def _along(where: str, q: Distribution, value: Tensor, seen: Tensor, log_q: Tensor) -> Tensor:
    if not value.requires_grad:
        return log_q.detach()
    slope = None
    if log_q.requires_grad:
        (slope,) = torch.autograd.grad(log_q.sum(), seen, retain_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(
            f"{where}: expected a distribution whose density has a derivative by its samples, for "
            f"an estimator that holds the parameters of log q constant, got {kind_of(q)}; take "
            f"estimator 'iwae'"
        )
    # It has the same value and, by the samples, the same derivative.
    return moving_along(log_q, value, slope)


# ---- chains of transforms ------------------------------------------------------------------------
class _Chain:
    """The transforms of a base, with the event dimensions of each one's log-density."""

    def __init__(self, q: Distribution, base: Distribution, transforms: Sequence[Any]) -> None:
        self.base, self.transforms = base, list(transforms)
        self.sums: list[int] = []
        # They are counted as in torch, from the value back to the base.
        dims = len(q.event_shape)
        for transform in reversed(self.transforms):
            dims += transform.domain.event_dim - transform.codomain.event_dim
            self.sums.insert(0, dims - transform.domain.event_dim)
        self.base_sum = dims - len(base.event_shape)

    def of_base(self, log_prob: Tensor) -> Tensor:
        return _sum_rightmost(log_prob, self.base_sum)

    def minus_ladj(
        self, total: Tensor, points: Sequence[Tensor], transforms: Sequence[Any], begin: int
    ) -> Tensor:
        """Return the total minus the log-determinants of the transforms from this number on."""
        for number, transform in enumerate(transforms):
            ladj = transform.log_abs_det_jacobian(points[number], points[number + 1])
            total = total - _sum_rightmost(ladj, self.sums[begin + number])
        return total

    def slope(self, points: Sequence[Tensor], count: int) -> Tensor:
        """Return the derivative of log q by the result of the first transforms."""
        fresh = [_without_memory(transform) for transform in self.transforms[:count]]
        leaf = points[count].detach().requires_grad_()
        try:
            inverted = [leaf]
            for transform in reversed(fresh):
                inverted.insert(0, transform.inv(inverted[0]))
            total = self.minus_ladj(
                self.of_base(self.base.log_prob(inverted[0])), inverted, fresh, 0
            )
            return _grad(total.sum(), leaf)
        except _NO_INVERSE:
            pass
        fresh = [_without_memory(transform) for transform in self.transforms[:count]]
        forward = [points[0].detach().requires_grad_()]
        for transform in fresh:
            forward.append(transform(forward[-1]))
        total = self.minus_ladj(self.of_base(self.base.log_prob(forward[0])), forward, fresh, 0)
        return _solved(_grad(total.sum(), forward[0]), forward[0], forward[-1], total.ndim)


def _draw_chain(
    where: str, q: Distribution, base: Distribution, transforms: list[Any], num_samples: int
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Draw the base's samples and apply the transforms, without any inverse."""
    chain = _Chain(q, base, transforms)
    points = [base.rsample(torch.Size((num_samples,)))]
    for transform in transforms:
        points.append(transform(points[-1]))
    log_q = chain.minus_ladj(chain.of_base(base.log_prob(points[0])), points, transforms, 0)

    def along_path() -> Tensor:
        if not points[-1].requires_grad:
            return log_q.detach()
        last = len(transforms)
        while last > 0 and _is_constant(transforms[last - 1]):
            last -= 1
        if last == 0:
            until = chain.of_base(log_prob_along_path(where, base, points[0]))
        else:
            # After the last transform with parameters, all is a function of its result.
            with torch.enable_grad():
                slope = chain.slope(points, last)
            with torch.no_grad():
                value = chain.of_base(base.log_prob(points[0]))
                value = chain.minus_ladj(value, points, transforms[:last], 0)
            until = moving_along(value, points[last], slope)
        return chain.minus_ladj(until, points[last:], transforms[last:], last)

    return points[-1], log_q, along_path


def _solved(right: Tensor, x: Tensor, y: Tensor, batch: int) -> Tensor:
    """Return s of J^T s = right, with J the Jacobian of y by x, of each event by itself."""
    rows = y.flatten(batch) if y.ndim > batch else y[..., None]
    if right.shape != y.shape:
        raise NotImplementedError("the transform changes the shape of an event")
    jacobian = [_grad(rows[..., d].sum(), x).reshape(rows.shape) for d in range(rows.shape[-1])]
    transposed = torch.stack(jacobian, -1)  # [.., of x, of y]
    return torch.linalg.solve(transposed, right.reshape(rows.shape)).reshape(y.shape)


def _grad(output: Tensor, leaf: Tensor) -> Tensor:
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    (found,) = torch.autograd.grad(output, leaf, retain_graph=True, allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


def _without_memory(transform: Any) -> Any:
    """Return a copy that shares the parameters, but not the transform's cache of a draw."""
    new = copy.copy(transform)
    if "_cached_x_y" in vars(new):
        vars(new)["_cached_x_y"] = (None, None)
    vars(new)["_inv"] = _without_memory(transform._inv) if is_inverse(transform) else None
    if "_cached_x_y" in vars(new):
        vars(new)["_cached_x_y"] = (None, None)
    for name in ("parts", "transforms"):
        inner = getattr(new, name, None)
        if isinstance(inner, list):
            setattr(new, name, [_without_memory(part) for part in inner])
    if getattr(new, "base_transform", None) is not None:
        new.base_transform = _without_memory(new.base_transform)
    return new


def _is_constant(transform: Any) -> bool:
    """Return whether one of torch's own transforms has no tensor that requires a gradient."""
    own = all(
        type(part).__module__.startswith(("torch.distributions.", "fastvi.distributions."))
        for part in parts_of(transform)
    )
    return own and not any(tensor.requires_grad for _, tensor in tensors_of(transform))
