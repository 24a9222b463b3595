"""Samples of classes from a key, with their log-probabilities, in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi._checks import check_tensor
from fastvi.ops._arguments import check_draw
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._noise import part_of
from fastvi.ops.categorical_log_prob import reference as log_prob_reference
from fastvi.ops.new_key import new_key

_categorical_sample = kernel("categorical_sample")


def reference(
    logits: Tensor,
    num_samples: int | None = None,
    *,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`categorical_sample` in plain PyTorch, differentiable any number of times."""
    if num_samples is not None:
        logits = logits.expand(num_samples, *logits.shape)
    if key is None:
        key = new_key(logits.device)
    samples, *batch, classes = logits.shape
    acc = torch.float64 if logits.dtype == torch.float64 else torch.float32
    fixed = logits.detach().to(acc)
    share = torch.exp(fixed - fixed.amax(-1, keepdim=True)).nan_to_num(0.0)
    # Whole numbers, whose sums are exact and below 2^62.
    up_to = (share.double() * 2.0 ** (61 - (classes - 1).bit_length())).long().cumsum(-1)
    part = part_of(up_to[..., -1], key, samples, math.prod(batch), sample_offset, sample_index)
    value = (up_to <= part[..., None]).sum(-1).clamp_max(classes - 1)
    return value, log_prob_reference(value, logits)


@with_reference(reference)
def categorical_sample(
    logits: Tensor,
    num_samples: int | None = None,
    *,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    validate_args: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Draw classes from logits, with the log-probability of each, in one pass.

    .. math::
        x_k = \min \{ x : \sum_{c \le x} p_c > u_k \}, \qquad p = \mathrm{softmax}(\ell), \qquad
        \log q(x_k) = \ell_{x_k} - \log \sum_c e^{\ell_c}

    The uniform u is a function of the key and of the place (k, b). A logit of :math:`-\infty` is a
    class that is never drawn. No gradient passes through the samples; the gradient of
    the log-probabilities is :math:`1[c = x] - p_c`.

    Args:
        logits: :math:`\ell`, shape (\*batch, C); or, for logits that differ from sample to sample,
            (K, \*batch, C) and no ``num_samples``. float32, float64, bfloat16 or float16.
        num_samples: K; ``None`` if the first dimension of ``logits`` is K.
        key: from :func:`new_key`; ``None`` draws one.
        sample_offset: the number of the first sample, as in :func:`gaussian_rsample`.
        sample_index: the numbers of the samples, as in :func:`gaussian_rsample`.
        validate_args: check that each row has a possible class, and holds no NaN and no
            :math:`+\infty`. Without it such a row has some class, with a log-probability of NaN.

    Returns:
        The classes, int64 from 0 to C − 1, and their log-probabilities in nats, float32 (float64
        for float64), each of shape (K, \*batch).

    Raises:
        TypeError: not floating-point.
        ValueError: ``num_samples`` < 1, no classes, no dimension for the samples, a key on another
            device.

    Example:
        >>> x, log_q = fastvi.ops.categorical_sample(torch.zeros(8, 10), 16)
        >>> x.shape, round(log_q[0, 0].exp().item(), 3)
        (torch.Size([16, 8]), 0.1)
    """
    op = "categorical_sample"
    check_tensor(op, "logits", logits)
    num_samples, sample_offset = check_draw(
        op, num_samples, sample_offset, sample_index, key, validate_args, own_rows=True
    )
    if validate_args and logits.numel() and not bool(logits.amax(-1).isfinite().all()):
        raise ValueError(
            f"{op}: expected logits to have a finite largest one in each row, got NaN or infinity"
        )
    if key is None:
        key = new_key(logits.device)
    arguments = logits, key, num_samples, sample_offset, sample_index
    if transforms_active():
        _categorical_sample.check(*arguments)
        return reference(
            logits, num_samples, key=key, sample_offset=sample_offset, sample_index=sample_index
        )
    log_prob, value = _categorical_sample(*arguments)
    return value, log_prob
