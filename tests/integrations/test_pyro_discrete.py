"""Trace_IWLB with sites that cannot be reparameterised: unbiased, by enumeration of their outcomes.

Each column of a plate is one outcome of all samples, forced upon the guide, and is weighed by its
probability. The gradient of the loss is then the expected gradient of the estimator.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastvi.ops import iwlb

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from pyro.infer import SVI, TraceEnum_ELBO, config_enumerate  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

K = 3
OUTCOMES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=K)), dtype=torch.float64).T
COLUMNS = OUTCOMES.shape[1]
NOISE = torch.randn(K, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
NAMES = ("logit", "slope", "loc", "coupling", "tilt")


class ForcedBernoulli(dist.Bernoulli):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return OUTCOMES[: self.batch_shape[0] if len(self.batch_shape) > 1 else 1].squeeze(0)


class ForcedNormal(dist.Normal):
    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + self.scale * NOISE[: self.batch_shape[0]]


class Mixed:
    """A bit and a number, in either order in the guide."""

    def __init__(self, bit_first: bool) -> None:
        self.bit_first = bit_first
        self.parameters = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in zip(NAMES, (0.4, -0.3, 0.6, 0.8, -0.5), strict=True)
        }

    def laws(self, bit: Tensor | None = None, z: Tensor | None = None):
        logit, slope, loc, _, _ = self.parameters.values()
        if self.bit_first:
            p_bit = logit.expand(1)
            z_loc = loc + slope * bit if bit is not None else None
        else:
            p_bit = logit + slope * z if z is not None else None
            z_loc = loc.expand(1)
        return p_bit, z_loc

    def guide(self) -> None:
        one = torch.ones((), dtype=torch.float64)
        with pyro.plate("outcomes", COLUMNS):
            if self.bit_first:
                bit = pyro.sample("bit", ForcedBernoulli(logits=self.laws()[0]))
                pyro.sample("z", ForcedNormal(self.laws(bit=bit)[1], one))
            else:
                z = pyro.sample("z", ForcedNormal(self.laws()[1], one))
                pyro.sample("bit", ForcedBernoulli(logits=self.laws(z=z)[0]))

    def model(self) -> None:
        _, _, _, coupling, tilt = self.parameters.values()
        one = torch.ones((), dtype=torch.float64)
        with pyro.plate("outcomes", COLUMNS):
            bit = pyro.sample("bit", dist.Bernoulli(logits=tilt))
            z = pyro.sample("z", dist.Normal(0.0 * one, one))
            pyro.sample("x", dist.Normal(coupling * bit * z + z, one), obs=1.5 * one)

    def log_weights(self) -> tuple[Tensor, Tensor]:
        """log w and log q(bit), (K, outcomes), at the forced bits and noise."""
        _, _, _, coupling, tilt = self.parameters.values()
        one = torch.ones((), dtype=torch.float64)
        if self.bit_first:
            p_bit, z_loc = self.laws(bit=OUTCOMES)
            z = z_loc + NOISE
        else:
            _, z_loc = self.laws()
            z = z_loc + NOISE
            p_bit, _ = self.laws(z=z)
        log_bit = dist.Bernoulli(logits=p_bit.expand(K, COLUMNS)).log_prob(OUTCOMES)
        log_q = log_bit + dist.Normal(z_loc, one).log_prob(z)
        log_p = dist.Bernoulli(logits=tilt).log_prob(OUTCOMES) + dist.Normal(
            0.0 * one, one
        ).log_prob(z)
        log_p = log_p + dist.Normal(coupling * OUTCOMES * z + z, one).log_prob(1.5 * one)
        return log_p - log_q, log_bit

    def exact(self, alpha: float) -> tuple[Tensor, ...]:
        log_w, log_bit = self.log_weights()
        expected = (log_bit.sum(0).exp() * iwlb(log_w, alpha=alpha)).sum()
        return torch.autograd.grad(expected, list(self.parameters.values()))

    def estimated(self, elbo: Trace_IWLB) -> tuple[Tensor, ...]:
        probability = self.log_weights()[1].sum(0).exp().detach()
        model = poutine.scale(self.model, scale=probability)
        guide = poutine.scale(self.guide, scale=probability)
        loss = elbo.differentiable_loss(model, guide)
        grads = torch.autograd.grad(-loss, list(self.parameters.values()), allow_unused=True)
        return tuple(torch.zeros(()).double() if grad is None else grad for grad in grads)


@pytest.mark.parametrize("bit_first", [True, False], ids=["bit above", "number above"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0], ids=lambda alpha: f"alpha {alpha:g}")
def test_the_mixed_estimator_is_unbiased(bit_first: bool, alpha: float):
    mixed = Mixed(bit_first)
    elbo = Trace_IWLB(K, "iwae", alpha=alpha, max_plate_nesting=1)
    for ours, exact in zip(mixed.estimated(elbo), mixed.exact(alpha), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)
    # The control: without the score of the bit the gradient is another.
    log_w, _ = mixed.log_weights()
    probability = mixed.log_weights()[1].sum(0).exp().detach()
    path = (probability * iwlb(log_w, alpha=alpha)).sum()
    (logit,) = torch.autograd.grad(path, [mixed.parameters["logit"]])
    assert abs(logit - mixed.exact(alpha)[0]) > 1e-3


def test_the_wake_phase_needs_no_derivative_of_any_sample():
    """Its expected gradient: sum_k v_k grad log q(z_k) at fixed samples, bits and numbers alike."""
    mixed = Mixed(True)
    ours = mixed.estimated(Trace_IWLB(K, "rws", max_plate_nesting=1))
    log_w, log_bit = mixed.log_weights()
    probability = log_bit.sum(0).exp().detach()
    weight = (probability * log_w.softmax(0)).detach()
    z = (mixed.laws(bit=OUTCOMES)[1] + NOISE).detach()
    log_z = dist.Normal(mixed.laws(bit=OUTCOMES)[1], torch.ones(()).double()).log_prob(z)
    guide = [mixed.parameters[name] for name in NAMES[:3]]
    expected = torch.autograd.grad((weight * (log_bit + log_z)).sum(), guide)
    for a, b in zip(ours[:3], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ["dreg", "stl", "rws_dreg"])
def test_an_estimator_that_needs_derivatives_names_the_site_without_one(estimator: str):
    mixed = Mixed(True)
    with pytest.raises(
        ValueError, match=r"estimator '.*', got site 'bit' of .*use estimator='iwae'"
    ):
        Trace_IWLB(K, estimator).differentiable_loss(mixed.model, mixed.guide)


def test_chunks_of_discrete_sites_have_the_gradient_of_all():
    """With the noise of one seed, all at once is another draw; so the chunks' own log-weights."""

    def model() -> None:
        with pyro.plate("data", 3):
            bit = pyro.sample("bit", dist.Bernoulli(torch.full((), 0.3).double()))
            pyro.sample("x", dist.Normal(bit, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]).double())

    logit = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64, requires_grad=True)
    drawn: list[Tensor] = []

    def guide() -> None:
        with pyro.plate("data", 3):
            drawn.append(pyro.sample("bit", dist.Bernoulli(logits=logit)))

    elbo = Trace_IWLB(7, "iwae", chunk_size=3, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, guide)
    # The first of them is that of the run for one sample.
    bits = torch.cat([bit.reshape(-1, 3) for bit in drawn[1:]])
    assert bits.shape == (7, 3)
    (ours,) = torch.autograd.grad(loss, logit)
    law = dist.Bernoulli(logits=logit)
    log_q = law.log_prob(bits)
    log_w = (
        dist.Bernoulli(torch.full((), 0.3).double()).log_prob(bits)
        + dist.Normal(bits, 1.0).log_prob(torch.tensor([0.0, 1.0, 2.0]).double())
        - log_q
    )
    from fastvi.objectives import vimco

    expected = -vimco(log_w, log_q).sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, logit)[0])


@pytest.mark.slow
def test_a_mixture_is_learned_as_by_enumeration():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40) - 2.0, torch.randn(60) + 2.0])

    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        share = pyro.param("share", torch.tensor([0.0, 0.0]))
        with pyro.plate("data", len(x)):
            of = pyro.sample("of", dist.Categorical(logits=share))
            pyro.sample("x", dist.Normal(locs[of], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.zeros(2))
        with pyro.plate("data", len(x)):
            logits = torch.stack([-slope[0] * x + slope[1], slope[0] * x - slope[1]], -1)
            pyro.sample("of", dist.Categorical(logits=logits))

    found = {}
    for name, guide_, loss in (
        ("ours", guide, Trace_IWLB(8, "iwae")),
        ("exact", config_enumerate(guide), TraceEnum_ELBO(max_plate_nesting=1)),
    ):
        pyro.clear_param_store()
        svi = SVI(model, guide_, pyro.optim.Adam({"lr": 0.05}), loss)
        for _ in range(200):
            svi.step(x)
        found[name] = pyro.param("locs").detach().clone()
    torch.testing.assert_close(found["ours"], found["exact"], atol=0.15, rtol=0.0)
