"""Posteriors that are no diagonal Gaussians: exact evidence, gradients, keys, discrete ones."""

from __future__ import annotations

import math

import pytest
import torch
from general_setting import DOUBLE, FEATURES, LATENT, LOSSES, NOISE, data, decoder, gaussian
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
)

import fastvi
from fastvi import objectives


# ---- full covariance: the exact posterior of a linear decoder ------------------------------------
class ExactEncoder(nn.Module):
    """The posterior of z ~ N(0, I), x = W z + b + noise, whose covariance is not diagonal."""

    def __init__(self, linear: nn.Linear, shift: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach(), linear.bias.detach()
        precision = torch.eye(LATENT, **DOUBLE) + weight.T @ weight / NOISE**2
        covariance = torch.linalg.inv(precision)
        self.gain = nn.Parameter(covariance @ weight.T / NOISE**2)
        self.factor = nn.Parameter(scale * torch.linalg.cholesky(covariance))
        self.shift = nn.Parameter(torch.full((LATENT,), shift, **DOUBLE))

    def forward(self, x: Tensor) -> MultivariateNormal:
        loc = (x - self.bias) @ self.gain.T + self.shift
        return MultivariateNormal(loc, scale_tril=self.factor.tril())


def exact_evidence(linear: nn.Linear, x: Tensor) -> Tensor:
    covariance = linear.weight @ linear.weight.T + NOISE**2 * torch.eye(FEATURES, **DOUBLE)
    return MultivariateNormal(linear.bias, covariance).log_prob(x)


def full(**options) -> fastvi.VAE:
    linear = decoder()
    return fastvi.VAE(ExactEncoder(linear, **options), linear, likelihood=gaussian())


# Those whose value at the exact posterior has no noise.
EXACT = [name for name in LOSSES if name not in ("elbo", "ELBO")]


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_posterior_with_a_full_covariance_has_the_evidence(name: str):
    vae, x = full(), data()
    evidence = exact_evidence(vae.decoder, x)
    bound = vae.bound(x, LOSSES[name])
    torch.testing.assert_close(bound, evidence, rtol=0, atol=1e-10)
    torch.testing.assert_close(vae.log_evidence(x, 9, chunk_size=4), evidence)
    torch.testing.assert_close(vae.loss(x, LOSSES[name]), -evidence.mean(), rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(bound.sum(), list(vae.encoder.parameters()))
    largest = max(part.abs().max().item() for part in gradients)
    # The score of q has mean zero and no value of zero; where it is left out, nothing is left.
    scored = name in ("iwae",)
    assert largest > 1e-3 if scored else largest < 1e-9


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_a_full_covariance_are_those_of_its_diagonal_twin(name: str):
    """A covariance that happens to be diagonal: in the mean the fused way has the same gradient."""
    linear = decoder()
    loc, log_var = torch.full((LATENT,), 0.2, **DOUBLE), torch.tensor([-0.5, 0.1], **DOUBLE)
    many, x = 20_000, data(1)
    x = x.expand(many, -1)

    def gradient(encode) -> Tensor:
        own = (nn.Parameter(loc.clone()), nn.Parameter(log_var.clone()))
        vae = fastvi.VAE(lambda x: encode(*own, len(x)), linear, likelihood=gaussian())
        torch.manual_seed(2)
        # Of each datum: no batch mean hides the noise.
        rows = []
        for half in (x[: many // 2], x[many // 2 :]):
            rows.append(torch.cat(torch.autograd.grad(vae.bound(half, LOSSES[name]).mean(), own)))
        return torch.stack(rows)

    def general(loc: Tensor, log_var: Tensor, count: int) -> Distribution:
        tril = torch.diag_embed((0.5 * log_var).exp()).expand(count, -1, -1)
        return MultivariateNormal(loc.expand(count, -1), scale_tril=tril)

    def fused(loc: Tensor, log_var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        return loc.expand(count, -1), log_var.expand(count, -1)

    # The gradients of one datum have a standard deviation below 4 here, their means over 20 000
    # data one of 0.03, their difference 0.04.
    torch.testing.assert_close(gradient(general).mean(0), gradient(fused).mean(0), rtol=0, atol=0.2)


def test_a_posterior_without_events_is_of_its_last_dimension():
    linear = decoder()
    normal = lambda x: Normal(x[:, :LATENT], 0.7)  # noqa: E731
    vae = fastvi.VAE(normal, linear, likelihood=gaussian())
    q = vae.posterior(data())
    assert q.batch_shape == (6,) and q.event_shape == (LATENT,)
    vae.loss(data(), fastvi.IWLBLoss(3)).backward()


# ---- keys, discrete posteriors -------------------------------------------------------------------
def test_a_key_governs_the_draws_of_any_posterior():
    vae, x = full(scale=1.5), data()
    key, other = fastvi.ops.new_key(), fastvi.ops.new_key()
    state = torch.get_rng_state()
    first = vae.log_weights(x, 5, key=key)
    assert torch.equal(first, vae.log_weights(x, 5, key=key))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, vae.log_weights(x, 5, key=other))
    assert not torch.equal(first, vae.log_weights(x, 5, key=key, sample_offset=5))
    loss = fastvi.IWLBLoss(3)
    assert torch.equal(vae.loss(x, loss, key=key), vae.loss(x, loss, key=key))


def test_a_discrete_posterior_takes_vimco():
    encoder, linear = nn.Linear(FEATURES, LATENT, **DOUBLE), decoder()
    prior = Independent(Bernoulli(torch.full((LATENT,), 0.5, **DOUBLE)), 1)
    vae = fastvi.VAE(
        lambda x: Independent(Bernoulli(logits=encoder(x)), 1),
        linear,
        likelihood=gaussian(),
        prior=prior,
    )
    x = data()
    z = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], **DOUBLE)] * LATENT)
    each = vae.log_likelihood(x, z[:, None].expand(-1, len(x), -1))
    exact = (each - LATENT * math.log(2)).logsumexp(0)
    log_w = vae.log_weights(x, 20_000).detach()
    error = (log_w - exact).exp().std(0) / 20_000**0.5
    assert ((vae.log_evidence(x, 20_000) - exact).abs() < 5 * error + 1e-6).all()
    vae.loss(x, objectives.VIMCO(8)).backward()
    assert encoder.weight.grad.isfinite().all() and encoder.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="'z' to be reparameterised, .*use VIMCO or Reinforce"):
        vae.loss(x, fastvi.IWLBLoss(8))
