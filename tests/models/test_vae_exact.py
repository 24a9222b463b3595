"""The VAE in a linear-Gaussian model: exact evidence, gradients and moments."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from vae_setting import FEATURES, LATENT

import fastvi


class LinearGaussian:
    """A model with a known evidence and posterior, in float64.

    z ~ N(m, S), x = A z + b + s noise.
    """

    def __init__(self, learned_prior: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.weight, self.bias = draw(FEATURES, LATENT), draw(FEATURES)
        # Orthogonal columns make the exact posterior diagonal.
        self.weight = torch.linalg.qr(self.weight).Q * torch.tensor([0.5, 1.0, 2.0]).double()
        self.scale = 0.7
        self.prior_loc = draw(LATENT) if learned_prior else torch.zeros(LATENT).double()
        self.prior_log_var = 0.3 * draw(LATENT) if learned_prior else torch.zeros(LATENT).double()
        self.x = draw(20, FEATURES)
        decoder = nn.Linear(LATENT, FEATURES, dtype=torch.float64)
        decoder.load_state_dict({"weight": self.weight, "bias": self.bias})
        prior = (nn.Parameter(self.prior_loc.clone()), nn.Parameter(self.prior_log_var.clone()))
        self.vae = fastvi.VAE(
            self.posterior,
            decoder,
            likelihood=fastvi.GaussianLikelihood(torch.tensor(self.scale, dtype=torch.float64)),
            prior=prior if learned_prior else None,
        )

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        precision = (-self.prior_log_var).exp() + (self.weight**2).sum(0) / self.scale**2
        pull = (x - self.bias) @ self.weight / self.scale**2
        loc = (pull + self.prior_loc * (-self.prior_log_var).exp()) / precision
        return loc, (-precision.log()).expand_as(loc)

    def evidence(self) -> torch.Tensor:
        covariance = (self.weight * self.prior_log_var.exp()) @ self.weight.T
        covariance = covariance + self.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
        mean = self.bias + self.weight @ self.prior_loc
        return torch.distributions.MultivariateNormal(mean, covariance).log_prob(self.x)


@pytest.fixture(params=[False, True], ids=["standard_prior", "learned_prior"])
def model(request) -> LinearGaussian:
    return LinearGaussian(request.param)


@pytest.mark.parametrize("num_samples", [1, 7], ids=["K1", "K7"])
def test_exact_posterior_gives_the_evidence_for_every_k(model, num_samples):
    log_w = model.vae.log_weights(model.x, num_samples)
    assert log_w.shape == (num_samples, 20)
    torch.testing.assert_close(log_w, model.evidence().expand(num_samples, -1))
    torch.testing.assert_close(model.vae.log_evidence(model.x, num_samples), model.evidence())


@pytest.mark.parametrize(
    "objective",
    [
        fastvi.IWLBLoss(num_samples=5),
        fastvi.IWLBLoss(num_samples=5, estimator="iwae"),
        fastvi.IWLBLoss(num_samples=5, estimator="stl"),
        fastvi.ELBOLoss(num_samples=2, kl="monte_carlo"),
    ],
    ids=["dreg", "iwae", "stl", "elbo"],
)
def test_loss_at_the_exact_posterior_is_minus_the_evidence(model, objective):
    loss = model.vae.loss(model.x, objective)
    torch.testing.assert_close(loss, -model.evidence().mean())


def test_analytic_elbo_matches_in_the_mean(model):
    torch.manual_seed(0)
    loss = model.vae.loss(model.x, fastvi.ELBOLoss(num_samples=20_000))
    torch.testing.assert_close(loss, -model.evidence().mean(), rtol=0.0, atol=0.02)


def test_a_wrong_posterior_is_below_the_evidence_and_comes_near_with_k(model):
    exact = model.posterior
    # Wider than the exact one, so that the weights have a finite variance.
    model.vae.encoder = lambda x: (exact(x)[0] + 0.2, exact(x)[1] + 0.7)
    torch.manual_seed(0)
    one, many = (model.vae.log_evidence(model.x, k).mean() for k in (1, 20_000))
    evidence = model.evidence().mean()
    assert one < evidence - 0.1
    torch.testing.assert_close(many, evidence, rtol=0.0, atol=0.02)


def test_model_gradients_are_those_of_the_evidence():
    """At the exact posterior the gradient of the model's parameters has no noise."""
    model = LinearGaussian(learned_prior=True)
    model.vae.loss(model.x, fastvi.IWLBLoss(num_samples=20_000)).backward()
    weight = model.weight.clone().requires_grad_()
    model.weight = weight
    covariance = (weight * model.prior_log_var.exp()) @ weight.T
    covariance = covariance + model.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
    mean = model.bias + weight @ model.prior_loc
    evidence = torch.distributions.MultivariateNormal(mean, covariance).log_prob(model.x)
    (-evidence.mean()).backward()
    torch.testing.assert_close(
        model.vae.decoder.weight.grad, weight.grad, rtol=0.0, atol=0.02 * weight.grad.norm().item()
    )


def test_samples_have_the_moments_of_the_model():
    model = LinearGaussian(learned_prior=True)
    torch.manual_seed(0)
    x = model.vae.sample(200_000)
    assert x.dtype == torch.float64
    covariance = (model.weight * model.prior_log_var.exp()) @ model.weight.T
    covariance = covariance + model.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
    mean = model.bias + model.weight @ model.prior_loc
    torch.testing.assert_close(x.mean(0), mean, rtol=0.0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), covariance, rtol=0.0, atol=0.08)
    means = model.vae.sample(200_000, mean=True)
    noiseless = covariance - model.scale**2 * torch.eye(FEATURES, dtype=torch.float64)
    torch.testing.assert_close(means.T.cov(), noiseless, rtol=0.0, atol=0.08)
