"""The negative binomial log-density with extra zeros, summed over the event."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastvi._checks import check_event_dims, check_finite, check_positive, check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._event import sum_event
from fastvi.ops._log_density import check_count, one_of, wide
from fastvi.ops.negative_binomial_log_prob import elementwise

_zero_inflated_negative_binomial_log_prob = kernel("zero_inflated_negative_binomial_log_prob")


def reference(
    value: Tensor,
    mean: Tensor,
    dispersion: Tensor | None = None,
    gate_logits: Tensor | None = None,
    *,
    log_dispersion: Tensor | None = None,
    event_dims: int = 1,
) -> Tensor:
    """Compute :func:`zero_inflated_negative_binomial_log_prob` in plain PyTorch."""
    op = "zero_inflated_negative_binomial_log_prob"
    given, kind = one_of(op, "dispersion", dispersion, log_dispersion)
    check_tensor(op, "gate_logits", gate_logits)
    assert gate_logits is not None
    value, mean, given, gate_logits = wide(value, mean, given, gate_logits)
    dtype = mean.dtype
    value, mean, given, gate = (x.double() for x in (value, mean, given, gate_logits))
    none = value == 0
    # A count of zero is an outcome of its own, and gets no gradient.
    count = elementwise(torch.where(none, 0.0, value), mean, given, kind == "log_dispersion")
    count = count + logsigmoid(-gate)
    # For other counts a finite number replaces it: the sum of two -inf would have no slope.
    either = torch.logaddexp(logsigmoid(gate), torch.where(none, count, 0.0))
    return sum_event(torch.where(none, either, count).to(dtype), event_dims)


@with_reference(reference)
def zero_inflated_negative_binomial_log_prob(
    value: Tensor,
    mean: Tensor,
    dispersion: Tensor | None = None,
    gate_logits: Tensor | None = None,
    *,
    log_dispersion: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the zero-inflated negative binomial log-density and sum it over the event.

    .. math::
        p(x) = \pi\, 1[x = 0] + (1 - \pi)\, \mathrm{NB}(x; \mu, \theta), \quad
        \pi = \frac{1}{1 + e^{-g}}

    in each feature: with probability :math:`\pi` the count is zero whatever the mean. The negative
    binomial is the density of :func:`negative_binomial_log_prob`. A ``value`` of zero has a
    gradient of zero.

    Args:
        value: counts :math:`x`, shape (\*batch, F), as floating-point numbers. The dtype of
            ``mean``, or float32.
        mean: :math:`\mu > 0`, shape (K, \*batch, F) or any that broadcasts.
        dispersion: inverse dispersion :math:`\theta > 0`; exactly one of the two.
        gate_logits: :math:`g`, the logits of the extra zeros.
        log_dispersion: :math:`\log \theta`.
        event_dims: the number of trailing dimensions to sum; 0 gives the density of each element.
        validate_args: check that all inputs are finite, that no ``value`` is negative, and that
            ``mean`` and ``dispersion`` are positive.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, not exactly one dispersion, an
            ``event_dims`` that the shapes do not have.

    Example:
        >>> counts, mean = torch.zeros(4, 2000), torch.ones(10, 4, 2000)
        >>> theta, gate = torch.ones(2000), torch.zeros(10, 4, 2000)
        >>> fastvi.ops.zero_inflated_negative_binomial_log_prob(counts, mean, theta, gate).shape
        torch.Size([10, 4])

    References:
        | Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        | https://doi.org/10.1038/s41592-018-0229-2
    """
    op = "zero_inflated_negative_binomial_log_prob"
    check_tensor(op, "value", value)
    check_tensor(op, "mean", mean)
    given, kind = one_of(op, "dispersion", dispersion, log_dispersion)
    check_tensor(op, "gate_logits", gate_logits)
    check_event_dims(op, event_dims)
    if validate_args:
        check_count(op, value)
        check_positive(op, "mean", mean)
        check_positive(op, kind, given)
        check_finite(op, gate_logits=gate_logits)
    if transforms_active():
        _zero_inflated_negative_binomial_log_prob.check(
            value, mean, given, gate_logits, kind, event_dims
        )
        named = {kind: given, "gate_logits": gate_logits}
        return reference(value, mean, **named, event_dims=event_dims)
    return _zero_inflated_negative_binomial_log_prob(
        value, mean, given, gate_logits, kind, event_dims
    )
