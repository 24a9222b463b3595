"""A Bayesian neural network by variational inference, beside a long Hamiltonian Monte Carlo run.

The weights of a network have many equivalent modes, so what is compared is what it predicts: the
mean and the spread of the function, where there are data, and where there are none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Normal

import fastvi

torch.manual_seed(0)
HIDDEN, NOISE = 4, 0.4
SHAPES = {"w1": (HIDDEN,), "b1": (HIDDEN,), "w2": (HIDDEN,), "b2": ()}
x = torch.cat([torch.linspace(-2.0, -0.7, 15), torch.linspace(0.5, 2.0, 15)])
y = torch.sin(2.0 * x) + NOISE * torch.randn(30)


def function(z: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The networks' outputs at x, [K, points]."""
    hidden = torch.tanh(x[:, None] * z["w1"][:, None] + z["b1"][:, None])
    return (hidden * z["w2"][:, None]).sum(-1) / math.sqrt(HIDDEN) * 2 + z["b2"][:, None]


def model(z: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict:
    prior = {name: Normal(0.0, 1.5 if name == "w1" else 1.0) for name in SHAPES}
    return prior | {"y": Normal(function(z, x), NOISE).log_prob(y)}


def unnormalised(u: Tensor, guide: fastvi.guides.MeanFieldGaussian) -> Tensor:
    """log p(weights, y) of each row of weights."""
    z = guide.constrain(u)
    priors = model(z, x, y)
    log_p = priors.pop("y").sum(1)
    for name, prior in priors.items():
        log_p = log_p + prior.log_prob(z[name]).reshape(len(u), -1).sum(1)
    return log_p


def hamiltonian(
    guide: fastvi.guides.MeanFieldGaussian, start: Tensor, steps: int, step_size: float, leaps: int
) -> tuple[Tensor, float]:
    """Chains side by side, all leaping together, with Metropolis' correction."""

    def slope(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        log_p = unnormalised(u, guide)
        return log_p.detach(), torch.autograd.grad(log_p.sum(), u)[0]

    u, kept, accepted = start, [], 0.0
    log_p, grad = slope(u)
    for step in range(steps):
        momentum = torch.randn_like(u)
        energy = log_p - 0.5 * momentum.square().sum(1)
        new, new_grad, new_log_p = u, grad, log_p
        size = step_size * (0.8 + 0.4 * torch.rand(()))
        for _ in range(leaps):
            momentum = momentum + 0.5 * size * new_grad
            new = new + size * momentum
            new_log_p, new_grad = slope(new)
            momentum = momentum + 0.5 * size * new_grad
        new_energy = new_log_p - 0.5 * momentum.square().sum(1)
        take = torch.rand(len(u)).log() < new_energy - energy
        u = torch.where(take[:, None], new, u)
        log_p = torch.where(take, new_log_p, log_p)
        grad = torch.where(take[:, None], new_grad, grad)
        accepted += take.float().mean().item() / steps
        if step >= steps // 3:
            kept.append(u)
    return torch.stack(kept), accepted


seen, gap = torch.linspace(-1.8, 1.8, 19), torch.linspace(-0.4, 0.2, 4)
seen = seen[(seen < -0.7) | (seen > 0.5)]
guides = {
    "mean field": fastvi.guides.MeanFieldGaussian(SHAPES),
    "low rank": fastvi.guides.LowRankGaussian(SHAPES, rank=4),
}
chains, accepted = hamiltonian(
    guides["mean field"], torch.randn(64, 3 * HIDDEN + 1), steps=400, step_size=0.05, leaps=15
)
long_run = guides["mean field"].constrain(chains.flatten(0, 1))
# Chains that agree: their means vary as little as the numbers in them say.
outputs = function(long_run, torch.cat([seen, gap])).reshape(*chains.shape[:2], -1)
between = outputs.mean(0).var(0) * len(chains)
within = outputs.var(0).mean(0)
r_hat = ((between / within - 1) / len(chains) + 1).sqrt().max().item()
print(f"Hamiltonian Monte Carlo: {accepted:.0%} accepted, R-hat at most {r_hat:.2f}")

print(f"{'':12} {'bound':>8}   spread where data are, in the gap   mean off, in spreads")
for name, guide in guides.items():
    torch.manual_seed(1)
    with torch.no_grad():
        guide.loc.normal_()
    for learning_rate in (0.03, 0.003):
        optimizer = functools.partial(torch.optim.Adam, lr=learning_rate)
        svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.ELBO(8, estimator="stl"))
        svi.fit((x, y), epochs=1000)
    draws = guide.sample(4_000)
    row = []
    for points in (seen, gap):
        true, got = function(long_run, points), function(draws, points)
        row.append((got.std(0) / true.std(0)).mean().item())
        row.append(((got.mean(0) - true.mean(0)).abs() / true.std(0)).mean().item())
    bound = svi.evaluate((x, y), num_samples=2_000).item()
    print(
        f"{name:12} {bound:8.2f}   {row[0]:8.2f} of the long run's, {row[2]:5.2f}"
        f"      {row[1]:6.2f}, {row[3]:.2f}"
    )
