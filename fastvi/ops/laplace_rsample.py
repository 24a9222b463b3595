"""Reparameterised Laplace samples with their log-density, in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi._checks import check_event_dims, check_finite, check_positive, check_tensor
from fastvi.ops._arguments import check_draw, log_scale_of
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._log_density import one_of
from fastvi.ops._noise import standard_laplace
from fastvi.ops.new_key import new_key

_laplace_rsample = kernel("laplace_rsample")


def reference(
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    num_samples: int | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    event_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`laplace_rsample` in plain PyTorch, differentiable any number of times."""
    op = "laplace_rsample"
    spread, kind = one_of(op, "scale", scale, log_scale)
    num_samples, _ = check_draw(op, num_samples, sample_offset, sample_index, key)
    if key is None:
        key = new_key(loc.device)
    dtype = loc.dtype
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    loc, log_b = torch.broadcast_tensors(loc.to(acc), log_scale_of(spread.to(acc), kind))
    batch, features = loc.shape[:-1], loc.shape[-1]
    data = math.prod(batch)
    eps = standard_laplace(key, num_samples, data, features, sample_offset, sample_index)
    eps = eps.to(acc).reshape(num_samples, *loc.shape)
    b = spread.to(acc).expand_as(loc) if kind == "scale" else log_b.exp()
    # (z - loc) / b is eps: no gradient reaches log q through z.
    log_q = -eps.abs() - log_b - math.log(2.0)
    return (loc + b * eps).to(dtype), log_q.sum(-1) if event_dims else log_q


@with_reference(reference)
def laplace_rsample(
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    num_samples: int | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    event_dims: int = 1,
    validate_args: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Draw reparameterised samples of independent Laplace variables, with log q in the same pass.

    .. math::
        z_k = \mu + b \epsilon_k, \qquad
        \log q(z_k) = \sum_d -\frac{|z_{kd} - \mu_d|}{b_d} - \log 2 b_d

    The noise is a function of the key and of the place (k, b, d), exact in both tails. The
    backward pass computes it again instead of storing it.

    Args:
        loc: mean :math:`\mu`, shape (\*batch, D). float32, float64, bfloat16 or float16.
        scale: :math:`b > 0`. Exactly one of the two; broadcast with ``loc``.
        log_scale: :math:`\log b`.
        num_samples: K; optional with a ``sample_index``.
        key: from :func:`new_key`; ``None`` draws one.
        sample_offset: the number of the first sample, as in :func:`gaussian_rsample`.
        sample_index: the numbers of the samples, as in :func:`gaussian_rsample`.
        event_dims: 1 sums the log-densities over D; 0 gives the one of each element.
        validate_args: check that all inputs are finite and that ``scale`` is positive.

    Returns:
        z of shape (K, \*batch, D) in the dtype of ``loc``, and log q in nats, shape (K, \*batch),
        or (K, \*batch, D), float32 (float64 for float64).

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices, ``num_samples`` < 1, none or
            both of the two scales, ``event_dims`` neither 0 nor 1.

    Example:
        >>> z, log_q = fastvi.ops.laplace_rsample(
        ...     torch.zeros(8, 2), scale=torch.ones(8, 2), num_samples=16
        ... )
        >>> z.shape, log_q.shape
        (torch.Size([16, 8, 2]), torch.Size([16, 8]))
    """
    op = "laplace_rsample"
    check_tensor(op, "loc", loc)
    spread, kind = one_of(op, "scale", scale, log_scale)
    num_samples, sample_offset = check_draw(
        op, num_samples, sample_offset, sample_index, key, validate_args
    )
    check_event_dims(op, event_dims)
    if validate_args:
        check_finite(op, loc=loc)
        check_positive(op, kind, spread)
    if key is None:
        key = new_key(loc.device)
    arguments = loc, spread, kind, key, num_samples, sample_offset, event_dims, sample_index
    if transforms_active():
        _laplace_rsample.check(*arguments)
        return reference(
            loc,
            scale=scale,
            log_scale=log_scale,
            num_samples=num_samples,
            key=key,
            sample_offset=sample_offset,
            sample_index=sample_index,
            event_dims=event_dims,
        )
    return _laplace_rsample(*arguments)
