"""Trace_IWLB on an autoencoder: the drop-in loss's numbers, in chunks, as a module, with SVI."""

from __future__ import annotations

import copy
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastvi

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import SVI, RenyiELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormal, init_to_median  # noqa: E402
from pyro.nn import PyroModule  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

DATA, HIDDEN, LATENT, BATCH = 12, 7, 3, 5
ESTIMATORS = ("dreg", "iwae", "stl", "rws", "rws_dreg")
SETTINGS = [(estimator, 0.0) for estimator in ESTIMATORS]
SETTINGS += [(estimator, alpha) for estimator in ESTIMATORS[:3] for alpha in (0.5, 1.0, -1.0)]
IDS = [f"{estimator}, alpha {alpha:g}" for estimator, alpha in SETTINGS]


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Sequential(
            nn.Linear(DATA, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, DATA))
        self.double()
        self.x = (torch.rand(BATCH, DATA) < 0.4).double()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.encoder(x).chunk(2, -1)
        return loc, log_var

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            standard = dist.Normal(x.new_zeros(len(x), LATENT), 1.0)
            z = pyro.sample("z", standard.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_var = self.encode(x)
            pyro.sample("z", dist.Normal(loc, (0.5 * log_var).exp()).to_event(1))

    def taken(self) -> list[Tensor]:
        grads = [parameter.grad for parameter in self.parameters()]
        self.zero_grad()
        return grads

    def drop_in(self, num_samples: int, estimator: str, alpha: float) -> tuple[float, list[Tensor]]:
        """The same by fastvi.iwlb_loss, with the key that Trace_IWLB draws at this seed."""
        torch.manual_seed(7)
        key = fastvi.ops.new_key()
        loss = fastvi.iwlb_loss(
            *self.encode(self.x),
            lambda z: fastvi.ops.bernoulli_log_prob(self.x, self.decoder(z)),
            num_samples,
            estimator=estimator,
            alpha=alpha,
            key=key,
            reduction="sum",
        )
        loss.backward()
        return loss.item(), self.taken()

    def traced(self, num_samples: int, estimator: str, **options) -> tuple[float, list[Tensor]]:
        torch.manual_seed(7)
        elbo = Trace_IWLB(num_samples, estimator, **options)
        return elbo.loss_and_grads(self.model, self.guide, self.x), self.taken()


def same(ours: tuple[float, list[Tensor]], theirs: tuple[float, list[Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-10)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("estimator,alpha", SETTINGS, ids=IDS)
def test_value_and_gradient_are_those_of_the_drop_in_loss(estimator: str, alpha: float):
    vae = VAE()
    for num_samples in (1, 6):
        expected = vae.drop_in(num_samples, estimator, alpha)
        same(vae.traced(num_samples, estimator, alpha=alpha), expected)
        if num_samples > 1:
            for chunk_size in (1, 4, 6):
                ours = vae.traced(num_samples, estimator, alpha=alpha, chunk_size=chunk_size)
                same(ours, expected)
            same(vae.traced(num_samples, estimator, alpha=alpha, fused=False), expected)


def test_one_sample_at_a_time_for_programs_that_do_not_broadcast():
    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    loss = Trace_IWLB(num_particles=4, vectorize_particles=False).loss_and_grads(
        model, guide, torch.tensor(1.0)
    )
    assert math.isfinite(loss) and pyro.param("loc").grad.abs().sum() > 0
    with pytest.raises(ValueError, match="ran for one sample, but not for 4 at once"):
        Trace_IWLB(4).loss(model, guide, torch.tensor(1.0))


def test_gradients_flow_through_what_the_program_is_called_with():
    """In one piece and in chunks, into a graph that goes on outside of the program."""

    def model(loc: Tensor) -> None:
        pyro.sample("z", dist.Normal(loc, 1.0))

    def guide(loc: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.2 * loc, 1.5))

    grads = []
    for options in ({}, {"chunk_size": 2}):
        torch.manual_seed(0)
        weight = torch.tensor([0.7], requires_grad=True)
        elbo = Trace_IWLB(6, **options)
        loss = elbo.differentiable_loss(model, guide, (2.0 * weight).squeeze())
        (loss + weight.sum()).backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads)
    assert abs(grads[0].item() - 1.0) > 1e-3


def test_the_value_is_the_bound_and_the_seed_governs_it():
    vae = VAE()
    torch.manual_seed(7)
    elbo = Trace_IWLB(6)
    value = elbo.loss(vae.model, vae.guide, vae.x)
    torch.manual_seed(7)
    loss = Trace_IWLB(6).differentiable_loss(vae.model, vae.guide, vae.x)
    assert loss.item() == value == vae.traced(6, "dreg")[0]
    assert elbo.loss(vae.model, vae.guide, vae.x) != value


def test_as_a_module_it_trains_with_any_torch_optimizer_and_can_be_copied():
    class Pair(PyroModule):
        def __init__(self, vae: VAE, method: str) -> None:
            super().__init__()
            self.vae = vae
            self.method = method

        def forward(self, x: Tensor) -> None:
            getattr(self.vae, self.method)(x)

    vae = VAE()
    with pyro.settings.context(module_local_params=True):
        elbo = Trace_IWLB(8)(Pair(vae, "model"), Pair(vae, "guide"))
        assert isinstance(elbo, nn.Module)
        assert {id(p) for p in elbo.parameters()} == {id(p) for p in vae.parameters()}
        optimizer = torch.optim.Adam(elbo.parameters(), lr=0.02)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = elbo(vae.x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) - 30
    assert copy.deepcopy(Trace_IWLB(8)).num_particles == 8
    assert pickle.loads(pickle.dumps(Trace_IWLB(8, "stl"))).estimator == "stl"


@pytest.mark.slow
def test_svi_reaches_the_quality_that_renyi_elbo_reaches():
    held = {}
    for name, loss in {
        "ours": Trace_IWLB(10),
        "theirs": RenyiELBO(alpha=0, num_particles=10, vectorize_particles=True),
    }.items():
        pyro.clear_param_store()
        vae = VAE()
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), loss)
        for _ in range(100):
            svi.step(vae.x)
        torch.manual_seed(3)
        held[name] = Trace_IWLB(500).loss(vae.model, vae.guide, vae.x)
        assert svi.evaluate_loss(vae.x) < 60
    assert held["ours"] < held["theirs"] + 1.0


@pytest.mark.parametrize(
    "estimator,unbiased", [("dreg", True), ("stl", False)], ids=["dreg", "stl"]
)
def test_guides_that_pyro_makes(estimator: str, unbiased: bool):
    """Their latents are auxiliary sites and points made of them; each datum has its parameters."""
    repeats = 20_000

    def model() -> None:
        with pyro.plate("data", repeats):
            scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()).double(), 1.0))
            loc = pyro.sample("loc", dist.Normal(torch.zeros(()).double(), scale))
            pyro.sample("x", dist.Normal(loc, scale), obs=torch.ones(repeats).double())

    grads = []
    for name in (estimator, "iwae"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guide = AutoNormal(model, init_loc_fn=init_to_median(num_samples=1), init_scale=0.4)
        elbo = Trace_IWLB(3, name)
        elbo.loss(model, guide)
        with torch.no_grad():
            for parameter in (guide.locs.scale_unconstrained, guide.locs.loc_unconstrained):
                parameter.fill_(0.3)
        loss = elbo.differentiable_loss(model, guide)
        grads.append(torch.stack(torch.autograd.grad(loss, list(guide.parameters()))))
    ours, plain = grads
    error = ((ours.var(1) + plain.var(1)) / repeats).sqrt()
    distance = ((ours.mean(1) - plain.mean(1)) / error).abs()
    assert (distance.max() < 4) if unbiased else (distance.max() > 8)


@pytest.mark.slow
def test_the_example_trains_alike_in_all_its_ways():
    """The fused distributions give the same training, seed for seed; the bound is as good."""
    pytest.importorskip("sklearn")
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, root / "examples/pyro_vae.py", "--epochs", "1"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    ).stdout
    bounds = [float(x) for x in re.findall(r"held-out L_500 +(-[\d.]+) nats", out)]
    assert len(bounds) == 4
    assert bounds[1] == pytest.approx(bounds[0], abs=0.02)
    assert bounds[3] > bounds[2] - 1.0
