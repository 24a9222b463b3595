"""A Linear and the Gaussian log-density around its outputs, in one op."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from fastvi._checks import check_finite, check_positive
from fastvi.ops._arguments import one_spread
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._linear import check_linear
from fastvi.ops.gaussian_log_prob import reference as gaussian_reference

_linear_gaussian_log_prob = kernel("linear_gaussian_log_prob")


def reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    log_var: Tensor | None = None,
) -> Tensor:
    """Compute :func:`linear_gaussian_log_prob` in plain PyTorch, differentiable again."""
    spread, kind = one_spread("linear_gaussian_log_prob", scale, log_scale, log_var)
    loc = linear(hidden, weight, bias)
    return gaussian_reference(value, loc, **{kind: spread}, event_dims=1)


@with_reference(reference)
def linear_gaussian_log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    log_var: Tensor | None = None,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Gaussian log-density around the outputs of a Linear, which are never stored.

    .. math::
        \log p(x) = \sum_f -\tfrac12 \left(\frac{x_f - \mu_f}{\sigma_f}\right)^2
                    - \log \sigma_f - \tfrac12 \log 2\pi, \qquad \mu = W h + b

    It returns ``gaussian_log_prob(value, linear(hidden, weight, bias), ...)`` in the memory of
    :func:`linear_bernoulli_log_prob`, whose text explains it.

    Args:
        hidden: :math:`h`, the input of the Linear, shape (K, \*batch, H).
        weight: :math:`W`, shape (F, H), as in ``nn.Linear``. The dtype of ``hidden``.
        bias: :math:`b`, shape (F,), or ``None``.
        value: :math:`x`, shape (\*batch, F) or any that broadcasts to it; the same for all
            samples. The dtype of ``hidden``, or float32.
        scale: standard deviation :math:`\sigma`, of any shape that broadcasts to (\*batch, F), in
            the dtype of ``hidden``; exactly one of the three.
        log_scale: :math:`\log \sigma`.
        log_var: :math:`\log \sigma^2`.
        validate_args: check that all inputs are finite and that ``scale`` is positive.

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not fit, different devices, none or several scales.

    Example:
        >>> hidden, layer, x = torch.randn(50, 4, 8), torch.nn.Linear(8, 3), torch.zeros(4, 3)
        >>> fastvi.ops.linear_gaussian_log_prob(
        ...     hidden, layer.weight, layer.bias, x, scale=torch.ones(())
        ... ).shape
        torch.Size([50, 4])
    """
    op = "linear_gaussian_log_prob"
    check_linear(op, hidden, weight, bias, value)
    spread, kind = one_spread(op, scale, log_scale, log_var)
    if validate_args:
        check_finite(op, hidden=hidden, weight=weight, bias=bias, value=value)
        check_positive(op, kind, spread)
    if transforms_active():
        _linear_gaussian_log_prob.check(hidden, weight, bias, value, spread, kind)
        return reference(hidden, weight, bias, value, **{kind: spread})
    return _linear_gaussian_log_prob(hidden, weight, bias, value, spread, kind)
