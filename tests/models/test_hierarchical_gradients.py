"""Gradients of deeper VAEs, by enumeration and quadrature: nothing here is sampled."""

from __future__ import annotations

import pytest
import torch
from hierarchical_settings import (
    AllDraws,
    belief_network,
    gaussian_pair,
    gaussian_then_class,
    mixture,
)
from torch import nn

import fastvi
from fastvi import objectives
from fastvi.models.hierarchical.drawn import Drawn
from fastvi.models.hierarchical.families import FAMILIES
from fastvi.ops import gaussian_log_prob

X = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


class Baseline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x).squeeze(-1)


def worst(ours, expected) -> float:
    size = max(part.abs().max().item() for part in expected)
    pairs = zip(ours, expected, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs) / size


ENUMERATED = [
    pytest.param(lambda: objectives.VIMCO(2), objectives.iwlb, id="VIMCO"),
    pytest.param(lambda: objectives.Reinforce(2), objectives.elbo, id="Reinforce"),
    pytest.param(
        lambda: objectives.Reinforce(2, baseline="leave_one_out"),
        objectives.elbo,
        id="Reinforce, leave one out",
    ),
    pytest.param(
        lambda: objectives.Reinforce(2, baseline=Baseline()), objectives.elbo, id="a network"
    ),
]
DISCRETE = [
    pytest.param(belief_network, 1, id="belief network"),
    pytest.param(mixture, 6, id="class, then Gaussian"),
    pytest.param(gaussian_then_class, 6, id="Gaussian, then class"),
]


@pytest.mark.parametrize(("build", "points"), DISCRETE)
@pytest.mark.parametrize(("objective", "bound"), ENUMERATED)
def test_unbiased_with_discrete_layers(build, points, objective, bound, monkeypatch):
    """Sums over the discrete draws; the total derivative of Gaussian ones holds node by node."""
    torch.manual_seed(1)
    draws = AllDraws(build(), X, points)
    expected = draws.exact_gradient(monkeypatch, bound)
    assert worst(draws.mean_gradient(monkeypatch, objective()), expected) < 1e-10


def test_three_samples_of_a_belief_network(monkeypatch):
    torch.manual_seed(2)
    draws = AllDraws(belief_network(), X, num_samples=3)
    expected = draws.exact_gradient(monkeypatch, objectives.iwlb)
    assert worst(draws.mean_gradient(monkeypatch, objectives.VIMCO(3)), expected) < 1e-10


def test_the_mean_weight_is_the_evidence(monkeypatch):
    """Under the guide, whatever it is; against the sum over all latents of the joint."""
    torch.manual_seed(3)
    network = belief_network((2, 2))
    draws = AllDraws(network, X, num_samples=1)
    log_w = draws.run(monkeypatch, lambda: network.log_weights(draws.x, 1))
    evidence = (draws.probability(monkeypatch) * log_w.exp().squeeze(0)).sum()
    values = dict(zip(network.names, draws.draws, strict=True))
    joint = sum(network.log_joint(draws.x, values).values())
    torch.testing.assert_close(evidence, joint.exp().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("build", [belief_network, mixture], ids=["belief network", "mixture"])
def test_a_signal_holds_what_depends_on_the_layer(build, monkeypatch):
    """All terms in every signal: as unbiased, and other numbers."""
    torch.manual_seed(4)
    draws = AllDraws(build(), X, 8, num_samples=1)
    sampled = objectives.Reinforce(1, kl="monte_carlo")
    ours = draws.run(monkeypatch, lambda: draws.network.bound(draws.x, sampled))
    log_w = draws.run(monkeypatch, lambda: draws.network.log_weights(draws.x, 1))
    torch.testing.assert_close(ours, log_w.squeeze(0), rtol=1e-12, atol=1e-12)
    if build is mixture:
        return  # one discrete layer, the first: all terms depend on it
    drawn = draws.run(monkeypatch, lambda: draws.network.draw(draws.x, 1))
    terms = draws.network.log_joint(draws.x, {n: d.value for n, d in drawn.items()})
    top = terms["h1"] + terms["h2"] - drawn["h2"].log_q
    # One by one, not in the mean.
    weight = torch.randn(len(ours), dtype=torch.float64)
    guide = draws.network.layers[1].guide.weight
    (got,) = torch.autograd.grad((weight * ours).sum(), guide, retain_graph=True)
    # The weights' own graph is built anew for the functional form.
    log_w = sum(terms.values()) - drawn["h1"].log_q - drawn["h2"].log_q
    expected = objectives.reinforce(
        log_w, [drawn["h1"].log_q, drawn["h2"].log_q], downstream=[log_w, top]
    )
    (want,) = torch.autograd.grad((weight * expected).sum(), guide)
    torch.testing.assert_close(got, want)


# ---- generalised DReG ---------------------------------------------------------------------------
POINTS = 20


@pytest.fixture(scope="module")
def two_gaussians():
    torch.manual_seed(5)
    draws = AllDraws(gaussian_pair(), X, POINTS)
    with pytest.MonkeyPatch.context() as patch:
        expected = draws.exact_gradient(patch, objectives.iwlb)
    return draws, expected


def test_total_derivative(two_gaussians, monkeypatch):
    draws, expected = two_gaussians
    ours = draws.mean_gradient(monkeypatch, objectives.IWLB(2, "iwae"))
    assert worst(ours, expected) < 1e-12


def test_dreg_is_unbiased(two_gaussians, monkeypatch):
    """To the accuracy of the quadrature: 8e-6 with 16 nodes, 7e-7 with 20, 3e-7 with 24."""
    draws, expected = two_gaussians
    assert worst(draws.mean_gradient(monkeypatch, objectives.IWLB(2, "dreg")), expected) < 2e-6


def test_dreg_without_the_indirect_score_is_biased(two_gaussians, monkeypatch):
    """The square of the weight on each layer's own path: the score of the second by the first."""
    draws, expected = two_gaussians

    def direct(drawn: Drawn):
        loc, log_var = (part.detach() for part in drawn.given)
        return gaussian_log_prob(drawn.value, loc, log_var=log_var)

    monkeypatch.setattr(Drawn, "log_q_path", direct)
    assert worst(draws.mean_gradient(monkeypatch, objectives.IWLB(2, "dreg")), expected) > 1e-3


@pytest.mark.slow
def test_stl_is_unbiased_for_the_elbo_alone(two_gaussians, monkeypatch):
    draws, expected = two_gaussians
    assert worst(draws.mean_gradient(monkeypatch, objectives.IWLB(2, "stl")), expected) > 1e-3
    elbo = draws.exact_gradient(monkeypatch, objectives.elbo)
    ours = draws.mean_gradient(monkeypatch, objectives.ELBO(2, "monte_carlo", estimator="stl"))
    assert worst(ours, elbo) < 1e-6


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(gaussian_pair, id="two Gaussians"),
        pytest.param(gaussian_then_class, id="Gaussian, then class"),
        pytest.param(belief_network, id="belief network"),
    ],
)
def test_the_wake_phase_holds_all_samples(build):
    """Each layer ascends the weighted log q of its samples, whatever layer they are given."""
    torch.manual_seed(6)
    network, key = build(), torch.tensor([3, 4])
    guides = [p for layer in network.layers for p in layer.guide.parameters()]
    bound = network.bound(X, objectives.IWLB(5, "rws"), key=key).sum()
    ours = torch.autograd.grad(bound, guides)
    with torch.no_grad():
        values = [d.value for d in network.draw(X, 5, key=key).values()]
        weights = network.log_weights(X, 5, key=key).softmax(0)
    log_q = torch.zeros_like(weights)
    for layer, inputs, value in zip(network.layers, [X, values[0]], values, strict=True):
        given = layer.parameters_of("guide", layer.guide(inputs), where="")
        log_q = log_q + FAMILIES[layer.family].log_prob(value, given)
    torch.testing.assert_close(ours, torch.autograd.grad((weights * log_q).sum(), guides))


DISCRETE_UNDER_DREG = [
    pytest.param(belief_network, "h1", id="belief network"),
    pytest.param(mixture, "class", id="mixture"),
]


@pytest.mark.parametrize("estimator", ["dreg", "stl", "iwae"])
@pytest.mark.parametrize(("build", "name"), DISCRETE_UNDER_DREG)
def test_discrete_layers_have_no_path(build, name, estimator):
    words = rf"expected latent '{name}' to be reparameterised.*VIMCO or Reinforce"
    with pytest.raises(ValueError, match=words):
        build().loss(X, objectives.IWLB(4, estimator))


def test_dropout_draws_one_mask():
    """The indirect score comes from the graph of the samples, not from a second run."""
    torch.manual_seed(0)
    guide = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4))
    runs = []
    guide.register_forward_hook(lambda *_: runs.append(1))
    layers = [
        fastvi.StochasticLayer("gaussian", 3, guide=nn.Linear(5, 6), model=nn.Linear(2, 6)),
        fastvi.StochasticLayer("gaussian", 2, guide=guide),
    ]
    network = fastvi.HierarchicalVAE(layers, nn.Linear(3, 5))
    network.loss(torch.rand(7, 5).round(), objectives.IWLB(4)).backward()
    assert len(runs) == 1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
