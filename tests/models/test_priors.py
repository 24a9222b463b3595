"""Priors that are no diagonal Gaussians: evidence by quadrature, learning, draws, bad input."""

from __future__ import annotations

import copy
import math

import numpy
import pytest
import torch
from general_setting import DOUBLE, FEATURES, LATENT, LOSSES, data, gaussian
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Categorical,
    Cauchy,
    Distribution,
    Independent,
    MixtureSameFamily,
    Normal,
    TanhTransform,
    TransformedDistribution,
)

import fastvi

# ---- any prior, by quadrature --------------------------------------------------------------------
NODES, SIDE = 2000, 40.0


def by_quadrature(vae: fastvi.VAE, prior: Distribution, x: Tensor) -> Tensor:
    """log p(x) for one latent feature, by the trapezoidal rule."""
    z = torch.linspace(-SIDE, SIDE, NODES, **DOUBLE)[:, None]
    log_p = prior.log_prob(z)[:, None]
    log_px = vae.log_likelihood(x, z[:, None, :].expand(-1, len(x), -1))
    return (log_p + log_px).logsumexp(0) + math.log(2 * SIDE / (NODES - 1))


class Mixture(nn.Module):
    """Two Gaussians, learned."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3, -0.2], **DOUBLE))
        self.loc = nn.Parameter(torch.tensor([[-1.5], [1.0]], **DOUBLE))
        self.log_scale = nn.Parameter(torch.tensor([[-0.3], [-0.8]], **DOUBLE))

    def forward(self) -> Distribution:
        parts = Independent(Normal(self.loc, self.log_scale.exp()), 1)
        return MixtureSameFamily(Categorical(logits=self.logits), parts)


class VampPrior(nn.Module):
    """The mean of the posteriors of inputs that are learned."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        inputs = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(5), **DOUBLE)
        self.inputs = nn.Parameter(inputs)

    def forward(self) -> Distribution:
        loc, log_var = self.encoder(self.inputs).chunk(2, -1)
        parts = Independent(Normal(loc, (0.5 * log_var).exp()), 1)
        return MixtureSameFamily(Categorical(torch.ones(3, **DOUBLE)), parts)


class Flow(nn.Module):
    """An affine map and a bend of a normal, learned."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.4], **DOUBLE))
        self.log_scale = nn.Parameter(torch.tensor([0.2], **DOUBLE))

    def forward(self) -> Distribution:
        base = Independent(Normal(torch.zeros(1, **DOUBLE), torch.ones(1, **DOUBLE)), 1)
        affine = AffineTransform(self.loc, self.log_scale.exp(), event_dim=1)
        return TransformedDistribution(base, [affine])


def fixed_mixture() -> Distribution:
    parts = Independent(Normal(torch.tensor([[-1.0], [2.0]], **DOUBLE), 0.5), 1)
    return MixtureSameFamily(Categorical(torch.tensor([0.4, 0.6], **DOUBLE)), parts)


def wide_encoder() -> nn.Linear:
    """Of standard deviations from 2 to 4, so that weights have a finite variance."""
    torch.manual_seed(1)
    encoder = nn.Linear(FEATURES, 2, **DOUBLE)
    with torch.no_grad():
        encoder.weight[1] *= 0.1
        encoder.bias[1] = 2.0
    return encoder


def one_latent(prior, encoder: nn.Module | None = None) -> fastvi.VAE:
    encoder = wide_encoder() if encoder is None else encoder
    return fastvi.VAE(encoder, nn.Linear(1, FEATURES, **DOUBLE), likelihood=gaussian(), prior=prior)


def with_vamp() -> fastvi.VAE:
    encoder = wide_encoder()
    return one_latent(VampPrior(encoder), encoder)


PRIORS = {
    "mixture": lambda: one_latent(Mixture()),
    "vamp": with_vamp,
    "flow": lambda: one_latent(Flow()),
    "fixed": lambda: one_latent(fixed_mixture()),
    "scalar normal": lambda: one_latent(Normal(torch.zeros(1, **DOUBLE), 2.0)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_the_evidence_under_any_prior_is_that_of_quadrature(name: str):
    vae, x = PRIORS[name](), data(4)
    torch.manual_seed(0)
    prior = vae.terms({"z": torch.zeros(1, 4, 1, **DOUBLE)}, x)["z"]
    exact = by_quadrature(vae, prior, x).detach()
    log_w = vae.log_weights(x, 40_000).detach()
    # The standard error of L_K is that of a weight over its mean.
    error = (log_w - exact).exp().std(0) / 200
    assert ((vae.log_evidence(x, 40_000) - exact).abs() < 5 * error + 1e-6).all()
    assert error.max() < 0.02


@pytest.mark.parametrize("name", ["mixture", "vamp", "flow"])
def test_the_prior_learns_up_the_evidence(name: str):
    vae, x = PRIORS[name](), data(2)
    torch.manual_seed(0)
    learned = [p for key, p in vae.named_parameters() if "prior_module" in key]
    assert learned
    if name == "vamp":
        learned = [vae.prior_module.inputs]
    exact = by_quadrature(vae, vae.prior_module(), x).mean()
    expected = torch.autograd.grad(exact, learned)
    bound = vae.bound(x, fastvi.IWLBLoss(100_000, "iwae")).mean()
    found = torch.autograd.grad(bound, learned)
    for ours, theirs in zip(found, expected, strict=True):
        # The weights of 1e5 samples: an effective size of thousands, so about 2 % of noise.
        torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.03)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_under_any_prior(name: str, loss: str):
    vae, x = PRIORS[name](), data(4)
    vae.loss(x, LOSSES[loss]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    assert vae.sample(3).shape == (3, FEATURES)
    assert vae.reconstruct(x).shape == vae.reconstruct(x, num_samples=5).shape == x.shape


def test_a_fixed_prior_moves_with_the_model():
    vae = one_latent(fixed_mixture()).float()
    x = data(4).float()
    assert vae.loss(x, fastvi.IWLBLoss(3)).dtype == torch.float32
    assert not [name for name, _ in vae.named_parameters() if "prior" in name]
    twin = copy.deepcopy(vae)
    key = fastvi.ops.new_key()
    assert torch.equal(vae.log_weights(x, 4, key=key), twin.log_weights(x, 4, key=key))


def test_draws_follow_a_general_prior():
    vae = one_latent(fixed_mixture())
    torch.manual_seed(0)
    x = vae.sample(100_000, mean=True)
    prior = fixed_mixture()
    weight, bias = vae.decoder.weight.detach(), vae.decoder.bias.detach()
    expected, spread = bias + weight @ prior.mean, weight[:, 0].abs() * prior.stddev
    assert ((x.mean(0) - expected).abs() < 5 * spread / 100_000**0.5).all()
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(*(vae.sample(4, generator=seed) for seed in seeds))


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0], ids=lambda beta: f"beta={beta}")
def test_the_weight_of_a_divergence_from_a_mixture(beta: float):
    vae, x = one_latent(Mixture()), data(3)
    loss = fastvi.ELBOLoss(200_000, beta=beta)
    torch.manual_seed(0)
    found = vae.bound(x, loss)
    loc, log_var = vae.encode(x)
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(60)
    z = loc + (0.5 * log_var).exp() * torch.from_numpy(nodes)[:, None, None]
    of_node = torch.from_numpy(weights / weights.sum())[:, None]
    q = Independent(Normal(loc, (0.5 * log_var).exp()), 1)
    divergence = q.log_prob(z) - Mixture()().log_prob(z)
    exact = (of_node * (vae.log_likelihood(x, z) - beta * divergence)).sum(0)
    # A term has a standard deviation of some ten nats.
    torch.testing.assert_close(found, exact, rtol=0, atol=5 * 20 * (1 + beta) / 200_000**0.5)


# ---- bad input -----------------------------------------------------------------------------------
def vae_with(prior=None, encoder=None) -> fastvi.VAE:
    return fastvi.VAE(
        nn.Linear(FEATURES, 2 * LATENT) if encoder is None else encoder,
        nn.Linear(LATENT, FEATURES),
        likelihood="gaussian",
        prior=prior,
    )


class Returning(nn.Module):
    def __init__(self, value) -> None:
        super().__init__()
        self.value = value

    def forward(self):
        return self.value


X = torch.zeros(4, FEATURES)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        pytest.param(lambda: vae_with(3.0), TypeError, "prior to be None for N.* got float",
                     id="a number"),
        pytest.param(lambda: vae_with(lambda: fixed_mixture()), TypeError,
                     "a module that returns a distribution .*got function", id="a function"),
        pytest.param(lambda: vae_with(Normal(nn.Parameter(torch.zeros(2)), 1.0)), ValueError,
                     "learned to be a module .*loc requires a gradient", id="a learned tensor"),
        pytest.param(lambda: vae_with(Normal(0.0, 1.0)), ValueError,
                     r"of vectors, event shape \(D,\), got batch shape \[\]", id="a scalar"),
        pytest.param(lambda: vae_with(Returning(3)).log_weights(X, 2), TypeError,
                     "prior to return a torch.distributions.Distribution, got int", id="no law"),
        pytest.param(
            lambda: vae_with(Normal(torch.zeros(3), 1.0)).log_weights(X, 2), ValueError,
            "prior to be of 2 latent features, as the encoder, got 3", id="other features"),
        pytest.param(
            lambda: vae_with(Independent(Normal(torch.zeros(4, 2), 1.0), 1)).log_weights(X, 2),
            ValueError, r"one distribution for all data, .*got batch shape \[4\]", id="a batch"),
        pytest.param(
            lambda: vae_with(encoder=lambda x: Normal(x[:2, :2], 1.0)).log_weights(X, 2),
            ValueError, r"keep the batch of x.* got a distribution of batch shape \(2,\)",
            id="another batch"),
        pytest.param(
            lambda: vae_with(encoder=lambda x: Normal(x[:, :2], 1.0)).encode(X), TypeError,
            r"\(loc, log_var\), got Independent; posterior\(x\) returns it", id="encode"),
        pytest.param(
            lambda: vae_with(encoder=lambda x: TransformedDistribution(
                Normal(x[:, :2], 1.0), TanhTransform())).reconstruct(X),
            ValueError, "num_samples for a posterior without a mean", id="no mean"),
        pytest.param(
            lambda: vae_with(Normal(torch.zeros(3), 1.0)).sample(2), ValueError,
            "take the 3 latent features of the model, got one that takes 2", id="sample"),
        pytest.param(lambda: vae_with(Cauchy(torch.zeros(2), 1.0)).loss(X, lambda *_: 0.0),
                     TypeError, "objective to be a loss of fastvi .*got function", id="function"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
