"""Deeper VAEs under SVI, and their divergences in closed form."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hierarchical_settings import belief_network, gaussian_pair, linear, mixture
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import fastvi
from fastvi.objectives import ELBO, IWLB, VIMCO, Objective, Reinforce

Adam = functools.partial(torch.optim.Adam, lr=0.02)


def top_down() -> fastvi.HierarchicalVAE:
    """A guide in the model's order: every divergence has a closed form given what is above."""
    return fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer("gaussian", 2, guide=linear(3, 4), name="top"),
            fastvi.StochasticLayer("gaussian", 2, guide=linear(5, 4), model=linear(2, 4),
                                   name="low", guide_inputs=("x", "top"), model_inputs=("top",)),
        ],
        linear(2, 3), decoder_inputs=("low",),
    )  # fmt: skip


def data(n: int = 5) -> Tensor:
    return torch.rand(n, 3, dtype=torch.float64).round()


def law(output: Tensor) -> Normal:
    loc, log_var = output.chunk(2, -1)
    return Normal(loc, (0.5 * log_var).exp())


@pytest.mark.parametrize("objective", [ELBO, Reinforce], ids=["ELBO", "Reinforce"])
def test_closed_forms_given_the_layers_above(objective):
    network, x = top_down(), data()
    top, low = network.layers
    key = torch.tensor([1, 2])
    drawn = network.draw(x, 4, key=key)
    h = drawn["top"].value
    inputs = torch.cat([x.expand(4, 5, 3), h], -1)
    of_top = kl_divergence(law(top.guide(x)), Normal(0.0, 1.0)).sum(-1)
    of_low = kl_divergence(law(low.guide(inputs)), law(low.model(h))).sum(-1)
    log_p = fastvi.ops.bernoulli_log_prob(x, network.decoder(drawn["low"].value))
    expected = (log_p - of_low).mean(0) - of_top
    got = network.bound(x, objective(4, kl="analytic"), key=key)
    torch.testing.assert_close(got, expected)
    parameters = list(network.parameters())
    pairs = zip(*(torch.autograd.grad(b.sum(), parameters) for b in (got, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("build", [belief_network, mixture, gaussian_pair, top_down],
                         ids=["belief network", "mixture", "chain", "top down"])  # fmt: skip
def test_closed_forms_change_no_mean(build):
    """A prior that a later layer moves has none: taking one all the same is another number."""
    torch.manual_seed(5)
    network = build()
    x = torch.rand(1, 3 if build is top_down else 2, dtype=torch.float64).round()
    objective = ELBO if build in (gaussian_pair, top_down) else Reinforce
    with torch.no_grad():
        rows = x.expand(40_000, -1)
        sampled = network.bound(rows, objective(1, kl="monte_carlo"))
        closed = network.bound(rows, objective(1, kl="auto"))
    slack = 4 * (sampled.std() + closed.std()) / 200
    assert abs((sampled.mean() - closed.mean()).item()) < slack
    # Fewer terms are noise.
    assert closed.std() < 1.01 * sampled.std()


def test_a_layer_without_one_is_named():
    with pytest.raises(ValueError, match=r"none for \['h1'\].*depends on \['h2'\], drawn given it"):
        gaussian_pair().loss(torch.rand(4, 2).double(), ELBO(4, kl="analytic"))


def vae() -> fastvi.VAE:
    return fastvi.VAE(linear(3, 4), linear(2, 3))


NETWORKS = [
    pytest.param(vae, IWLB(4), id="VAE, IWLB"),
    pytest.param(vae, ELBO(4, kl="analytic"), id="VAE, ELBO"),
    pytest.param(top_down, IWLB(4), id="two Gaussian layers, IWLB"),
    pytest.param(top_down, ELBO(4, estimator="stl"), id="two Gaussian layers, ELBO"),
    pytest.param(lambda: belief_network(features=3), VIMCO(4), id="bits, VIMCO"),
    pytest.param(lambda: belief_network(features=3), Reinforce(4), id="bits, Reinforce"),
]


@pytest.mark.parametrize(("build", "objective"), NETWORKS)
def test_svi_takes_the_step_of_the_loss(build, objective: Objective):
    network, x = build(), data()
    model, guide = network.as_model_and_guide()
    svi = fastvi.SVI(model, guide, functools.partial(torch.optim.SGD, lr=0.0), objective)
    assert {id(p) for p in svi.optimized()} == {id(p) for p in network.parameters()}
    torch.manual_seed(1)
    value = svi.step((x, torch.zeros(5)))
    grads = [p.grad.clone() for p in network.parameters()]
    torch.manual_seed(1)
    if isinstance(network, fastvi.VAE):
        kind = fastvi.IWLBLoss(4) if isinstance(objective, IWLB) else fastvi.ELBOLoss(4)
        loss = network.loss(x, kind)
    else:
        loss = network.loss(x, objective)
    torch.testing.assert_close(value, -5 * loss.detach())
    expected = torch.autograd.grad(loss, list(network.parameters()))
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)


class Stop(Exception):
    """In place of a kill."""


@pytest.mark.slow
@pytest.mark.parametrize(("build", "objective"), NETWORKS[2:5:2])
def test_a_run_that_goes_on(build, objective: Objective, tmp_path: Path):
    x = data(20)

    def run(path: Path, stop: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        network = build()
        model, guide = network.as_model_and_guide()
        svi = fastvi.SVI(model, guide, Adam, objective)
        step, steps = svi.step, []

        def stopping(batch):
            if len(steps) == stop:
                raise Stop
            steps.append(1)
            return step(batch)

        svi.step = stopping
        try:
            history = svi.fit(x, 3, batch_size=5, checkpoint=path, checkpoint_every=1, resume=True)
            assert len(history) == 3
        except Stop:
            pass
        return network

    whole = run(tmp_path / "whole.pt")
    run(tmp_path / "parts.pt", stop=6)
    resumed = run(tmp_path / "parts.pt")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("build", [vae, lambda: belief_network(features=3)], ids=["VAE", "deep"])
def test_data_outside_the_support(build):
    """Refused where the likelihood looks, in both."""
    network, x = build(), data() + 0.5
    network.likelihood = fastvi.BernoulliLikelihood(validate_args=True)
    with pytest.raises(ValueError, match=r"value to lie in \[0, 1\]|value to be in \[0, 1\]"):
        network.log_weights(x, 2)
    with pytest.raises(ValueError, match="expected a batch with the data x"):
        network.as_model_and_guide()[1].latents((), 3)
