"""The log-probability of a class from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi._checks import check_tensor, holds
from fastvi.ops._call import kernel, transforms_active, with_reference

_categorical_log_prob = kernel("categorical_log_prob")


def reference(value: Tensor, logits: Tensor) -> Tensor:
    """Compute :func:`categorical_log_prob` in plain PyTorch, differentiable any number of times."""
    acc = torch.float64 if logits.dtype == torch.float64 else torch.float32
    normalised = torch.log_softmax(logits.to(acc), -1)
    shape = torch.broadcast_shapes(value.shape, logits.shape[:-1])
    classes = logits.shape[-1]
    chosen = value.long().expand(shape)[..., None]
    within = (chosen >= 0) & (chosen < classes)
    found = normalised.expand(*shape, classes).gather(-1, chosen.clamp(0, max(classes - 1, 0)))
    # A value that is no class has no probability.
    return torch.where(within, found, torch.nan)[..., 0]


@with_reference(reference)
def categorical_log_prob(value: Tensor, logits: Tensor, *, validate_args: bool = False) -> Tensor:
    r"""Evaluate the log-probability of a class from logits, in one pass over them.

    .. math::
        \log p(x) = \ell_x - \log \sum_c e^{\ell_c}

    Only the result is written: the normalised logits are not stored. A logit of :math:`-\infty` is
    a class of probability zero.

    Args:
        value: the class :math:`x`, from 0 to C − 1, shape (\*batch), of an integer dtype. It is
            broadcast over K, not copied.
        logits: :math:`\ell`, shape (K, \*batch, C) or any whose shape without C broadcasts.
        validate_args: check that ``value`` is a class and that ``logits`` hold no NaN and no
            :math:`+\infty`. Without it a ``value`` out of range has a log-probability of NaN.

    Returns:
        The log-probability in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: ``logits`` not floating-point, or ``value`` not integer.
        ValueError: shapes that do not broadcast, different devices, no classes.

    Example:
        >>> label, logits = torch.tensor([3, 1]), torch.zeros(50, 2, 10)
        >>> fastvi.ops.categorical_log_prob(label, logits).shape
        torch.Size([50, 2])
    """
    op = "categorical_log_prob"
    check_tensor(op, "value", value)
    check_tensor(op, "logits", logits)
    if validate_args:
        classes = logits.shape[-1] if logits.ndim else 0
        if value.numel() and not holds(op, (value >= 0) & (value < classes)):
            raise ValueError(
                f"{op}: expected value to lie in [0, {classes - 1}], got values from "
                f"{value.min().item()} to {value.max().item()}"
            )
        if not holds(op, logits < torch.inf):
            raise ValueError(f"{op}: expected logits to be below infinity, got NaN or infinity")
    if transforms_active():
        _categorical_log_prob.check(value, logits)
        return reference(value, logits)
    return _categorical_log_prob(value, logits)
