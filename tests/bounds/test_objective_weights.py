"""Wake-sleep and the weights of the path, as functions of log-weights, against exact gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hierarchical_settings import normal_nodes
from test_objectives import Model
from torch import Tensor
from torch.distributions import Normal

from fastvi import objectives
from fastvi.objectives import IWLB, Latent


def wake_sleep(log_w: Tensor, log_q: Tensor) -> Tensor:
    return objectives.reweighted_wake_sleep(log_w, log_q.sum(-1))


def test_wake_sleep_is_its_two_gradients():
    model = Model()
    guide, prior = model.expected(wake_sleep)
    torch.testing.assert_close(prior, model.exact(objectives.iwlb)[1], rtol=0, atol=1e-12)
    log_q = model.log_q().sum(-1)
    log_w = model.log_joint() - log_q
    torch.testing.assert_close(wake_sleep(log_w, model.log_q()), objectives.iwlb(log_w))
    climbed = (log_w.softmax(0).detach() * log_q).sum(0)
    (expected,) = torch.autograd.grad((model.probability().detach() * climbed).sum(), model.guide)
    torch.testing.assert_close(guide, expected, rtol=0, atol=1e-12)


def test_the_wake_phase_rests_at_the_posterior():
    """All weights alike: what is left is the mean score, zero. At another guide it is not."""
    model = Model()
    away = model.expected(wake_sleep)[0]
    model.log_joint = lambda: model.log_q().sum(-1).detach() - 1.3 + 0.0 * model.prior.sum()
    rest = model.expected(wake_sleep)[0]
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-12)
    assert away.abs().max() > 1e-2


# ---- the path: K = 2 normal samples, by quadrature -----------------------------------------------
PAIRS = normal_nodes(80)
NOISE = torch.cartesian_prod(*[torch.cat([node for node, _ in PAIRS])] * 2).T.double()
CHANCE = torch.cartesian_prod(*[torch.tensor([w for _, w in PAIRS]).double()] * 2).prod(1)


def setting() -> tuple[Tensor, Tensor, Tensor]:
    loc = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    return loc, log_scale, loc + log_scale.exp() * NOISE


def log_joint(z: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(z) + Normal(torch.sin(z), 0.9).log_prob(
        torch.tensor(0.3, dtype=torch.float64)
    )


def of_the_path(estimator: str, alpha: float) -> tuple[Tensor, ...]:
    loc, log_scale, z = setting()
    log_w = log_joint(z) - Normal(loc.detach(), log_scale.detach().exp()).log_prob(z)
    weights = objectives.path_weights(log_w, estimator, alpha=alpha)
    assert not weights.requires_grad
    return torch.autograd.grad((CHANCE * (weights * log_w).sum(0)).sum(), (loc, log_scale))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0], ids=lambda a: f"alpha = {a}")
def test_dreg_is_the_gradient_of_the_bound(alpha: float):
    loc, log_scale, z = setting()
    log_w = log_joint(z) - Normal(loc, log_scale.exp()).log_prob(z)
    bound = (CHANCE * objectives.renyi(log_w, alpha)).sum()
    exact = torch.autograd.grad(bound, (loc, log_scale))
    for got, expected in zip(of_the_path("dreg", alpha), exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    if alpha < 1:
        biased = of_the_path("stl", alpha)
        assert max(abs(a - b).item() for a, b in zip(biased, exact, strict=True)) > 1e-3


def test_rws_dreg_is_the_wake_phase():
    loc, log_scale, z = setting()
    z = z.detach()
    log_q = Normal(loc, log_scale.exp()).log_prob(z)
    weights = (log_joint(z) - log_q).softmax(0).detach()
    climbed = (CHANCE * (weights * log_q).sum(0)).sum()
    exact = torch.autograd.grad(climbed, (loc, log_scale))
    for got, expected in zip(of_the_path("rws_dreg", 0.0), exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["dreg", "stl", "rws_dreg"], ids=str)
def test_the_weights_are_those_of_the_objective(estimator: str):
    q = Normal(torch.zeros(5, requires_grad=True), 1.0)
    loc = q.loc
    latent = Latent.draw("z", q, 6, path=True)
    bound = IWLB(6, estimator).bound([latent], lambda z: log_joint(z["z"]))
    (expected,) = torch.autograd.grad(bound.sum(), loc, retain_graph=True)
    log_w = log_joint(latent.value) - latent.log_q_path()
    weights = objectives.path_weights(log_w, estimator)
    (got,) = torch.autograd.grad((weights * log_w).sum(), loc)
    torch.testing.assert_close(got, expected.to(got))


def test_an_impossible_column_has_no_weight():
    log_w = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    torch.testing.assert_close(
        objectives.path_weights(log_w), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    )


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        pytest.param(lambda w: objectives.path_weights(w, "rws"), ValueError, "estimator",
                     id="a score"),
        pytest.param(lambda w: objectives.path_weights(w, "rws_dreg", alpha=0.5), ValueError,
                     "alpha to be 0", id="alpha"),
        pytest.param(lambda w: objectives.path_weights(w[:0]), ValueError, "log_w", id="K = 0"),
        pytest.param(lambda w: objectives.reweighted_wake_sleep(w, w[0]), ValueError, "log_q",
                     id="log_q"),
    ],
)  # fmt: skip
def test_bad_input(call, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        call(torch.zeros(3, 2))
