"""Laws in K of the bound and of its gradients, where the answer needs many samples.

Replicas lie along the batch, so one call gives independent draws of the bound and, since the loss
is not reduced, of its gradient. Keys are fixed: a failure is a failure every time.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from linear_gaussian import DEVICES, chi_square, make_model

import fastvi

pytestmark = pytest.mark.native

SAMPLES = (8, 16, 32, 64)
REPLICAS = 100_000


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@functools.cache
def setting(device):
    """One datum, and a q that is 0.6 posterior standard deviations off and 1.2 times too wide."""
    model = make_model(features=1, latent=1, dtype=torch.float32, device=device)
    x = model.draw(1, torch.Generator().manual_seed(2))
    loc, log_var = model.posterior(x)
    return model, x, (loc + 0.6 * torch.exp(0.5 * log_var), log_var + 0.4)


@functools.cache
def draw(device, num_samples, estimator, replicas=REPLICAS):
    """Independent bounds [R] and their gradients with respect to loc [R]."""
    model, x, (loc, log_var) = setting(device)
    loc = loc.expand(replicas, 1).clone().requires_grad_()
    loss = fastvi.iwlb_loss(
        loc,
        log_var,
        lambda z: model.log_likelihood(x, z),
        num_samples,
        estimator=estimator,
        reduction="none",
        key=torch.tensor([2024, num_samples], device=device),
    )
    (grad,) = torch.autograd.grad(-loss.sum(), loc)
    return -loss.detach(), grad[:, 0]


def slope(values, counts=SAMPLES):
    """The slope of log |values| against the logarithm of K, or of other counts."""
    x = torch.tensor(counts, dtype=torch.float64).log()
    y = torch.stack([value.double().cpu() for value in values]).abs().log()
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x @ x)).item()


def signal_to_noise(grad):
    return grad.mean() / grad.std()


# Breaks when the mean of weights is not one: an error in log q, in log p, or in the noise itself.
@pytest.mark.parametrize("num_samples", [1, *SAMPLES], ids="K{}".format)
def test_the_exponential_of_the_bound_is_unbiased(device, num_samples):
    model, x, _ = setting(device)
    ratio = torch.exp(draw(device, num_samples, "dreg")[0] - model.log_evidence(x))
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / math.sqrt(REPLICAS)


def gaps(device, num_samples):
    """log p - L_K of each replica, without its first-order noise.

    E[exp L_K] = p exactly, so exp(L_K - log p) - 1 has mean zero and may be added.
    """
    model, x, _ = setting(device)
    excess = draw(device, num_samples, "dreg")[0] - model.log_evidence(x)
    return torch.expm1(excess) - excess


# Breaks when more samples do not tighten the bound, or take it past the evidence.
def test_the_bound_rises_with_k_towards_the_evidence(device):
    steps = [gaps(device, num_samples) for num_samples in (1, *SAMPLES)]
    for looser, tighter in zip(steps, steps[1:], strict=False):
        error = math.sqrt((looser.var() + tighter.var()).item() / REPLICAS)
        assert looser.mean() - tighter.mean() > 6 * error
    assert 0 < steps[-1].mean() < 0.01


# Breaks when log p - L_K is not chi^2 / 2K. The next order in 1/K is left to the tolerance.
@pytest.mark.parametrize("num_samples", [32, 64], ids="K{}".format)
def test_the_gap_is_the_variance_of_the_weights_over_2k(device, num_samples):
    model, x, q = setting(device)
    expected = chi_square(model.posterior(x), q).squeeze() / (2 * num_samples)
    ratio = gaps(device, num_samples).mean() / expected
    assert 1 - 2 / num_samples < ratio < 1 + 2 / num_samples


# Breaks when "iwae" has not the total gradient. The ratio, 0.14 to 0.05, is known to 1 / sqrt(R) =
# 0.003 and the slope so to 0.03: 4 of them are allowed, far from 0 and from DReG's +1/2.
def test_the_standard_gradient_drowns_as_k_grows(device):
    grads = [draw(device, num_samples, "iwae")[1] for num_samples in SAMPLES]
    assert abs(slope([signal_to_noise(grad) for grad in grads]) + 0.5) < 0.12
    assert abs(slope([grad.var() for grad in grads]) + 1) < 0.1


# Breaks when DReG's weight is not w~^2 (with w~ its variance falls as 1/K, as STL's does below), or
# the score of q is in it. Sampling error of the slopes is 0.01, the rest is the next order in 1/K.
def test_the_doubly_reparameterised_gradient_does_not(device):
    grads = [draw(device, num_samples, "dreg")[1] for num_samples in SAMPLES]
    assert abs(slope([signal_to_noise(grad) for grad in grads]) - 0.5) < 0.05
    assert abs(slope([grad.var() for grad in grads]) + 3) < 0.15
    stl = [draw(device, num_samples, "stl")[1] for num_samples in SAMPLES]
    assert abs(slope([grad.var() for grad in stl]) + 1) < 0.15


# Breaks when one of the two is biased: their means over the same replicas differ by a quantity of
# mean zero, within 4 standard errors. STL's, which is biased for K > 1, is the control.
@pytest.mark.parametrize("num_samples", SAMPLES, ids="K{}".format)
def test_the_standard_and_the_dreg_gradient_have_one_mean(device, num_samples):
    iwae, stl, dreg = (draw(device, num_samples, e)[1] for e in ("iwae", "stl", "dreg"))

    def distance(a, b):
        difference = a - b
        return (difference.mean() / difference.std()).abs() * math.sqrt(REPLICAS)

    assert distance(iwae, dreg) < 4
    assert distance(iwae, stl) > 20


# Breaks when "stl" of the ELBO is not unbiased, or does not have less noise than the total gradient
# where q is near the posterior.
def test_sticking_the_landing_of_the_elbo_is_unbiased_and_quieter(device):
    model, x, (loc, log_var) = setting(device)
    grads = {}
    for estimator in ("iwae", "stl"):
        leaf = loc.expand(REPLICAS, 1).clone().requires_grad_()
        loss = fastvi.elbo_loss(
            leaf,
            log_var,
            lambda z: model.log_likelihood(x, z),
            kl="monte_carlo",
            estimator=estimator,
            reduction="sum",
            key=torch.tensor([5, 0], device=device),
        )
        grads[estimator] = torch.autograd.grad(loss, leaf)[0][:, 0]
    # Closed form: the gradient of KL(q || posterior).
    posterior_loc, posterior_log_var = model.posterior(x)
    exact = ((loc - posterior_loc) * torch.exp(-posterior_log_var)).item()
    for grad in grads.values():
        assert (grad.mean() - exact).abs() < 4 * grad.std() / math.sqrt(REPLICAS)
    assert grads["stl"].var() < 0.5 * grads["iwae"].var()
