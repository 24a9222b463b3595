"""A small VAE and data for it."""

from __future__ import annotations

import torch
from torch import nn

import fastvi

FEATURES, LATENT = 6, 3


def small_vae(**options) -> fastvi.VAE:
    torch.manual_seed(0)
    return fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES), **options)


def binary(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2)).round()
