"""Draws by a key or a generator, of code that can use only torch's own generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch's generator inside this context; without a seed, leave it as it is."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def seed_from(generator: torch.Generator | None) -> int | None:
    """Return a seed drawn from a generator, or None for torch's own."""
    if generator is None:
        return None
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    return int(drawn.item())


def seed_of(key: Tensor | None, sample_offset: int) -> int | None:
    """Return a seed for the samples of a key from this number on, or None without a key."""
    if key is None:
        return None
    seed, stream = key.tolist()
    mixed = seed
    for part in (stream, sample_offset):
        # Keys that differ in one number give unrelated seeds.
        mixed = (mixed * _GOLDEN + part + 1) % 2**64
        mixed ^= mixed >> 29
    return mixed % 2**63
