"""A Linear and the Poisson log-density of its outputs as log-rates, in one op."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from fastvi._checks import check_finite
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._linear import check_linear
from fastvi.ops._log_density import check_count
from fastvi.ops.poisson_log_prob import reference as poisson_reference

_linear_poisson_log_prob = kernel("linear_poisson_log_prob")


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, value: Tensor) -> Tensor:
    """Compute :func:`linear_poisson_log_prob` in plain PyTorch, differentiable again."""
    return poisson_reference(value, log_rate=linear(hidden, weight, bias))


@with_reference(reference)
def linear_poisson_log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    *,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Poisson log-density under the log-rates of a Linear, which are never stored.

    .. math::
        \log p(x) = \sum_f x_f \eta_f - e^{\eta_f} - \log \Gamma(x_f + 1), \qquad \eta = W h + b

    It returns ``poisson_log_prob(value, log_rate=linear(hidden, weight, bias))`` in the memory of
    :func:`linear_bernoulli_log_prob`, whose text explains it.

    Args:
        hidden: :math:`h`, the input of the Linear, shape (K, \*batch, H).
        weight: :math:`W`, shape (F, H), as in ``nn.Linear``. The dtype of ``hidden``.
        bias: :math:`b`, shape (F,), or ``None``.
        value: counts :math:`x`, shape (\*batch, F) or any that broadcasts to it; the same for all
            samples. The dtype of ``hidden``, or float32.
        validate_args: check that all inputs are finite and that no ``value`` is negative.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not fit, or different devices.

    Example:
        >>> hidden, layer, x = torch.zeros(50, 4, 8), torch.nn.Linear(8, 3), torch.ones(4, 3)
        >>> fastvi.ops.linear_poisson_log_prob(hidden, layer.weight, None, x)[0, 0].item()
        -3.0
    """
    op = "linear_poisson_log_prob"
    check_linear(op, hidden, weight, bias, value)
    if validate_args:
        check_finite(op, hidden=hidden, weight=weight, bias=bias)
        check_count(op, value)
    if transforms_active():
        _linear_poisson_log_prob.check(hidden, weight, bias, value)
        return reference(hidden, weight, bias, value)
    return _linear_poisson_log_prob(hidden, weight, bias, value)
