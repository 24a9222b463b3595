"""The Poisson log-density, summed over the event."""

from __future__ import annotations

from torch import Tensor

from fastvi._checks import check_event_dims, check_positive, check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._count_twins import Poisson
from fastvi.ops._event import sum_event
from fastvi.ops._log_density import check_count, one_of, wide
from fastvi.ops._twin import evaluate

_poisson_log_prob = kernel("poisson_log_prob")


def reference(
    value: Tensor,
    rate: Tensor | None = None,
    *,
    log_rate: Tensor | None = None,
    event_dims: int = 1,
) -> Tensor:
    """Compute :func:`poisson_log_prob` in plain PyTorch, differentiable any number of times."""
    given, kind = one_of("poisson_log_prob", "rate", rate, log_rate)
    value, given = wide(value, given)
    return sum_event(evaluate(Poisson(kind == "log_rate"), value, given), event_dims)


@with_reference(reference)
def poisson_log_prob(
    value: Tensor,
    rate: Tensor | None = None,
    *,
    log_rate: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Poisson log-density and sum it over the event.

    .. math::
        \log p(x) = \sum_f x_f \log \lambda_f - \lambda_f - \log \Gamma(x_f + 1)

    A count of zero under a rate of zero is certain: its log-density is 0.

    Args:
        value: counts :math:`x`, shape (\*batch, F), as floating-point numbers. The dtype of the
            rate, or float32.
        rate: :math:`\lambda \ge 0`, shape (K, \*batch, F) or any that broadcasts; exactly one of
            the two.
        log_rate: :math:`\log \lambda`, the better choice for the output of a network: no rate
            overflows or becomes zero.
        event_dims: the number of trailing dimensions to sum; 0 gives the density of each element.
        validate_args: check that all inputs are finite, that no ``value`` is negative, and that
            ``rate`` is positive.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, not exactly one rate, an
            ``event_dims`` that the shapes do not have.

    Example:
        >>> counts, log_rate = torch.ones(4, 3), torch.zeros(10, 4, 3)
        >>> fastvi.ops.poisson_log_prob(counts, log_rate=log_rate)[0, 0].item()
        -3.0
    """
    op = "poisson_log_prob"
    check_tensor(op, "value", value)
    given, kind = one_of(op, "rate", rate, log_rate)
    check_event_dims(op, event_dims)
    if validate_args:
        check_count(op, value)
        check_positive(op, kind, given)
    if transforms_active():
        _poisson_log_prob.check(value, given, kind, event_dims)
        return reference(value, **{kind: given}, event_dims=event_dims)
    return _poisson_log_prob(value, given, kind, event_dims)
