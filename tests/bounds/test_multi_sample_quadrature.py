"""Gradients of the bound's relatives and of the wake phase, against Gauss-Hermite quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from quadrature import grid
from torch import Tensor
from torch.distributions import Normal

import fastvi
from fastvi import objectives

pytestmark = [pytest.mark.native, pytest.mark.slow]

X = torch.tensor(0.6, dtype=torch.float64)
NOISE = 0.9


class Model:
    """A number z with prior N(a, 1) and data N(b z, 0.81), under a guide that is off."""

    def __init__(self) -> None:
        self.guide = [torch.tensor(v).double().requires_grad_() for v in (0.4, -0.4)]
        self.model = [torch.tensor(v).double().requires_grad_() for v in (-0.3, 0.9)]

    def samples(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """z, and log q at parameters that are held."""
        loc, log_var = self.guide
        z = loc + (0.5 * log_var).exp() * eps
        return z, Normal(loc.detach(), (0.5 * log_var.detach()).exp()).log_prob(z)

    def log_q(self, z: Tensor) -> Tensor:
        loc, log_var = self.guide
        return Normal(loc, (0.5 * log_var).exp()).log_prob(z)

    def log_likelihood(self, z: Tensor) -> Tensor:
        return Normal(self.model[1] * z, NOISE).log_prob(X)

    def log_joint(self, z: Tensor) -> Tensor:
        return Normal(self.model[0], 1.0).log_prob(z) + self.log_likelihood(z)

    def posterior(self) -> tuple[float, float]:
        """Mean and variance."""
        a, b = (p.item() for p in self.model)
        precision = 1.0 + b**2 / NOISE**2
        return (a + b * X.item() / NOISE**2) / precision, 1.0 / precision


def groups(log_w: Tensor) -> Tensor:
    return objectives.miwae(log_w.unflatten(0, (2, 2)))


# The loss, how many samples it draws, nodes for each, and the bounds of the guide and the model.
Bound = Callable[[Tensor], Tensor]
RELATIVES: dict[str, tuple[Callable[[str], torch.nn.Module], int, int, Bound, Bound]] = {
    "jackknife": (
        lambda e: fastvi.JackknifeLoss(3, e), 3, 44, objectives.jackknife, objectives.jackknife,
    ),
    "miwae": (lambda e: fastvi.MIWAELoss(2, 2, estimator=e), 4, 22, groups, groups),
    "piwae": (lambda e: fastvi.PIWAELoss(2, 2, estimator=e), 4, 22, groups, objectives.iwlb),
    "ciwae": (
        lambda e: fastvi.CIWAELoss(2, 0.3, estimator=e), 2, 80,
        lambda w: objectives.ciwae(w, 0.3), lambda w: objectives.ciwae(w, 0.3),
    ),
}  # fmt: skip


def weighted(model: Model, loss: torch.nn.Module, eps: Tensor, weight: Tensor) -> list[Tensor]:
    """The estimator's mean: gradients of guide and model, with the weights of the loss."""
    z, held = model.samples(eps)
    log_w = (model.log_joint(z) - held).detach()
    _, for_model, for_path = loss.weigh(log_w)
    path = (weight * for_path * (model.log_joint(z) - held)).sum()
    joint = (weight * for_model * model.log_joint(z.detach())).sum()
    return [
        *torch.autograd.grad(path, model.guide, retain_graph=True),
        *torch.autograd.grad(joint, model.model),
    ]


def exact(model: Model, eps: Tensor, weight: Tensor, guide: Bound, whole: Bound) -> list[Tensor]:
    """Gradients of the mean of the bounds: plain autograd of an integral."""
    z, _ = model.samples(eps)
    log_w = model.log_joint(z) - model.log_q(z)
    of_guide, of_model = (weight * guide(log_w)).sum(), (weight * whole(log_w)).sum()
    return [
        *torch.autograd.grad(of_guide, model.guide, retain_graph=True),
        *torch.autograd.grad(of_model, model.model),
    ]


# Breaks when a relative's path has another weight than the one that takes the score's place.
@pytest.mark.parametrize("name", RELATIVES)
def test_dreg_is_unbiased(name: str):
    make, samples, points, guide, whole = RELATIVES[name]
    eps, weight = grid(points, samples)
    model = Model()
    expected = exact(model, eps, weight, guide, whole)
    ours = weighted(model, make("dreg"), eps, weight)
    tolerance = 1e-8 if samples < 4 else 1e-5
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance)
    # The control: the plain weights on the path alone are biased.
    biased = weighted(model, make("iwae"), eps, weight)
    assert max((a - b).abs().item() for a, b in zip(biased, expected, strict=True)) > 1e-3


# What is unbiased above must be what the loss does with the samples that it draws.
@pytest.mark.parametrize("name", RELATIVES)
@pytest.mark.parametrize("chunk_size", [None, 1], ids=["at once", "in chunks"])
def test_the_loss_has_these_weights(name: str, chunk_size: int | None):
    make, samples, *_ = RELATIVES[name]
    model, key = Model(), torch.tensor([3, 4])
    loss, parameters = make("dreg"), [*model.guide, *model.model]
    loss.chunk_size = chunk_size
    loc, log_var = (p.reshape(1, 1) for p in model.guide)
    prior = (model.model[0].reshape(1), torch.zeros(1, dtype=torch.float64))
    value = loss(loc, log_var, lambda z: model.log_likelihood(z[..., 0]), key=key, prior=prior)
    found = torch.autograd.grad(-value, parameters)
    z, _, _ = fastvi.ops.gaussian_rsample(loc, log_var=log_var, num_samples=samples, key=key)
    eps = ((z[..., 0] - loc[0]) / (0.5 * log_var[0]).exp()).detach()
    expected = weighted(model, loss, eps, torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(list(found), expected, rtol=1e-10, atol=1e-12)


# ---- the wake phase -----------------------------------------------------------------------------
def scores(model: Model, eps: Tensor) -> Tensor:
    """d log q(z) by loc and by log_var, written out, [2, K, ...]."""
    sigma = math.exp(0.5 * model.guide[1].item())
    return torch.stack([eps / sigma, 0.5 * (eps.square() - 1.0)])


@pytest.mark.parametrize("estimator", ["rws", "rws_dreg"])
def test_the_wake_phase_is_the_weighted_score(estimator: str):
    """The mean over two samples, of the objective, against the formula."""
    eps, weight = grid(80, 2)
    model = Model()
    z, held = model.samples(eps)
    p = (model.log_joint(z) - held).softmax(0).detach()
    expected = (weight * p * scores(model, eps)).sum((1, 2))
    latent = objectives.Latent("z", z, model.log_q(z))
    bound = objectives.IWLB(2, estimator).bound([latent], lambda z: model.log_joint(z["z"]))
    found = torch.autograd.grad((weight * bound).sum(), model.guide)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("estimator", ["rws", "rws_dreg"])
def test_the_wake_phase_goes_to_the_posterior(estimator: str):
    """d E_p(z|x) log q(z) in closed form; what a sum of 400 000 samples is off by is known."""
    samples, model = 400_000, Model()
    loc, log_var = (p.reshape(1, 1) for p in model.guide)
    prior = (model.model[0].detach().reshape(1), torch.zeros(1, dtype=torch.float64))
    key = torch.tensor([8, 9])
    loss = fastvi.iwlb_loss(
        loc, log_var, lambda z: model.log_likelihood(z[..., 0]), samples, estimator=estimator,
        key=key, prior=prior,
    )  # fmt: skip
    found = torch.stack(torch.autograd.grad(-loss, model.guide))
    mean, variance = model.posterior()
    q_loc, q_variance = model.guide[0].item(), math.exp(model.guide[1].item())
    far = variance + (mean - q_loc) ** 2
    exact = torch.tensor([(mean - q_loc) / q_variance, 0.5 * (far / q_variance - 1.0)]).double()
    noise = 4.0 / math.sqrt(samples)
    assert exact.abs().min() > 10 * noise
    torch.testing.assert_close(found, exact, rtol=0, atol=noise)
