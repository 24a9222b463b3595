"""The Bernoulli log-density from logits, summed over the event."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastvi._checks import check_event_dims, check_finite, check_tensor, holds
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._event import sum_event

_bernoulli_log_prob = kernel("bernoulli_log_prob")


def reference(value: Tensor, logits: Tensor, *, event_dims: int = 1) -> Tensor:
    """Compute :func:`bernoulli_log_prob` in plain PyTorch, differentiable any number of times."""
    acc = torch.float64 if logits.dtype == torch.float64 else torch.float32
    value, logits = value.to(acc), logits.to(acc)
    # torch's softplus drops e^-20 and less, an error of 2e-9 in float64.
    positive = logsigmoid(logits)
    negative = logsigmoid(-logits)
    # It starts from the likelier outcome, so that the derivative by the value is the logit itself,
    # and no difference of two logarithms.
    log_prob = torch.where(logits > 0, positive + (value - 1) * logits, negative + value * logits)
    return sum_event(log_prob, event_dims)


def check_probabilities(op: str, value: Tensor) -> None:
    if value.numel() and not holds(op, (value >= 0) & (value <= 1)):
        raise ValueError(
            f"{op}: expected value to lie in [0, 1], got values from {value.min().item()} "
            f"to {value.max().item()}"
        )


@with_reference(reference)
def bernoulli_log_prob(
    value: Tensor,
    logits: Tensor,
    *,
    event_dims: int = 1,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate the Bernoulli log-density from logits and sum it over the event.

    .. math::
        \log p(x) = \sum_f x_f \ell_f - \log(1 + e^{\ell_f})

    ``value`` may lie anywhere in [0, 1], as grey pixels do. It is broadcast over K, not copied.

    Args:
        value: :math:`x`, shape (\*batch, F). The dtype of ``logits``, or float32.
        logits: :math:`\ell`, shape (K, \*batch, F) or any that broadcasts.
        event_dims: the number of trailing dimensions to sum; 0 gives the density of each element.
        validate_args: check that all inputs are finite and that ``value`` lies in [0, 1].

    Returns:
        The log-density in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, an ``event_dims`` that the
            shapes do not have.

    Example:
        >>> x, logits = torch.ones(4, 784), torch.zeros(50, 4, 784)
        >>> fastvi.ops.bernoulli_log_prob(x, logits).shape
        torch.Size([50, 4])
    """
    op = "bernoulli_log_prob"
    check_tensor(op, "value", value)
    check_tensor(op, "logits", logits)
    check_event_dims(op, event_dims)
    if validate_args:
        check_finite(op, value=value, logits=logits)
        check_probabilities(op, value)
    if transforms_active():
        _bernoulli_log_prob.check(value, logits, event_dims)
        return reference(value, logits, event_dims=event_dims)
    return _bernoulli_log_prob(value, logits, event_dims)
