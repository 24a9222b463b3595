"""Coefficients of zero beside infinities, and score functions at impossible samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvi
from fastvi import objectives, ops

inf = math.inf
t = torch.tensor


# ---- a weight of zero ----------------------------------------------------------------------------
@pytest.mark.parametrize("chunk_size", [None, 1, 2], ids=["whole", "ones", "twos"])
@pytest.mark.parametrize("kl", ["analytic", "monte_carlo"])
@pytest.mark.parametrize("log_var", [0.0, 89.0, 170.0, -300.0])
def test_a_divergence_without_weight(log_var: float, kl: str, chunk_size: int | None):
    """What is left is minus the mean of log p(x given z), and its gradient."""
    key = t([3, 1])
    loc = t([[1.0, 2.0]], requires_grad=True)
    spread = torch.full((1, 2), log_var, requires_grad=True)

    def log_likelihood(z: Tensor) -> Tensor:
        return -(1e-20 * z).square().sum(-1)

    loss = fastvi.elbo_loss(
        loc, spread, log_likelihood, 4, kl=kl, beta=0.0, key=key, chunk_size=chunk_size
    )
    z = ops.gaussian_rsample(loc, log_var=spread, num_samples=4, key=key)[0]
    expected = -log_likelihood(z).mean()
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, (loc, spread))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (loc, spread)))


@pytest.mark.parametrize("event_dims", [0, 1])
@pytest.mark.parametrize("shared", [False, True], ids=["of each", "shared"])
def test_nothing_comes_back_from_where_nothing_is_sent(shared: bool, event_dims: int):
    """The derivative of an impossible sample is infinite, and its weight is zero."""
    scale = torch.full((5,) if shared else (3, 5), 1e-30, requires_grad=True)
    x = torch.zeros(3, 5)
    x[1] = 1e20
    loc = torch.zeros(3, 5, requires_grad=True)
    log_prob = ops.gaussian_log_prob(x, loc, scale=scale, event_dims=event_dims)
    assert (log_prob[1] == -inf).all()
    sent = torch.ones_like(log_prob)
    sent[1] = 0.0
    by_loc, by_scale = torch.autograd.grad(log_prob, (loc, scale), sent)
    assert (by_loc == 0).all()
    expected = torch.full_like(scale, -2e30) if shared else sent.reshape(3, -1) * -1e30
    torch.testing.assert_close(by_scale, expected.expand_as(by_scale), rtol=1e-5, atol=0)


# ---- score functions -----------------------------------------------------------------------------
WEIGHTS = {
    "all possible": [[0.0], [1.0], [-2.0]],
    "one impossible": [[0.0], [-inf], [1.0]],
    "one possible": [[0.0], [-inf], [-inf]],
    "none possible": [[-inf], [-inf], [-inf]],
    "two samples": [[0.5], [-inf]],
}
BOUNDS: dict[str, tuple[Any, Any]] = {
    "vimco": (objectives.vimco, lambda k: objectives.VIMCO(k)),
    "reinforce": (objectives.reinforce, lambda k: objectives.Reinforce(k)),
    "reinforce, leave one out": (
        lambda log_w, log_q: objectives.reinforce(log_w, log_q, baseline="leave_one_out"),
        lambda k: objectives.Reinforce(k, baseline="leave_one_out"),
    ),
    "wake sleep": (
        objectives.reweighted_wake_sleep,
        lambda k: objectives.IWLB(k, "rws"),
    ),
}


def of_function(function: Any, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_q = torch.zeros_like(log_w).requires_grad_()
    log_p = log_w.clone().requires_grad_()
    bound = function(log_p - log_q, log_q)
    return bound.detach(), *torch.autograd.grad(bound.sum(), (log_p, log_q))


def of_class(objective: Any, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_q = torch.zeros_like(log_w).requires_grad_()
    log_p = log_w.clone().requires_grad_()
    value = torch.zeros(*log_w.shape)
    latent = objectives.Latent("b", value, log_q, reparameterised=False)
    bound = objective.bound([latent], lambda z: log_p)
    return bound.detach(), *torch.autograd.grad(bound.sum(), (log_p, log_q))


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("name", BOUNDS.keys(), ids=BOUNDS.keys())
def test_functions_of_impossible_samples_are_the_classes(name: str, weights: list[list[float]]):
    function, objective = BOUNDS[name]
    log_w = t(weights)
    ours, theirs = of_function(function, log_w), of_class(objective(len(log_w)), log_w)
    torch.testing.assert_close(ours, theirs)
    assert not any(x.isnan().any() for x in ours)
    linear = name.startswith("reinforce")
    expected = log_w.mean(0) if linear else log_w.logsumexp(0) - math.log(len(log_w))
    torch.testing.assert_close(ours[0], expected)


@pytest.mark.parametrize("name", BOUNDS.keys(), ids=BOUNDS.keys())
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_they_are_the_same_under_transforms(name: str, weights: list[list[float]]):
    function, log_w = BOUNDS[name][0], t(weights)

    def bound(log_p: Tensor, log_q: Tensor) -> Tensor:
        return function(log_p - log_q, log_q).sum()

    value, *gradients = of_function(function, log_w)
    both = (log_w, torch.zeros_like(log_w))
    torch.testing.assert_close(torch.func.grad(bound, (0, 1))(*both), tuple(gradients))
    many = torch.func.vmap(torch.func.grad_and_value(bound, (0, 1)))(
        *(torch.stack([x, x]) for x in both)
    )
    torch.testing.assert_close(many[1][0], value.sum())
    torch.testing.assert_close(tuple(x[1] for x in many[0]), tuple(gradients))


def test_an_average_forgets_an_impossible_step():
    average = objectives.DecayingAverage(0.5)
    average(t([-4.0]))
    average(t([-inf]))
    assert average(t([-4.0])).item() == -4.0


def test_a_learned_prior_beside_an_impossible_sample():
    """Under transforms too the density of the samples is what it is."""
    key, loc = t([1, 2]), torch.full((1, 1), 1e25)
    prior = (torch.zeros(1), torch.zeros(1))

    def loss(prior_loc: Tensor) -> Tensor:
        return fastvi.iwlb_loss(
            loc,
            torch.zeros(1, 1),
            lambda z: 0.0 * z.sum(-1),
            4,
            estimator="dreg",
            key=key,
            prior=(prior_loc, prior[1]),
        )

    assert loss(prior[0]).item() == inf
    assert torch.func.vmap(loss)(prior[0][None]).item() == inf
