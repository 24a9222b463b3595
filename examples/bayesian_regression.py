"""Bayesian linear regression by SVI on mini-batches, beside the exact posterior and evidence.

Two of the three inputs are correlated, and so are their weights in the posterior: a mean field
cannot say so, a guide of low rank can.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

import fastvi

torch.manual_seed(0)
data, noise = 200, 0.5
inputs = torch.randn(data, 3)
inputs[:, 1] = 0.9 * inputs[:, 0] + math.sqrt(1 - 0.9**2) * inputs[:, 1]
y = inputs @ torch.tensor([1.0, -0.5, 0.3]) + noise * torch.randn(data)


def model(z: Mapping[str, Tensor], inputs: Tensor, y: Tensor) -> dict:
    """For one sample of the weights; vmap makes it K."""
    return {
        "weight": Normal(0.0, 1.0),
        "y": Normal(inputs @ z["weight"], noise).log_prob(y),
    }


covariance = torch.linalg.inv(torch.eye(3) + inputs.T @ inputs / noise**2)
exact = MultivariateNormal(covariance @ inputs.T @ y / noise**2, covariance)
marginal = MultivariateNormal(torch.zeros(data), inputs @ inputs.T + noise**2 * torch.eye(data))
evidence = marginal.log_prob(y).item()

print(f"{'':12} {'weights':>24} {'correlation':>12} {'bound':>10}")
for name, guide in {
    "mean field": fastvi.guides.MeanFieldGaussian({"weight": (3,)}),
    "low rank": fastvi.guides.LowRankGaussian({"weight": (3,)}, rank=1),
}.items():
    objective = fastvi.objectives.ELBO(16, estimator="stl")
    for learning_rate in (0.05, 0.005):
        optimizer = functools.partial(torch.optim.Adam, lr=learning_rate)
        svi = fastvi.SVI(model, guide, optimizer, objective, vectorize=True)
        svi.fit((inputs, y), epochs=40, batch_size=50)
    draws = guide.sample(10_000)["weight"]
    weights = " ".join(f"{w:7.3f}" for w in draws.mean(0).tolist())
    correlation = torch.corrcoef(draws.T)[0, 1].item()
    bound = svi.evaluate((inputs, y), num_samples=2_000).item()
    print(f"{name:12} {weights:>24} {correlation:12.3f} {bound:10.3f}")

weights = " ".join(f"{w:7.3f}" for w in exact.loc.tolist())
correlation = (covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt()).item()
print(f"{'exact':12} {weights:>24} {correlation:12.3f} {evidence:10.3f}")
