"""The Gaussian log-density, summed over the event."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi.ops._arguments import one_spread
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._event import sum_event
from fastvi.ops._log_density import check_location_scale
from fastvi.ops._scales import standardised

_gaussian_log_prob = kernel("gaussian_log_prob")


def reference(
    value: Tensor,
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    log_var: Tensor | None = None,
    event_dims: int = 1,
) -> Tensor:
    """Compute :func:`gaussian_log_prob` in plain PyTorch, differentiable any number of times."""
    spread, kind = one_spread("gaussian_log_prob", scale, log_scale, log_var)
    acc = torch.float64 if loc.dtype == torch.float64 else torch.float32
    u, log_sigma = standardised(value.to(acc), loc.to(acc), spread.to(acc), kind)
    log_prob = (-0.5 * u) * u - log_sigma - 0.5 * math.log(2.0 * math.pi)
    return sum_event(log_prob, event_dims)


@with_reference(reference)
def gaussian_log_prob(
    value: Tensor,
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    log_var: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Gaussian log-density and sum it over the event.

    .. math::
        \log p(x) = \sum_f -\tfrac12 \left(\frac{x_f - \mu_f}{\sigma_f}\right)^2
                    - \log \sigma_f - \tfrac12 \log 2\pi

    The three inputs broadcast with each other, without copies over K.

    Args:
        value: :math:`x`, shape (\*batch, F). The dtype of ``loc``, or float32.
        loc: mean :math:`\mu`, shape (K, \*batch, F) or any that broadcasts.
        scale: standard deviation :math:`\sigma`; exactly one of the three.
        log_scale: :math:`\log \sigma`.
        log_var: :math:`\log \sigma^2`.
        event_dims: the number of trailing dimensions to sum; 0 gives the density of each element.
        validate_args: check that all inputs are finite and that ``scale`` is positive.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, none or several scales, an
            ``event_dims`` that the shapes do not have.

    Example:
        >>> x, loc = torch.zeros(4, 3), torch.zeros(10, 4, 3)
        >>> fastvi.ops.gaussian_log_prob(x, loc, scale=torch.ones(3)).shape
        torch.Size([10, 4])
    """
    op = "gaussian_log_prob"
    spread, kind = one_spread(op, scale, log_scale, log_var)
    check_location_scale(op, value, loc, spread, kind, event_dims, validate_args)
    if transforms_active():
        _gaussian_log_prob.check(value, loc, spread, kind, event_dims)
        return reference(value, loc, **{kind: spread}, event_dims=event_dims)
    return _gaussian_log_prob(value, loc, spread, kind, event_dims)
