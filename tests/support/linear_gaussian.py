"""A latent-variable model with exact answers: x = W z + noise, with orthogonal columns in W.

The columns are orthogonal so that the posterior is diagonal, and a diagonal q can be exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fastvi

DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=pytest.mark.cuda)]


@dataclass(frozen=True)
class LinearGaussian:
    weight: Tensor  # [F, D], orthogonal columns
    noise: float  # standard deviation of the data given z
    prior: tuple[Tensor, Tensor]  # (loc, log_var), each [D]

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z): x [*batch, F], z [K, *batch, D] -> [K, *batch]."""
        error = (x - z @ self.weight.mT) / self.noise
        constant = math.log(self.noise) + 0.5 * math.log(2 * math.pi)
        return (-0.5 * error**2 - constant).sum(-1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x), [*batch], from the marginal covariance: nothing of the posterior is used."""
        loc, log_var = self.prior
        noise = self.noise**2 * torch.eye(len(self.weight), dtype=x.dtype, device=x.device)
        covariance = (self.weight * log_var.exp()) @ self.weight.mT + noise
        marginal = torch.distributions.MultivariateNormal(self.weight @ loc, covariance)
        return marginal.log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """loc and log_var of p(z | x), each [*batch, D]."""
        loc, log_var = self.prior
        precision = torch.exp(-log_var) + (self.weight**2).sum(0) / self.noise**2
        mean = (loc * torch.exp(-log_var) + x @ self.weight / self.noise**2) / precision
        return mean, -precision.log().expand_as(mean)

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """x [batch, F] from the model."""
        loc, log_var = (t.cpu() for t in self.prior)
        features, latent = self.weight.shape
        z = torch.randn(batch, latent, dtype=loc.dtype, generator=generator)
        z = loc + z * torch.exp(0.5 * log_var)
        noise = torch.randn(batch, features, dtype=loc.dtype, generator=generator)
        return (z @ self.weight.cpu().mT + self.noise * noise).to(self.weight.device)


def make_model(
    features: int = 5,
    latent: int = 3,
    noise: float = 0.5,
    standard_prior: bool = True,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LinearGaussian:
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(features, latent, dtype=torch.float64, generator=generator)
    columns = torch.linalg.qr(square).Q
    weight = columns * torch.linspace(0.5, 1.5, latent, dtype=torch.float64)
    loc = torch.zeros(latent, dtype=torch.float64)
    log_var = torch.zeros(latent, dtype=torch.float64)
    if not standard_prior:
        loc = torch.linspace(-0.5, 1.0, latent, dtype=torch.float64)
        log_var = torch.linspace(-0.7, 0.4, latent, dtype=torch.float64)
    where = {"dtype": dtype, "device": device}
    return LinearGaussian(weight.to(**where), noise, (loc.to(**where), log_var.to(**where)))


def chi_square(posterior: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> Tensor:
    """The relative variance of the weights, var(w) / p(x)^2, for diagonal Gaussians, [*batch].

    Finite only where q's variance is more than half the posterior's.
    """
    (loc, log_var), (q_loc, q_log_var) = posterior, q
    variance, q_variance = log_var.exp(), q_log_var.exp()
    rest = 2 * q_variance - variance
    factor = q_variance / (variance * rest).sqrt() * torch.exp((loc - q_loc) ** 2 / rest)
    return factor.prod(-1) - 1


def linear_vae(widen=0.0, shift=0.0, latent=2):
    """A VAE whose guide is the posterior, but for ``shift`` deviations and ``widen`` in log_var."""
    model = make_model(features=3, latent=latent)
    scale = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = scale

        def forward(self, x):
            loc, log_var = model.posterior(x)
            loc = loc + shift * torch.exp(0.5 * log_var) + self.scale
            return loc, log_var + widen + 0 * self.scale

    decoder = torch.nn.Linear(latent, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        decoder.weight.copy_(model.weight)
    likelihood = fastvi.GaussianLikelihood(scale=model.noise)
    vae = fastvi.VAE(Encoder(), decoder, likelihood=likelihood).double()
    return vae, model
