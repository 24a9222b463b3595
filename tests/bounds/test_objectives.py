"""Objectives for latents that cannot be reparameterised, against enumeration of small models.

A guide of two binary latents and K = 3 samples have 64 outcomes: expectations are sums over them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from fastvi import objectives
from fastvi.objectives.score_function import vimco_signal

LATENTS, SAMPLES = 2, 3
STATES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=LATENTS)), dtype=torch.float64)
OUTCOMES = torch.tensor(list(itertools.product(range(len(STATES)), repeat=SAMPLES))).T
Z = STATES[OUTCOMES]  # [K, outcomes, latents]
LOG_LIKELIHOOD = torch.tensor([-1.0, -3.0, -0.5, -4.0], dtype=torch.float64)

Bound = Callable[[Tensor], Tensor]
Estimator = Callable[[Tensor, Tensor], Tensor]


class Model:
    """A guide over bits and a prior over states; every outcome is a column of a batch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.guide = torch.randn(LATENTS, dtype=torch.float64, generator=generator)
        self.prior = torch.randn(len(STATES), dtype=torch.float64, generator=generator)
        self.parameters = [self.guide.requires_grad_(), self.prior.requires_grad_()]

    def log_q(self, guide: Tensor | None = None) -> Tensor:
        """[K, outcomes, latents]."""
        guide = self.guide if guide is None else guide
        return torch.where(Z > 0, logsigmoid(guide), logsigmoid(-guide))

    def log_joint(self) -> Tensor:
        return (self.prior.log_softmax(0) + LOG_LIKELIHOOD)[OUTCOMES]

    def probability(self) -> Tensor:
        return self.log_q().sum((0, 2)).exp()

    def exact(self, bound: Bound) -> tuple[Tensor, ...]:
        """The gradient of the expected bound."""
        log_w = self.log_joint() - self.log_q().sum(-1)
        return torch.autograd.grad((self.probability() * bound(log_w)).sum(), self.parameters)

    def expected(self, estimator: Estimator) -> tuple[Tensor, ...]:
        """The expected gradient of an estimator."""
        log_q = self.log_q()
        value = estimator(self.log_joint() - log_q.sum(-1), log_q)
        return torch.autograd.grad((self.probability().detach() * value).sum(), self.parameters)

    def variance(self, estimator: Estimator) -> float:
        """The variance of the guide's gradient, summed over its parameters."""
        guide = self.guide.detach().expand(OUTCOMES.shape[1], -1).clone().requires_grad_()
        log_q = self.log_q(guide)
        value = estimator(self.log_joint().detach() - log_q.sum(-1), log_q)
        (grad,) = torch.autograd.grad(value.sum(), guide)
        p = self.probability().detach()[:, None]
        return ((p * grad**2).sum(0) - (p * grad).sum(0) ** 2).sum().item()


def seen_before() -> nn.Module:
    average = objectives.DecayingAverage()
    average(torch.tensor(-3.0))
    return average.eval()


CASES: dict[str, tuple[Bound, Estimator]] = {
    "vimco": (objectives.iwlb, lambda w, q: objectives.vimco(w, q.sum(-1))),
    "no baseline": (objectives.elbo, lambda w, q: objectives.reinforce(w, q.sum(-1))),
    "leave one out": (
        objectives.elbo,
        lambda w, q: objectives.reinforce(w, q.sum(-1), baseline="leave_one_out"),
    ),
    "decaying average": (
        objectives.elbo,
        lambda w, q: objectives.reinforce(w, q.sum(-1), baseline=seen_before()),
    ),
    "constant": (
        objectives.elbo,
        lambda w, q: objectives.reinforce(
            w, q.sum(-1), baseline=torch.full((w.shape[1],), -2.7, dtype=torch.float64)
        ),
    ),
    "two latents": (
        objectives.elbo,
        lambda w, q: objectives.reinforce(
            w, [q[..., 0], q[..., 1]], downstream=[w, w], baseline="leave_one_out"
        ),
    ),
    # The second latent's score need not carry what the first alone decides: its own -log q.
    "downstream": (
        objectives.elbo,
        lambda w, q: objectives.reinforce(
            w, [q[..., 0], q[..., 1]], downstream=[w, w + q[..., 0].detach()]
        ),
    ),
}


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "_"))
def test_unbiased(name: str):
    bound, estimator = CASES[name]
    model = Model()
    for actual, exact in zip(model.expected(estimator), model.exact(bound), strict=True):
        torch.testing.assert_close(actual, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES, ids=lambda name: name.replace(" ", "_"))
def test_the_value_is_the_bound(name: str):
    bound, estimator = CASES[name]
    model = Model()
    log_q = model.log_q()
    log_w = model.log_joint() - log_q.sum(-1)
    torch.testing.assert_close(estimator(log_w, log_q), bound(log_w), rtol=0, atol=1e-12)


# The control: a score left out is a bias that the measure sees.
def test_without_the_score_it_is_biased():
    model = Model()
    pathless = model.expected(lambda w, q: objectives.iwlb(w))[0]
    assert (pathless - model.exact(objectives.iwlb)[0]).abs().max() > 1e-2


def plain_multi_sample(log_w: Tensor, log_q: Tensor) -> Tensor:
    bound = objectives.iwlb(log_w)
    score = (bound.detach() * log_q.sum(-1)).sum(0)
    return bound + score - score.detach()


def test_less_noisy_than_plain_reinforce():
    """The numbers of docs/design.md: 21 and 3.3 times less variance in this model."""
    model = Model()
    vimco = model.variance(CASES["vimco"][1]) / model.variance(plain_multi_sample)
    assert vimco < 0.1
    none = model.variance(CASES["no baseline"][1])
    assert model.variance(CASES["leave one out"][1]) / none < 0.5


def test_vimco_signal_by_definition():
    log_w = 2.0 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    expected = []
    for k in range(len(log_w)):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        stand_in = torch.cat([others, others.mean(0, keepdim=True)])
        expected.append(log_w.logsumexp(0) - stand_in.logsumexp(0))
    torch.testing.assert_close(vimco_signal(log_w), torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [30.0, 1e5], ids=lambda gap: f"{gap:g} nats")
def test_vimco_where_one_weight_dominates(gap: float):
    log_w = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) - 90.0
    log_w[2] += gap
    assert vimco_signal(log_w).isfinite().all()


def test_a_network_baseline_learns_the_signal():
    """Its squared error trains in the same backward, and the bound's value does not see it."""
    torch.manual_seed(0)
    model = Model()
    baseline = nn.Linear(1, 1).double()
    ones = torch.ones(OUTCOMES.shape[1], 1, dtype=torch.float64)
    optimiser = torch.optim.Adam(baseline.parameters(), lr=0.1)
    log_q = model.log_q().detach()
    log_w = (model.log_joint() - log_q.sum(-1)).detach()
    errors = []
    for _ in range(200):
        optimiser.zero_grad()
        predicted = baseline(ones)[:, 0]
        value = objectives.reinforce(log_w, log_q.sum(-1), baseline=predicted)
        torch.testing.assert_close(value, objectives.elbo(log_w))
        (-value.mean()).backward()
        optimiser.step()
        errors.append((predicted - log_w).square().mean().item())
    assert errors[-1] < 0.6 * errors[0]
    assert math.isclose(baseline(ones[:1]).item(), log_w.mean().item(), abs_tol=0.1)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        pytest.param(lambda: objectives.iwlb([1.0]), TypeError, "log_w", id="list"),
        pytest.param(lambda: objectives.elbo(torch.ones(0, 2)), ValueError, "log_w", id="K = 0"),
        pytest.param(
            lambda: objectives.jackknife(torch.ones(1, 2)), ValueError, "log_w", id="jackknife"
        ),
        pytest.param(
            lambda: objectives.miwae(torch.ones(3)), ValueError, "log_w", id="miwae of one dim"
        ),
        pytest.param(
            lambda: objectives.vimco(torch.ones(3, 2), torch.ones(3)), ValueError, "log_q",
            id="log_q shape",
        ),
        pytest.param(
            lambda: objectives.reinforce(torch.ones(3, 2), torch.ones(3, 2), baseline="mean"),
            ValueError, "baseline", id="unknown baseline",
        ),
        pytest.param(
            lambda: objectives.ciwae(torch.ones(3, 2), 2.0), ValueError, "beta", id="beta"
        ),
    ],
)  # fmt: skip
def test_bad_input(call: Callable[[], object], error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        call()


def test_an_impossible_sample_leaves_a_ciwae_no_direction():
    log_w = torch.tensor([[0.0], [-math.inf], [1.0]], requires_grad=True)
    bound = objectives.ciwae(log_w, 0.5)
    assert bound.item() == -math.inf
    assert torch.autograd.grad(bound.sum(), log_w)[0].count_nonzero() == 0
