"""Draws from a key, which the place of each number decides: see ``docs/design.md``, The noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi import ops


def normals(like: Tensor, num_samples: int, key: Tensor | None, sample_offset: int) -> Tensor:
    """Standard normals of shape (K, *batch), those of ``gaussian_rsample`` for this batch."""
    zero = torch.zeros_like(like, requires_grad=False).detach()
    rows = zero if zero.ndim else zero[None]
    z, _, _ = ops.gaussian_rsample(
        rows,
        log_scale=rows,
        num_samples=num_samples,
        key=key,
        sample_offset=sample_offset,
    )
    return z.reshape(num_samples, *like.shape)


def uniforms(like: Tensor, num_samples: int, key: Tensor | None, sample_offset: int) -> Tensor:
    """Uniforms in [0, 1), shape (K, *batch): the ranks of the normals of the key."""
    z = normals(like, num_samples, key, sample_offset)
    z = z if z.dtype == torch.float64 else z.float()
    below_one = 1.0 - torch.finfo(z.dtype).eps / 2
    return (0.5 * torch.erfc(z * -math.sqrt(0.5))).clamp_max(below_one)
