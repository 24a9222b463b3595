"""Answers that need no sampling: exact evidence, exact gradients, enumerated latents."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from linear_gaussian import DEVICES, LinearGaussian, make_model
from torch.testing import assert_close

import fastvi

EXACT = {"rtol": 1e-9, "atol": 1e-9}
PRIORS = [pytest.param(True, id="standard_prior"), pytest.param(False, id="shifted_prior")]
ESTIMATORS = ["iwae", "stl", "dreg"]


def prior_of(model: LinearGaussian, standard: bool):
    return None if standard else model.prior


def off_posterior(model: LinearGaussian, x: torch.Tensor):
    """A q that is wrong, differently for each datum and feature."""
    loc, log_var = model.posterior(x)
    shift = torch.linspace(-0.3, 0.4, loc.numel()).to(loc).reshape(loc.shape)
    return loc + shift, log_var + 0.3 - shift


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture
def data(device):
    return make_model(device=device).draw(4, torch.Generator().manual_seed(1))


# Breaks when any of the three terms of log w loses a constant, a scale or a sign.
@pytest.mark.parametrize("standard", PRIORS)
@pytest.mark.parametrize("num_samples", [1, 2, 64], ids="K{}".format)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_posterior_gives_the_evidence_for_every_k(data, standard, num_samples, estimator):
    model = make_model(standard_prior=standard, device=data.device)
    loss = fastvi.iwlb_loss(
        *model.posterior(data),
        lambda z: model.log_likelihood(data, z),
        num_samples,
        estimator=estimator,
        prior=prior_of(model, standard),
        reduction="none",
    )
    assert_close(-loss, model.log_evidence(data), **EXACT)


# Breaks when float32 noise, densities or weights are less exact than float32 allows: log w is a
# difference of terms of a few tens of nats, whose last place is 4e-6.
def test_the_posterior_gives_the_evidence_in_float32(data):
    model = make_model(dtype=torch.float32, device=data.device)
    x = data.float()
    loss = fastvi.iwlb_loss(
        *model.posterior(x), lambda z: model.log_likelihood(x, z), 1000, reduction="none"
    )
    assert_close(
        -loss.double(), make_model(device=data.device).log_evidence(data), rtol=0, atol=2e-5
    )


# Breaks when the score of q stays in the STL or DReG gradient; the total gradient, which keeps it,
# is the control.
@pytest.mark.parametrize("standard", PRIORS)
@pytest.mark.parametrize("num_samples", [1, 8], ids="K{}".format)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_at_the_posterior_path_gradients_are_zero(data, standard, num_samples, estimator):
    model = make_model(standard_prior=standard, device=data.device)
    q = [t.clone().requires_grad_() for t in model.posterior(data)]
    loss = fastvi.iwlb_loss(
        *q,
        lambda z: model.log_likelihood(data, z),
        num_samples,
        estimator=estimator,
        prior=prior_of(model, standard),
        reduction="sum",
    )
    largest = [grad.abs().max().item() for grad in torch.autograd.grad(loss, q)]
    if estimator == "iwae":
        assert min(largest) > 0.1
    else:
        assert max(largest) < 1e-6


# Breaks when the same holds of the ELBO: score left in under "stl", or taken out under "iwae".
@pytest.mark.parametrize("estimator", ["iwae", "stl"])
def test_at_the_posterior_the_monte_carlo_elbo_is_exact(data, estimator):
    model = make_model(standard_prior=False, device=data.device)
    q = [t.clone().requires_grad_() for t in model.posterior(data)]
    loss = fastvi.elbo_loss(
        *q,
        lambda z: model.log_likelihood(data, z),
        4,
        kl="monte_carlo",
        estimator=estimator,
        prior=model.prior,
        reduction="none",
    )
    assert_close(-loss, model.log_evidence(data), **EXACT)
    largest = [grad.abs().max().item() for grad in torch.autograd.grad(loss.sum(), q)]
    assert max(largest) < 1e-6 if estimator == "stl" else min(largest) > 0.1


# Breaks when the closed form of the KL is off, or beta or the prior does not reach it.
@pytest.mark.parametrize("standard", PRIORS)
@pytest.mark.parametrize("num_samples", [1, 7], ids="K{}".format)
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0], ids="beta{}".format)
def test_the_analytic_elbo_of_a_constant_likelihood_is_the_divergence(
    data, standard, num_samples, beta
):
    model = make_model(standard_prior=standard, device=data.device)
    loc, log_var = off_posterior(model, data)
    q = torch.distributions.Normal(loc, torch.exp(0.5 * log_var))
    p = torch.distributions.Normal(model.prior[0], torch.exp(0.5 * model.prior[1]))
    divergence = torch.distributions.kl_divergence(q, p).sum(-1)
    loss = fastvi.elbo_loss(
        loc,
        log_var,
        lambda z: 0 * z.sum(-1) - 3.0,
        num_samples,
        beta=beta,
        prior=prior_of(model, standard),
        reduction="none",
    )
    assert_close(loss, 3.0 + beta * divergence, **EXACT)


# Breaks when E_q log p(x | z) - KL is not log p(x) - KL(q || posterior), within 5 standard errors.
@pytest.mark.native
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_the_elbo_falls_short_by_the_divergence_from_the_posterior(data, kl):
    model = make_model(standard_prior=False, device=data.device)
    loc, log_var = off_posterior(model, data)
    q = torch.distributions.Normal(loc, torch.exp(0.5 * log_var))
    mean, posterior_log_var = model.posterior(data)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * posterior_log_var))
    exact = model.log_evidence(data) - torch.distributions.kl_divergence(q, posterior).sum(-1)
    replicas = 20_000
    losses = fastvi.elbo_loss(
        loc.expand(replicas, -1, -1),
        log_var.expand(replicas, -1, -1),
        lambda z: model.log_likelihood(data, z),
        2,
        kl=kl,
        prior=model.prior,
        reduction="none",
        key=torch.tensor([3, 0], device=data.device),
    )
    error = -losses.mean(0) - exact
    standard_error = losses.std(0) / math.sqrt(replicas)
    assert (error.abs() < 5 * standard_error).all()
    assert (standard_error < 0.02).all()


def by_hand(model, data, loc, log_var, prior, eps):
    """log w of shape [K, B] as plain PyTorch of the samples' own formula, and z."""
    z = loc + torch.exp(0.5 * log_var) * eps
    normal = torch.distributions.Normal
    log_q = normal(loc, torch.exp(0.5 * log_var)).log_prob(z).sum(-1)
    log_p = normal(prior[0], torch.exp(0.5 * prior[1])).log_prob(z).sum(-1)
    return model.log_likelihood(data, z) + log_p - log_q


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.fixture
def problem(data):
    """A wrong q, a learned prior, a learned decoder, and the noise of one key."""
    model = make_model(standard_prior=False, device=data.device)
    loc, log_var = off_posterior(model, data)
    key = torch.tensor([7, 1], device=data.device)
    z, _, _ = fastvi.ops.gaussian_rsample(loc, log_var=log_var, num_samples=6, key=key)
    eps = (z - loc) / torch.exp(0.5 * log_var)
    return model, loc, log_var, key, eps


def decoder(weight, model):
    return LinearGaussian(weight, model.noise, model.prior)


# Breaks when any gradient of the total estimator (encoder, prior, decoder) is not autograd's own.
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_iwae_gradients_are_those_of_plain_autograd(data, problem, reduction):
    model, loc, log_var, key, eps = problem
    ours = leaves(loc, log_var, *model.prior, model.weight)
    loss = fastvi.iwlb_loss(
        ours[0],
        ours[1],
        lambda z: decoder(ours[4], model).log_likelihood(data, z),
        len(eps),
        estimator="iwae",
        prior=(ours[2], ours[3]),
        reduction=reduction,
        key=key,
    )
    plain = leaves(loc, log_var, *model.prior, model.weight)
    log_w = by_hand(decoder(plain[4], model), data, *plain[:2], plain[2:4], eps)
    expected = -(torch.logsumexp(log_w, 0) - math.log(len(eps)))
    expected = expected.mean() if reduction == "mean" else expected.sum()
    assert_close(loss, expected, **EXACT)
    assert_close(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, plain), **EXACT)


# Breaks when the sampler's weights are not w~^power with constant weights, when a term of u misses
# its weight, or when the decoder's or the prior's gradient is weighted more than once.
@pytest.mark.parametrize(("estimator", "power"), [("stl", 1), ("dreg", 2)], ids=["stl", "dreg"])
def test_path_gradients_are_their_formula(data, problem, estimator, power):
    model, loc, log_var, key, eps = problem
    ours = leaves(loc, log_var, *model.prior, model.weight)
    loss = fastvi.iwlb_loss(
        ours[0],
        ours[1],
        lambda z: decoder(ours[4], model).log_likelihood(data, z),
        len(eps),
        estimator=estimator,
        prior=(ours[2], ours[3]),
        reduction="sum",
        key=key,
    )
    grad_loc, grad_log_var, *grad_model = torch.autograd.grad(loss, ours)

    # sum_k w~^power d log w / dz dz/dphi, with q's own parameters out of the derivative.
    scale = torch.exp(0.5 * log_var)
    (z,) = leaves(loc + scale * eps)
    normal = torch.distributions.Normal
    log_w = (
        model.log_likelihood(data, z)
        + normal(model.prior[0], torch.exp(0.5 * model.prior[1])).log_prob(z).sum(-1)
        - normal(loc, scale).log_prob(z).sum(-1)
    )
    (slope,) = torch.autograd.grad(log_w.sum(), z)
    weight = torch.softmax(log_w, 0).detach()
    assert weight.max() < 0.95, "the weights must be mixed for the power to show"
    path = slope * weight[..., None] ** power
    assert_close(grad_loc, -path.sum(0), **EXACT)
    assert_close(grad_log_var, -(path * 0.5 * scale * eps).sum(0), **EXACT)

    # The model keeps the plain weight: the gradient of sum_k w~ log p(x, z_k).
    plain = leaves(*model.prior, model.weight)
    log_joint = by_hand(decoder(plain[2], model), data, loc, log_var, plain[:2], eps)
    expected = torch.autograd.grad(-(weight * log_joint).sum(), plain)
    assert_close(grad_model, list(expected), **EXACT)


# Breaks when an ELBO gradient (beta, mean over K, learned prior) is not autograd's own.
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
def test_elbo_gradients_are_those_of_plain_autograd(data, problem, kl):
    model, loc, log_var, key, eps = problem
    beta = 2.5
    ours = leaves(loc, log_var, *model.prior, model.weight)
    loss = fastvi.elbo_loss(
        ours[0],
        ours[1],
        lambda z: decoder(ours[4], model).log_likelihood(data, z),
        len(eps),
        kl=kl,
        beta=beta,
        prior=(ours[2], ours[3]),
        key=key,
    )
    plain = leaves(loc, log_var, *model.prior, model.weight)
    q = torch.distributions.Normal(plain[0], torch.exp(0.5 * plain[1]))
    p = torch.distributions.Normal(plain[2], torch.exp(0.5 * plain[3]))
    z = q.loc + q.scale * eps
    if kl == "analytic":
        divergence = torch.distributions.kl_divergence(q, p).sum(-1)
    else:
        divergence = (q.log_prob(z) - p.log_prob(z)).sum(-1).mean(0)
    log_px = decoder(plain[4], model).log_likelihood(data, z).mean(0)
    expected = (beta * divergence - log_px).mean()
    assert_close(loss, expected, **EXACT)
    assert_close(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, plain), **EXACT)


def exact_two_sample_bound(model, data, loc, log_var, nodes=60):
    """E[L_2] of a model with one latent feature, by Gauss-Hermite quadrature over both samples."""
    rule = np.polynomial.hermite_e.hermegauss(nodes)
    points, weights = (torch.from_numpy(t).to(loc) for t in rule)
    weights = weights / weights.sum()
    log_w = by_hand(model, data, loc, log_var, model.prior, points[:, None, None])
    pair = torch.logaddexp(log_w[:, None], log_w[None]) - math.log(2)
    return (weights[:, None, None] * weights[None, :, None] * pair).sum((0, 1))


# Breaks when DReG is biased (the weight's power, a missing term): its mean over replicas must be
# the exact gradient within 4 standard errors. STL, biased for K > 1, must be off by more.
@pytest.mark.native
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_gradient_is_that_of_the_exact_bound(device, estimator):
    model = make_model(features=2, latent=1, device=device)
    x = model.draw(1, torch.Generator().manual_seed(2))
    loc, log_var = model.posterior(x)
    exact = leaves(loc + 0.6, log_var + 0.4)
    bound = exact_two_sample_bound(model, x, *exact)
    expected = torch.autograd.grad(bound.sum(), exact)

    replicas = 100_000
    q = leaves(*(t.expand(replicas, 1, 1) for t in exact))
    loss = fastvi.iwlb_loss(
        *q,
        lambda z: model.log_likelihood(x, z),
        2,
        estimator=estimator,
        reduction="none",
        key=torch.tensor([11, 0], device=device),
    )
    value = -loss.detach()
    assert (value.mean() - bound).abs() < 4 * value.std() / math.sqrt(replicas)
    distance = []
    for grad, truth in zip(torch.autograd.grad(-loss.sum(), q), expected, strict=True):
        standard_error = grad.std() / math.sqrt(replicas)
        distance.append(((grad.mean() - truth).abs() / standard_error).item())
    if estimator == "stl":
        assert max(distance) > 20
    else:
        assert max(distance) < 4


# Breaks when the reduction is not the log of a mean of probabilities: with enumerated latents it
# is the evidence, so the probabilities of all data sum to one.
def test_enumerated_latents_give_a_normalised_evidence(device):
    generator = torch.Generator().manual_seed(0)
    latent, features = 6, 4
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=latent)), dtype=torch.float64)
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=features)), dtype=torch.float64)
    prior_logits = torch.randn(latent, dtype=torch.float64, generator=generator)
    weight = 2 * torch.randn(latent, features, dtype=torch.float64, generator=generator)
    log_prior = fastvi.ops.bernoulli_log_prob(bits, prior_logits.expand_as(bits))
    logits = (bits @ weight)[:, None].expand(-1, len(x), -1)
    log_px = fastvi.ops.bernoulli_log_prob(x, logits)
    log_pz = log_prior[:, None].expand_as(log_px)
    log_qz = torch.full_like(log_px, -latent * math.log(2))
    bound = fastvi.ops.iwlb(*(t.to(device) for t in (log_px, log_pz, log_qz))).cpu()
    assert_close(bound, torch.logsumexp(log_px + log_pz, 0), **EXACT)
    assert_close(bound.exp().sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT)
