"""The Poisson distribution on its op."""

from __future__ import annotations

from torch import Tensor, distributions
from torch.distributions.utils import broadcast_all

from fastvi import ops
from fastvi.distributions._fused import (
    as_count,
    can_evaluate,
    checked,
    evaluate,
    evaluate_plainly,
    in_dtype,
    initialise,
    is_count,
    is_nonnegative,
    log_prob,
    validate,
)


class Poisson(distributions.Poisson):
    r"""A Poisson distribution: ``torch.distributions.Poisson`` with a fused log-density.

    .. math::
        \log p(x) = x \log \lambda - \lambda - \log \Gamma(x + 1)

    Args:
        rate: :math:`\lambda \ge 0`, a tensor or number.
        validate_args: whether parameters and values are checked; None for torch's setting.

    Raises:
        ValueError: the rate or a value out of its constraint, as torch says it.

    Example:
        >>> p = fastvi.distributions.Poisson(torch.ones(3))
        >>> p.log_prob(torch.ones(5, 3))[0, 0].item()
        -1.0
    """

    def __init__(self, rate: Tensor | float, validate_args: bool | None = None) -> None:
        if not isinstance(rate, Tensor):
            (rate,) = broadcast_all(rate)
        self.rate = rate
        is_checked = checked(self, Poisson, rate, validate_args, lambda: is_nonnegative(rate))
        initialise(self, rate.shape, validate_args, is_checked)

    def expand(self, batch_shape, _instance=None):  # noqa: ANN001, ANN201
        return super().expand(batch_shape, self._get_checked_instance(Poisson, _instance))

    log_prob = log_prob

    def _event_log_prob(self, value: Tensor, event_dims: int) -> Tensor:
        value = as_count(value, self.rate)
        op = ops.poisson_log_prob
        if not can_evaluate(value, self.rate):
            return evaluate_plainly(self, op, value, self.rate, event_dims=event_dims)
        if self._validate_args:
            validate(self, Poisson, value, is_count)
        return in_dtype(evaluate(op, value, self.rate, event_dims=event_dims), value)
