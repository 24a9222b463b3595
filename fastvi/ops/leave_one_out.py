"""The log-mean-exp of the other log-weights, for each sample, in O(K)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi._checks import check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference

_leave_one_out = kernel("leave_one_out")


def reference(log_w: Tensor) -> Tensor:
    """Compute :func:`leave_one_out` in plain PyTorch, differentiable any number of times."""
    if log_w.ndim < 1 or log_w.shape[0] < 2:
        raise ValueError(
            f"leave_one_out: expected log_w to have at least two samples, "
            f"got shape {tuple(log_w.shape)}"
        )
    if log_w.dtype in (torch.float16, torch.bfloat16):
        log_w = log_w.float()
    lowest = torch.finfo(log_w.dtype).min
    # The largest is kept apart: the sum without it must not be a difference.
    # (A NaN is never the largest: it stays among the others, and makes every sum NaN.)
    numbers = log_w.detach().nan_to_num(-math.inf, math.inf, -math.inf)
    values, index = numbers.max(0, keepdim=True)
    place = torch.arange(log_w.shape[0], device=log_w.device)
    top = place.view(-1, *[1] * (log_w.ndim - 1)) == index
    # The shift is finite, so that an impossible weight is exp(-inf) = 0, not exp(-inf + inf).
    m1 = values.clamp(min=lowest)
    others = log_w.masked_fill(top, -math.inf)
    m2 = others.detach().amax(0, keepdim=True).clamp(min=lowest)
    weights = torch.exp(others - m2)
    total = weights.sum(0, keepdim=True)
    decay = torch.exp(m2 - m1)
    largest = torch.exp(log_w.masked_fill(~top, -math.inf) - m1).sum(0, keepdim=True)
    sums = torch.where(top, total, largest + decay * (total - weights))
    shift = torch.where(top, m2, m1)
    # log 0 is -inf with a gradient of zero, so the argument is 1 where the result is not used.
    impossible = sums == 0
    sums = torch.where(impossible, 1.0, sums)
    logs = shift + torch.log(sums / (log_w.shape[0] - 1))
    logs = torch.where(impossible, -math.inf, logs)
    return torch.where(shift == math.inf, math.inf, logs)


@with_reference(reference)
def leave_one_out(log_w: Tensor) -> Tensor:
    r"""Compute, for each sample, the log-mean-exp of the other samples' log-weights.

    .. math::
        L_{K-1}^{(-k)} = \log \frac{1}{K - 1} \sum_{j \ne k} w_j

    It takes time and memory proportional to K, forward and backward. The sum without :math:`w_k` is
    never a difference that cancels: if one weight dominates, the others are summed by themselves.
    An impossible sample (``-inf``) adds nothing; if all the others are impossible the result is
    ``-inf``, and its gradient zero.

    Args:
        log_w: log-weights in nats, shape (K, \*batch), K at least 2.

    Returns:
        The bound without each sample in nats, shape (K, \*batch); float32, or float64 for float64.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: no dimension, or K < 2.

    Example:
        >>> log_w = torch.tensor([1.0, 3.0, 5.0]).log()
        >>> fastvi.ops.leave_one_out(log_w).exp().round(decimals=4)
        tensor([4., 3., 2.])

    References:
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        | https://arxiv.org/abs/1602.06725
        | Debiasing Evidence Approximations (Nowozin, 2018),
        | https://openreview.net/forum?id=HyZoi-WRb
    """
    check_tensor("leave_one_out", "log_w", log_w)
    if transforms_active():
        _leave_one_out.check(log_w)
        return reference(log_w)
    return _leave_one_out(log_w)[0]
