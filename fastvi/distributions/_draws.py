"""Draws from a key, which the place of each number decides: see ``docs/design.md``, The noise.

What is not normal is read off the rank of a normal: the event z < t has the probability of t.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastvi import ops


def normals(like: Tensor, num_samples: int, key: Tensor | None, sample_offset: int) -> Tensor:
    """Standard normals of shape (K, *batch), those of ``gaussian_rsample`` for this batch.

    In float32 at least: a half-precision normal has too few ranks.
    """
    acc = torch.float64 if like.dtype == torch.float64 else torch.float32
    zero = torch.zeros(like.shape, dtype=acc, device=like.device)
    rows = zero if zero.ndim else zero[None]
    z, _, _ = ops.gaussian_rsample(
        rows, log_scale=rows, num_samples=num_samples, key=key, sample_offset=sample_offset
    )
    return z.reshape(num_samples, *like.shape)


def uniforms(like: Tensor, num_samples: int, key: Tensor | None, sample_offset: int) -> Tensor:
    """Uniforms in [0, 1), float64, of shape (K, *batch)."""
    z = normals(like, num_samples, key, sample_offset).double()
    below_one = 1.0 - torch.finfo(z.dtype).eps / 2
    return (0.5 * torch.erfc(z * -math.sqrt(0.5))).clamp_max(below_one)


def unit_laplace(like: Tensor, num_samples: int, key: Tensor | None, sample_offset: int) -> Tensor:
    """Laplace numbers of location 0 and scale 1, shape (K, *batch); both tails are exact."""
    z = normals(like, num_samples, key, sample_offset)
    # Of rank u below one half, the quantile is log 2u; above, its mirror image.
    depth = torch.special.log_ndtr(-z.abs()) + math.log(2.0)
    return -depth.clamp_max(0.0) * z.sign()


def threshold(logits: Tensor) -> Tensor:
    """The number that a standard normal lies below with the probability of these log-odds."""
    logits = logits.detach()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # From the smaller of the two probabilities, which has all its digits.
    t = torch.special.ndtri(torch.sigmoid(-logits.abs()))
    return torch.where(logits < 0, t, -t)


def check_draws(name: str) -> None:
    """Outside torch.func, forward-mode derivatives cannot pass through the draws' kernels."""
    if forward_ad._current_level >= 0 and not torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"{name}: forward-mode derivatives need torch.func (jvp, jacfwd) around the call"
        )
