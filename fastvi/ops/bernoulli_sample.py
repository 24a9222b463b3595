"""Bernoulli samples from a key, with their log-probabilities, in one pass."""

from __future__ import annotations

import math

from torch import Tensor

from fastvi._checks import check_event_dims, check_finite, check_tensor
from fastvi.ops._arguments import check_draw
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._noise import standard_logistic
from fastvi.ops.bernoulli_log_prob import reference as log_prob_reference
from fastvi.ops.new_key import new_key

_bernoulli_sample = kernel("bernoulli_sample")


def reference(
    logits: Tensor,
    num_samples: int | None = None,
    *,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    event_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`bernoulli_sample` in plain PyTorch, differentiable any number of times."""
    if num_samples is not None:
        logits = logits.expand(num_samples, *logits.shape)
    if key is None:
        key = new_key(logits.device)
    samples, *batch, features = logits.shape
    data = math.prod(batch)
    noise = standard_logistic(key, samples, data, features, sample_offset, sample_index)
    value = (logits.detach() > noise.reshape(logits.shape)).to(logits.dtype)
    return value, log_prob_reference(value, logits, event_dims=event_dims)


@with_reference(reference)
def bernoulli_sample(
    logits: Tensor,
    num_samples: int | None = None,
    *,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Draw Bernoulli samples from logits, with the log-probability of each row, in one pass.

    .. math::
        z_{kd} = 1 \text{ where } \ell_d > \log \frac{1 - u_{kd}}{u_{kd}}, \qquad
        \log q(z_k) = \sum_d z_{kd} \ell_d - \log(1 + e^{\ell_d})

    The uniforms u are a function of the key and of the place (k, b, d). No gradient passes through
    the samples; the gradient of the log-probabilities is :math:`z - \sigma(\ell)`, the score that
    :func:`fastvi.objectives.vimco` and :func:`fastvi.objectives.reinforce` weigh.

    Args:
        logits: :math:`\ell`, shape (\*batch, D); or, if the samples have different logits, as in a
            layer above another one, (K, \*batch, D) and no ``num_samples``.
            float32, float64, bfloat16 or float16.
        num_samples: K; ``None`` if the first dimension of ``logits`` is K.
        key: from :func:`new_key`; ``None`` draws one.
        sample_offset: the number of the first sample, as in :func:`gaussian_rsample`.
        sample_index: the numbers of the samples, as in :func:`gaussian_rsample`.
        event_dims: 1 sums the log-probabilities over D; 0 gives the one of each element.
        validate_args: check that the logits are finite.

    Returns:
        The samples, 0 or 1, of shape (K, \*batch, D) in the dtype of ``logits``, and their
        log-probabilities in nats, shape (K, \*batch), or (K, \*batch, D), float32 (float64 for
        float64).

    Raises:
        TypeError: not floating-point.
        ValueError: ``num_samples`` < 1, no dimension for the features or the samples, a key on
            another device, ``event_dims`` neither 0 nor 1.

    Example:
        >>> z, log_q = fastvi.ops.bernoulli_sample(torch.zeros(8, 200), 16)
        >>> z.shape, log_q.shape
        (torch.Size([16, 8, 200]), torch.Size([16, 8]))

    References:
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        | https://arxiv.org/abs/1602.06725
    """
    op = "bernoulli_sample"
    check_tensor(op, "logits", logits)
    num_samples, sample_offset = check_draw(
        op, num_samples, sample_offset, sample_index, key, validate_args, own_rows=True
    )
    check_event_dims(op, event_dims)
    if validate_args:
        check_finite(op, logits=logits)
    if key is None:
        key = new_key(logits.device)
    arguments = logits, key, num_samples, sample_offset, event_dims, sample_index
    if transforms_active():
        _bernoulli_sample.check(*arguments)
        return reference(
            logits,
            num_samples,
            key=key,
            sample_offset=sample_offset,
            sample_index=sample_index,
            event_dims=event_dims,
        )
    return _bernoulli_sample(*arguments)
