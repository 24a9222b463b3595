"""The model and the images that both measurements share."""

from __future__ import annotations

import torch
from torch import Tensor

import fastvi
from fastvi.app.images import Images, binarise, load_images
from fastvi.app.networks import build_vae
from fastvi.app.settings import Settings

SETTINGS = Settings()
NETWORKS = "64-200-200-16 and back"


def images() -> Images:
    return load_images("digits")


def new_vae(found: Images, seed: int = 0) -> tuple[fastvi.VAE, torch.optim.Optimizer]:
    """The model of ``fastvi train`` and its optimizer, the same for the same seed."""
    torch.manual_seed(seed)
    vae = build_vae(found.train.shape[1], SETTINGS, found.train.mean(0))
    return vae, torch.optim.Adam(vae.parameters(), lr=SETTINGS.learning_rate, fused=True)


def loss_of(num_samples: int, few: int | str | None) -> fastvi.IWLBLoss:
    return fastvi.IWLBLoss(num_samples, estimator="iwae", backward_samples=few)


def some(found: Images, count: int) -> Tensor:
    """Draw images, and their pixels as 0 or 1."""
    return binarise(found.train[torch.randint(len(found.train), (count,))])
