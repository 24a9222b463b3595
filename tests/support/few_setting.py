"""Every bound with few samples backward, on small models whose samples weigh differently."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from choices import mean_over_choices
from torch import Tensor, nn

import fastvi
from fastvi import objectives

DOUBLE = torch.float64
KEY = torch.tensor([5, 7])
K, FEATURES, LATENT = 6, 4, 2
Run = Callable[[], tuple[Tensor, ...]]

LOSSES: dict[str, Callable[..., Any]] = {
    **{
        name: functools.partial(fastvi.IWLBLoss, K, name)
        for name in ("iwae", "stl", "dreg", "rws", "rws_dreg")
    },
    "iwae, alpha 0.5": lambda **o: fastvi.IWLBLoss(K, "iwae", alpha=0.5, **o),
    "dreg, alpha 0.5": lambda **o: fastvi.IWLBLoss(K, "dreg", alpha=0.5, **o),
    "dreg, alpha -1": lambda **o: fastvi.IWLBLoss(K, "dreg", alpha=-1.0, **o),
    "miwae": lambda **o: fastvi.MIWAELoss(3, 2, **o),
    "piwae": lambda **o: fastvi.PIWAELoss(3, 2, **o),
    "ciwae": lambda **o: fastvi.CIWAELoss(K, 0.3, **o),
    "jackknife": lambda **o: fastvi.JackknifeLoss(K, **o),
    "jackknife, iwae": lambda **o: fastvi.JackknifeLoss(K, estimator="iwae", **o),
    "thermodynamic": lambda **o: fastvi.NamedBoundLoss("thermodynamic", K, **o),
}
OBJECTIVES: dict[str, Callable[..., Any]] = {
    **{
        name: functools.partial(objectives.IWLB, K, name)
        for name in ("iwae", "stl", "dreg", "rws", "rws_dreg")
    },
    "dreg, alpha 0.5": lambda **o: objectives.IWLB(K, "dreg", alpha=0.5, **o),
    "miwae": lambda **o: objectives.MIWAE(3, 2, **o),
    "piwae": lambda **o: objectives.PIWAE(3, 2, **o),
    "ciwae": lambda **o: objectives.CIWAE(K, 0.3, **o),
    "jackknife": lambda **o: objectives.Jackknife(K, **o),
    "thermodynamic": lambda **o: objectives.NamedBound("thermodynamic", K, **o),
}
DISCRETE: dict[str, Callable[..., Any]] = {
    "vimco": lambda **o: objectives.VIMCO(K, **o),
    "rws": lambda **o: objectives.IWLB(K, "rws", **o),
    "miwae": lambda **o: objectives.MIWAE(3, 2, estimator="iwae", **o),
    "ciwae": lambda **o: objectives.CIWAE(K, 0.3, estimator="iwae", **o),
}


def named(names):
    return pytest.mark.parametrize("name", names, ids=lambda name: name.replace(" ", "_"))


def some_data(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(count, FEATURES, generator=generator) > 0.5).to(DOUBLE)


def vae(scale: float = 2.0) -> fastvi.VAE:
    torch.manual_seed(1)
    prior = (nn.Parameter(torch.randn(LATENT)), nn.Parameter(torch.zeros(LATENT)))
    model = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES), prior=prior)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model.double()


def layered(first: str, second: str) -> fastvi.HierarchicalVAE:
    torch.manual_seed(1)
    twice = {name: 2 if name in ("gaussian", "laplace") else 1 for name in (first, second)}
    layers = [
        fastvi.StochasticLayer(
            first, LATENT, guide=nn.Linear(FEATURES, twice[first] * LATENT),
            model=nn.Linear(LATENT, twice[first] * LATENT),
        ),
        fastvi.StochasticLayer(second, LATENT, guide=nn.Linear(LATENT, twice[second] * LATENT)),
    ]  # fmt: skip
    model = fastvi.HierarchicalVAE(layers, nn.Linear(LATENT, FEATURES)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def gradient_of(model: nn.Module, loss: Tensor) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.detach(), *(g for g in found if g is not None)


def check_unbiased(monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[Tensor, ...]]) -> None:
    """Value and gradient, in the mean over all choices; no single choice is it."""
    whole = run()
    for few in (2, 3):
        mean, number = mean_over_choices(monkeypatch, lambda few=few: run(backward_samples=few))
        assert number > 1
        for found, expected in zip(mean, whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    value, *parts = run(backward_samples=2)
    torch.testing.assert_close(value, whole[0], rtol=1e-14, atol=1e-14)
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(parts, whole[1:], strict=True))
