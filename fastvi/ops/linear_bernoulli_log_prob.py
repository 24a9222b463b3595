"""A Linear and the Bernoulli log-density of its outputs as logits, in one op."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import linear

from fastvi._checks import check_finite
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._linear import check_linear
from fastvi.ops.bernoulli_log_prob import check_probabilities
from fastvi.ops.bernoulli_log_prob import reference as bernoulli_reference

_linear_bernoulli_log_prob = kernel("linear_bernoulli_log_prob")


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, value: Tensor) -> Tensor:
    """Compute :func:`linear_bernoulli_log_prob` in plain PyTorch, differentiable again."""
    return bernoulli_reference(value, linear(hidden, weight, bias))


@with_reference(reference)
def linear_bernoulli_log_prob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value: Tensor,
    *,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Bernoulli log-density under the logits of a Linear, which are never stored.

    .. math::
        \log p(x) = \sum_f x_f \ell_f - \log(1 + e^{\ell_f}), \qquad \ell = W h + b

    It joins the last layer of a decoder and its likelihood, and returns
    ``bernoulli_log_prob(value, linear(hidden, weight, bias))``. The logits, shape (K, \*batch, F),
    are the largest tensor of an importance-weighted autoencoder. Here blocks of rows go through one
    small buffer, and again in the backward pass. This costs one more matrix product, and needs no
    memory for the logits or their gradient.

    The gradients of ``weight`` and ``bias`` are added up in float32 at least, block by block in a
    fixed order. Under autocast ``hidden``, ``weight`` and ``bias`` are cast as for ``nn.Linear``.

    Args:
        hidden: :math:`h`, the input of the Linear, shape (K, \*batch, H).
        weight: :math:`W`, shape (F, H), as in ``nn.Linear``. The dtype of ``hidden``.
        bias: :math:`b`, shape (F,), or ``None``.
        value: :math:`x`, shape (\*batch, F) or any that broadcasts to it; the same for all
            samples. The dtype of ``hidden``, or float32.
        validate_args: check that all inputs are finite and that ``value`` lies in [0, 1].

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not fit, or different devices.

    Example:
        >>> hidden, layer = torch.randn(50, 4, 200), torch.nn.Linear(200, 784)
        >>> x = torch.ones(4, 784)
        >>> fastvi.ops.linear_bernoulli_log_prob(hidden, layer.weight, layer.bias, x).shape
        torch.Size([50, 4])
    """
    op = "linear_bernoulli_log_prob"
    check_linear(op, hidden, weight, bias, value)
    if validate_args:
        check_finite(op, hidden=hidden, weight=weight, bias=bias, value=value)
        check_probabilities(op, value)
    if transforms_active():
        _linear_bernoulli_log_prob.check(hidden, weight, bias, value)
        return reference(hidden, weight, bias, value)
    return _linear_bernoulli_log_prob(hidden, weight, bias, value)
