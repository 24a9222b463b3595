"""Mistakes that published code makes in these losses, each as a regression test.

Every test computes the mistake too, or names it, and checks that it would have been seen.
"""

from __future__ import annotations

import math

import pytest
import torch
from linear_gaussian import DEVICES, make_model
from torch.testing import assert_close

import fastvi

EXACT = {"rtol": 1e-9, "atol": 1e-9}
ESTIMATORS = ["iwae", "stl", "dreg"]
K, B = 6, 4


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


class Problem:
    """A model, data, a wrong q, a key, and the log-weights that belong to them."""

    def __init__(self, device, num_samples=K, batch=B):
        self.model = make_model(device=device)
        self.x = self.model.draw(batch, torch.Generator().manual_seed(3))
        loc, log_var = self.model.posterior(self.x)
        self.q = (loc + 0.4, log_var + 0.5)
        self.key = torch.tensor([17, 0], device=device)
        self.num_samples = num_samples
        z, log_q, log_p = fastvi.ops.gaussian_rsample(
            self.q[0], log_var=self.q[1], num_samples=num_samples, key=self.key
        )
        self.log_px = self.model.log_likelihood(self.x, z)
        self.log_p, self.log_q = log_p, log_q
        self.log_w = self.log_px + log_p - log_q

    def log_likelihood(self, z):
        return self.model.log_likelihood(self.x, z)

    def iwlb(self, estimator="dreg", log_likelihood=None, q=None, **options):
        return fastvi.iwlb_loss(
            *(q or self.q),
            log_likelihood or self.log_likelihood,
            self.num_samples,
            estimator=estimator,
            key=self.key,
            **options,
        )

    def elbo(self, q=None, **named):
        return fastvi.elbo_loss(
            *(q or self.q), self.log_likelihood, self.num_samples, key=self.key, **named
        )

    def encoder_gradient(self, estimator, log_likelihood=None):
        q = [t.clone().requires_grad_() for t in self.q]
        loss = self.iwlb(estimator, log_likelihood, q=q, reduction="sum")
        return torch.autograd.grad(loss, q)


@pytest.fixture
def problem(device):
    return Problem(device)


# The dataset scale N / B inside the log-sum-exp. Outside, where it belongs, N / B times the loss of
# a batch is the evidence of N data when q is the posterior; inside, it is another number.
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_dataset_scale_stays_outside_the_bound(problem, reduction):
    q = problem.model.posterior(problem.x)
    evidence = problem.model.log_evidence(problem.x)
    times = 12  # a dataset of `times` copies of this batch
    loss = problem.iwlb(q=q, reduction=reduction)
    scale = times if reduction == "sum" else times * B
    assert_close(-scale * loss, times * evidence.sum(), **EXACT)
    inside = problem.iwlb(
        q=q, log_likelihood=lambda z: times * problem.log_likelihood(z), reduction=reduction
    )
    assert not torch.isclose(inside, loss, rtol=0.1)


# A bound of data that were tiled must not move: normalisation over the batch would show here.
def test_the_mean_over_a_tiled_batch_is_the_mean(problem):
    q = problem.model.posterior(problem.x)
    x = problem.x.repeat(5, 1)
    tiled = fastvi.iwlb_loss(
        q[0].repeat(5, 1), q[1].repeat(5, 1), lambda z: problem.model.log_likelihood(x, z), K
    )
    assert_close(tiled, problem.iwlb(q=q), **EXACT)


# The weights normalised over the batch instead of the samples. With K = B no shape tells.
@pytest.mark.parametrize("num_samples", [B, K], ids="K{}".format)
def test_weights_are_normalised_over_the_samples(device, num_samples):
    problem = Problem(device, num_samples)
    loss = problem.iwlb(reduction="none")
    assert_close(-loss, torch.logsumexp(problem.log_w, 0) - math.log(num_samples), **EXACT)
    swapped = torch.logsumexp(problem.log_w, 1) - math.log(B)
    assert swapped.shape != loss.shape or (swapped + loss).abs().max() > 0.1


# The same seen from the gradient: a datum's gradient must not know of its neighbours.
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_datum_changes_the_gradient_of_another(problem, estimator):
    # The last datum becomes so likely that it would take every weight in a shared normalisation.
    bonus = torch.zeros(B, dtype=torch.float64, device=problem.x.device)
    bonus[-1] = 1000.0
    before = problem.encoder_gradient(estimator)
    after = problem.encoder_gradient(estimator, lambda z: problem.log_likelihood(z) + bonus)
    for a, b in zip(before, after, strict=True):
        assert_close(a[:-1], b[:-1], **EXACT)


# Sum_k w~ log w reported as the bound: right gradient of the model, wrong number.
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_value_is_the_bound_itself(problem, estimator):
    loss = problem.iwlb(estimator, reduction="none")
    bound = torch.logsumexp(problem.log_w, 0) - math.log(K)
    surrogate = (torch.softmax(problem.log_w, 0) * problem.log_w).sum(0)
    squared = (torch.softmax(problem.log_w, 0) ** 2 * problem.log_w).sum(0)
    assert_close(-loss, bound, **EXACT)
    for wrong in (surrogate, squared):
        assert ((wrong - bound).abs() > 0.01).all()


# A DReG whose hook never fires is STL. For K > 1 the two differ; for K = 1 the weight is one.
@pytest.mark.parametrize("num_samples", [1, 2, K], ids="K{}".format)
def test_the_dreg_weight_acts_where_k_is_above_one(device, num_samples):
    problem = Problem(device, num_samples)
    stl, dreg = problem.encoder_gradient("stl"), problem.encoder_gradient("dreg")
    if num_samples == 1:
        assert_close(dreg, stl, **EXACT)
        return
    for a, b in zip(stl, dreg, strict=True):
        assert (a - b).norm() > 0.1 * a.norm()


# The usual reason: the hook sits on one tensor and the likelihood reads a copy of it.
@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda z: z.clone(), id="clone"),
        pytest.param(lambda z: z.flatten(0, -2).unflatten(0, z.shape[:-1]), id="reshaped"),
        pytest.param(lambda z: torch.stack([z[k] for k in range(len(z))]), id="one_by_one"),
        pytest.param(lambda z: z.to(torch.float32).to(torch.float64), id="through_float32"),
    ],
)
def test_the_dreg_weight_acts_through_copies_of_z(problem, copy):
    direct = problem.encoder_gradient("dreg")
    through = problem.encoder_gradient("dreg", lambda z: problem.log_likelihood(copy(z)))
    assert_close(through, direct, rtol=1e-4, atol=1e-5)


# Half of u lives inside the sampler (log q and log p): a hook on z alone leaves it unweighted. A
# likelihood that is uniform in z leaves only that half.
def test_the_dreg_weight_acts_on_the_densities_too(problem):
    def log_likelihood(z):
        return 0 * z.sum(-1)

    loc, log_var = problem.q
    got = problem.encoder_gradient("dreg", log_likelihood)[0]
    z, log_q, log_p = fastvi.ops.gaussian_rsample(
        loc, log_var=log_var, num_samples=K, key=problem.key
    )
    weight = torch.softmax(log_p - log_q, 0)[..., None]
    slope = -z + (z - loc) * torch.exp(-log_var)
    assert_close(got, -(weight**2 * slope).sum(0), **EXACT)
    hook_on_z_alone = -(weight * slope).sum(0)
    assert (got - hook_on_z_alone).norm() > 0.1 * got.norm()


# Weights that are not detached: the derivative of w~ itself would add sum_k (dw~_k) log w_k, which
# has the gradient of the surrogate. The bound's own gradient has no such term.
def test_weights_are_constants_in_the_gradient(problem):
    weight = problem.model.weight.clone().requires_grad_()

    def log_likelihood(z):
        error = (problem.x - z @ weight.mT) / problem.model.noise
        return -0.5 * (error**2).sum(-1)

    (got,) = torch.autograd.grad(problem.iwlb("dreg", log_likelihood, reduction="sum"), weight)
    z, log_q, log_p = fastvi.ops.gaussian_rsample(
        problem.q[0], log_var=problem.q[1], num_samples=K, key=problem.key
    )
    log_w = log_likelihood(z) + log_p - log_q
    w = torch.softmax(log_w, 0)
    (expected,) = torch.autograd.grad(-(w.detach() * log_w).sum(), weight, retain_graph=True)
    (not_detached,) = torch.autograd.grad(-(w * log_w).sum(), weight)
    assert_close(got, expected, **EXACT)
    assert (got - not_detached).norm() > 0.01 * got.norm()


# The closed-form divergence in place of log q - log p inside an importance-weighted bound: no bound
# at all. Only the ELBO may use it, and there both forms agree in the mean, not sample by sample.
def test_the_closed_form_divergence_is_not_in_the_importance_weights(problem):
    divergence = fastvi.ops.gaussian_kl(*problem.q)
    mixed = torch.logsumexp(problem.log_px, 0) - math.log(K) - divergence
    loss = problem.iwlb(reduction="none")
    assert ((-loss - mixed).abs() > 0.01).all()
    elbo = problem.elbo(kl="analytic", reduction="none")
    assert_close(-elbo, problem.log_px.mean(0) - divergence, **EXACT)


# beta ignored for K > 1, or in one of the two forms, or in the gradient.
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
@pytest.mark.parametrize("num_samples", [1, K], ids="K{}".format)
def test_beta_weighs_the_divergence_for_every_k(device, kl, num_samples):
    problem = Problem(device, num_samples)
    divergence = (problem.log_q - problem.log_p).mean(0)
    if kl == "analytic":
        divergence = fastvi.ops.gaussian_kl(*problem.q)

    def gradient(beta):
        loc = problem.q[0].clone().requires_grad_()
        loss = problem.elbo(kl=kl, beta=beta, q=(loc, problem.q[1]), reduction="sum")
        return torch.autograd.grad(loss, loc)[0]

    for beta in (0.0, 1.0, 4.0):
        loss = problem.elbo(kl=kl, beta=beta, reduction="none")
        assert_close(loss, beta * divergence - problem.log_px.mean(0), **EXACT)
    assert_close(gradient(4.0) - gradient(0.0), 4 * (gradient(1.0) - gradient(0.0)), **EXACT)
    assert (gradient(1.0) - gradient(0.0)).norm() > 0.1


# log(S - w_k) by way of log S + log(1 - w_k / S): where one weight dominates, w_k / S rounds to 1,
# the others are lost, and the result reads -inf, or NaN from a negative sum.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_leaving_out_the_dominating_sample_leaves_the_others(device, dtype):
    log_w = torch.tensor([-300.0, -310.0, -120.0, -305.0], dtype=dtype, device=device)
    total = torch.logsumexp(log_w, 0)
    difference = total + torch.log1p(-torch.exp(log_w - total)) - math.log(3)
    assert not torch.isfinite(difference[2])
    found = fastvi.ops.leave_one_out(log_w)
    others = torch.logsumexp(log_w[[0, 1, 3]], 0) - math.log(3)
    assert_close(found[2], others)
    assert_close(found[:2], (log_w[2] - math.log(3)).expand(2))


LOSSES = {
    "iwae": lambda problem, q: problem.iwlb("iwae", q=q),
    "stl": lambda problem, q: problem.iwlb("stl", q=q),
    "analytic": lambda problem, q: problem.elbo(kl="analytic", q=q),
    "monte_carlo": lambda problem, q: problem.elbo(kl="monte_carlo", q=q),
}


# jvp through an opaque op is silently zero. Here it is the directional derivative of the same loss.
@pytest.mark.parametrize("name", LOSSES)
def test_forward_mode_is_the_directional_derivative(problem, name):
    q = tuple(problem.q)
    tangents = tuple(torch.linspace(-1, 1, t.numel()).to(t).reshape(t.shape) for t in q)
    _, slope = torch.func.jvp(lambda *q: LOSSES[name](problem, q), q, tangents)
    leaves = [t.clone().requires_grad_() for t in q]
    grads = torch.autograd.grad(LOSSES[name](problem, leaves), leaves)
    expected = sum((g * t).sum() for g, t in zip(grads, tangents, strict=True))
    assert expected.abs() > 0.01
    assert_close(slope, expected, **EXACT)


# DReG is defined by its backward pass; and outside torch.func the kernels have no forward mode.
# Either must raise, and not return the zero or the gradient of another estimator.
def test_forward_mode_of_dreg_raises(problem):
    q, ones = tuple(problem.q), tuple(torch.ones_like(t) for t in problem.q)
    with pytest.raises(RuntimeError, match="forward-mode one.*use 'iwae'"):
        torch.func.jvp(lambda *q: problem.iwlb("dreg", q=q), q, ones)


@pytest.mark.parametrize("name", [*LOSSES, "dreg"])
def test_forward_mode_outside_torch_func_raises(problem, name):
    run = LOSSES.get(name, lambda problem, q: problem.iwlb("dreg", q=q))
    with torch.autograd.forward_ad.dual_level():
        q = [torch.autograd.forward_ad.make_dual(t, torch.ones_like(t)) for t in problem.q]
        with pytest.raises((RuntimeError, NotImplementedError), match="jvp|forward"):
            run(problem, q)
