"""The Laplace log-density, summed over the event."""

from __future__ import annotations

import math

from torch import Tensor

from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._event import sum_event
from fastvi.ops._log_density import check_location_scale, one_of, wide
from fastvi.ops._scales import standardised

_laplace_log_prob = kernel("laplace_log_prob")


def reference(
    value: Tensor,
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    event_dims: int = 1,
) -> Tensor:
    """Compute :func:`laplace_log_prob` in plain PyTorch, differentiable any number of times."""
    spread, kind = one_of("laplace_log_prob", "scale", scale, log_scale)
    value, loc, spread = wide(value, loc, spread)
    u, log_b = standardised(value, loc, spread, kind)
    # The sign is taken from the distance, as u may be rounded to zero but still has a slope.
    depth = u * (value - loc).detach().sign()
    return sum_event(-depth - (log_b + math.log(2.0)), event_dims)


@with_reference(reference)
def laplace_log_prob(
    value: Tensor,
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Laplace log-density and sum it over the event.

    .. math::
        \log p(x) = \sum_f -\frac{|x_f - \mu_f|}{b_f} - \log 2 b_f

    The three inputs broadcast with each other, without copies over K. At the
    peak, where the density has no derivative, the gradient of ``value`` and ``loc`` is zero.

    Args:
        value: :math:`x`, shape (\*batch, F). The dtype of ``loc``, or float32.
        loc: :math:`\mu`, shape (K, \*batch, F) or any that broadcasts.
        scale: :math:`b > 0`; exactly one of the two.
        log_scale: :math:`\log b`.
        event_dims: the number of trailing dimensions to sum; 0 gives the density of each element.
        validate_args: check that all inputs are finite and that ``scale`` is positive.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, not exactly one scale, an
            ``event_dims`` that the shapes do not have.

    Example:
        >>> x, loc = torch.zeros(4, 3), torch.zeros(10, 4, 3)
        >>> fastvi.ops.laplace_log_prob(x, loc, scale=torch.ones(3)).shape
        torch.Size([10, 4])
    """
    op = "laplace_log_prob"
    spread, kind = one_of(op, "scale", scale, log_scale)
    check_location_scale(op, value, loc, spread, kind, event_dims, validate_args)
    if transforms_active():
        _laplace_log_prob.check(value, loc, spread, kind, event_dims)
        return reference(value, loc, **{kind: spread}, event_dims=event_dims)
    return _laplace_log_prob(value, loc, spread, kind, event_dims)
