"""The noise in plain PyTorch: the reference of the kernels, which runs under torch.func.

It is Philox4x32-10 with the counter layout of ``docs/design.md``: the noise of sample k, example b
and feature d depends on the key and on the place ``(sample_offset + k) * B + b, d``, and on nothing
else. A ``sample_index``, int64 of K * B numbers, replaces k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Return Philox4x32-10 of four counter words, each a 32-bit word in an int64 tensor."""
    key = [seed & _MASK, (seed >> 32) & _MASK]
    c0, c1, c2, c3 = counter
    for _ in range(10):
        # The product of two 32-bit words wraps in int64, but its 64 bits are right.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ key[0],
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ key[1],
            p0 & _MASK,
        )
        key = [(word + step) & _MASK for word, step in zip(key, _KEY_STEPS, strict=True)]
    return [c0, c1, c2, c3]


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float64 standard normals from two 32-bit words."""
    radius = torch.sqrt(-2.0 * torch.log((a.double() + 0.5) * 2.0**-32))
    angle = b.double() * (2.0 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def standard_normal(
    key: Tensor,
    num_samples: int,
    batch: int,
    features: int,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
) -> Tensor:
    """Draw the float64 noise of a key, shape (K, B, D)."""
    words = _words(key, num_samples, batch, features, sample_offset, sample_index)
    normals = torch.stack([*box_muller(*words[:2]), *box_muller(*words[2:])], dim=-1)
    return normals.reshape(num_samples, batch, 4 * words[0].shape[1])[..., :features]


def standard_logistic(
    key: Tensor,
    num_samples: int,
    batch: int,
    features: int,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
) -> Tensor:
    """Draw float64 logistic noise, log((1 - u) / u), of a key, shape (K, B, D)."""
    words = _words(key, num_samples, batch, features, sample_offset, sample_index)
    u = (torch.stack(words, dim=-1).double() + 0.5) * 2.0**-32
    noise = torch.log1p(-u) - torch.log(u)
    return noise.reshape(num_samples, batch, 4 * words[0].shape[1])[..., :features]


def standard_laplace(
    key: Tensor,
    num_samples: int,
    batch: int,
    features: int,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
) -> Tensor:
    """Draw float64 Laplace noise, log 2u for u below one half and -log 2(1 - u) above."""
    words = _words(key, num_samples, batch, features, sample_offset, sample_index)
    u = (torch.stack(words, dim=-1).double() + 0.5) * 2.0**-32
    depth = torch.log(2.0 * torch.minimum(u, 1.0 - u))
    noise = torch.where(u < 0.5, depth, -depth)
    return noise.reshape(num_samples, batch, 4 * words[0].shape[1])[..., :features]


def part_of(
    weight: Tensor,
    key: Tensor,
    num_samples: int,
    batch: int,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
) -> Tensor:
    """Draw floor(u weight / 2^64) for the first 64 bits u of each row of noise.

    ``weight`` is int64, below 2^62, of K * B elements. The product has 126 bits, and is
    computed in halves.
    """
    words = _words(key, num_samples, batch, 1, sample_offset, sample_index)
    high, low = (words[i].reshape(weight.shape) for i in (0, 1))
    weight_high, weight_low = weight >> 32, weight & _MASK
    middle, other = high * weight_low, low * weight_high
    carry = ((low * weight_low >> 32) & _MASK) + (middle & _MASK) + (other & _MASK)
    return high * weight_high + ((middle >> 32) & _MASK) + ((other >> 32) & _MASK) + (carry >> 32)


def _words(
    key: Tensor,
    num_samples: int,
    batch: int,
    features: int,
    sample_offset: int,
    sample_index: Tensor | None,
) -> list[Tensor]:
    """Return the four words of every block of features, each of shape (K * B, blocks)."""
    seed, stream = key[0], key[1]
    device = key.device
    if sample_index is None:
        row = torch.arange(num_samples * batch, device=device)
    else:
        numbers = sample_index.reshape(num_samples, batch)
        row = (numbers * batch + torch.arange(batch, device=device)).flatten()
    row = row + sample_offset * batch
    block = torch.arange((features + 3) // 4, device=device)
    row, block = row[:, None], block[None, :]
    zero = torch.zeros_like(row * block)
    return philox(
        [block + zero, (stream & _MASK) + zero, (row & _MASK) + zero, ((row >> 32) & _MASK) + zero],
        seed,
    )
