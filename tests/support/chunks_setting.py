"""A small model with a learned prior, and every loss that takes chunks of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import fastvi

BATCH, LATENT, FEATURES = 4, 3, 6
DOUBLE = torch.float64


@dataclass
class Setting:
    """Two small networks, a learned prior, data and a key."""

    dtype: torch.dtype = DOUBLE
    key: Tensor = field(default_factory=lambda: torch.tensor([5, 7]))

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.encoder = nn.Linear(FEATURES, 2 * LATENT).to(self.dtype)
        self.decoder: nn.Module = nn.Sequential(
            nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, FEATURES)
        ).to(self.dtype)
        self.prior = tuple(nn.Parameter(0.3 * torch.randn(LATENT, dtype=self.dtype)) for _ in "ab")
        self.x = (torch.rand(BATCH, FEATURES) > 0.5).to(self.dtype)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.decoder.parameters(), *self.prior]

    def log_likelihood(self, z: Tensor) -> Tensor:
        return fastvi.ops.bernoulli_log_prob(self.x, self.decoder(z))

    def loss(self, criterion: Callable[..., Tensor], log_likelihood=None) -> Tensor:
        loc, log_var = self.encoder(self.x).chunk(2, -1)
        return criterion(
            loc, log_var, log_likelihood or self.log_likelihood, key=self.key, prior=self.prior
        )

    def run(self, criterion: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """The loss and its gradient."""
        loss = self.loss(criterion)
        grads = torch.autograd.grad(loss.sum(), self.parameters, allow_unused=True)
        return loss.detach(), *(g for g in grads if g is not None)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def iwlb(estimator: str, alpha: float = 0.0) -> Callable[..., nn.Module]:
    return lambda **options: fastvi.IWLBLoss(17, estimator, alpha=alpha, **options)


# By name: a loss of 17 or 18 samples that takes chunk_size.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    **{name: iwlb(name) for name in ("iwae", "stl", "dreg", "rws", "rws_dreg")},
    **{f"renyi {a} {e}": iwlb(e, a) for a in (0.5, 1.0, 2.0) for e in ("iwae", "stl", "dreg")},
    "elbo analytic": lambda **o: fastvi.ELBOLoss(17, "analytic", beta=1.7, **o),
    "elbo monte carlo": lambda **o: fastvi.ELBOLoss(17, "monte_carlo", beta=0.6, **o),
    "elbo stl": lambda **o: fastvi.ELBOLoss(17, "monte_carlo", estimator="stl", **o),
    "jackknife": lambda **o: fastvi.JackknifeLoss(17, "iwae", **o),
    "jackknife dreg": lambda **o: fastvi.JackknifeLoss(17, "dreg", **o),
    "miwae": lambda **o: fastvi.MIWAELoss(6, 3, estimator="iwae", **o),
    "miwae dreg": lambda **o: fastvi.MIWAELoss(6, 3, estimator="dreg", **o),
    "piwae dreg": lambda **o: fastvi.PIWAELoss(6, 3, estimator="dreg", **o),
    "ciwae dreg": lambda **o: fastvi.CIWAELoss(17, 0.3, estimator="dreg", **o),
}
