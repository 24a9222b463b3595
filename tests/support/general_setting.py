"""A linear decoder with Gaussian noise, and every loss of reparameterised latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fastvi
from fastvi import objectives

FEATURES, LATENT, NOISE = 3, 2, 0.6
DOUBLE = {"dtype": torch.float64}


def data(count: int = 6) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(4), **DOUBLE)


def decoder() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(LATENT, FEATURES, **DOUBLE)


def gaussian() -> fastvi.GaussianLikelihood:
    return fastvi.GaussianLikelihood(torch.tensor(NOISE, **DOUBLE))


LOSSES = {
    "dreg": fastvi.IWLBLoss(4),
    "stl": fastvi.IWLBLoss(4, "stl"),
    "iwae": fastvi.IWLBLoss(4, "iwae"),
    "renyi": fastvi.IWLBLoss(4, alpha=0.5),
    "elbo": fastvi.ELBOLoss(4),
    "elbo stl": fastvi.ELBOLoss(4, kl="monte_carlo", estimator="stl"),
    "miwae": fastvi.MIWAELoss(2, 2),
    "piwae": fastvi.PIWAELoss(2, 2),
    "ciwae": fastvi.CIWAELoss(4, 0.3),
    "jackknife": fastvi.JackknifeLoss(4),
    "IWLB": objectives.IWLB(4),
    "ELBO": objectives.ELBO(4),
}
