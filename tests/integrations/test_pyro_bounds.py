"""Bounds of a Pyro program beyond the importance-weighted one, and the size of chunks that fits."""

from __future__ import annotations

from unittest import TestCase

import pytest
import torch
from torch import Tensor

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402

import fastvi  # noqa: E402
from fastvi import objectives  # noqa: E402
from fastvi.chunks import chunk_size  # noqa: E402
from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

X = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)
LOGITS = torch.tensor([0.4, -0.3, 0.2, 0.9, -1.0], dtype=torch.float64)


def bits(x: Tensor, logits: Tensor):
    """A bit and a normal of each datum, the second given the first in guide and model."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            bit = pyro.sample("bit", dist.Bernoulli(torch.tensor(0.3).double()))
            z = pyro.sample("z", dist.Normal(bit, 1.0))
            pyro.sample("x", dist.Normal(z + bit, 0.7), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            bit = pyro.sample("bit", dist.Bernoulli(logits=logits))
            pyro.sample("z", dist.Normal(x / 2 + bit / 3, 0.8))

    return model, guide


def gradient(elbo: Trace_IWLB) -> tuple[Tensor, Tensor]:
    logits = LOGITS.clone().requires_grad_()
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(*bits(X, logits), X)
    loss.backward()
    return loss.detach(), logits.grad


SAME = {
    "one group is VIMCO": (fastvi.MIWAELoss(6, 1, estimator="iwae"), objectives.VIMCO(6)),
    "one group of all is VIMCO": (fastvi.PIWAELoss(6, 1, estimator="iwae"), objectives.VIMCO(6)),
    "nothing of the ELBO": (fastvi.CIWAELoss(6, 0.0, estimator="iwae"), objectives.VIMCO(6)),
    "all of the ELBO": (
        fastvi.CIWAELoss(6, 1.0, estimator="iwae"), objectives.Reinforce(6, "leave_one_out"),
    ),
    "the ELBO of score functions": (
        objectives.ELBO(6), objectives.Reinforce(6, "leave_one_out"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("one,other", SAME.values(), ids=SAME)
def test_bounds_that_are_the_same_credit_bits_alike(one, other):
    found, expected = gradient(Trace_IWLB(objective=one)), gradient(Trace_IWLB(objective=other))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_bits_under_a_jackknife_are_refused():
    with pytest.raises(
        ValueError,
        match="Jackknife: expected every latent to be reparameterised.*use objectives.VIMCO",
    ):
        gradient(Trace_IWLB(objective=fastvi.JackknifeLoss(6, "iwae")))


def test_reinforce_without_a_baseline_has_the_same_mean():
    """Its signal is the log-weight itself: more noise, no bias."""
    torch.manual_seed(0)
    means = []
    for baseline in (None, "leave_one_out"):
        elbo = Trace_IWLB(objective=objectives.Reinforce(4000, baseline))
        means.append(gradient(elbo)[1])
    # A standard error of signals below 10 nats and scores below 1, of 4000 samples.
    torch.testing.assert_close(*means, rtol=0, atol=4 * 10 / 4000**0.5)


def test_chunks_of_the_size_that_fits():
    """A few samples are tried; a small budget makes several chunks, of the same bound."""
    chunk_size._said.clear()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5).double(), 1.0))
            wide = (z[..., None] * torch.linspace(0.0, 1.0, 200).double()).tanh().sum(-1)
            pyro.sample("x", dist.Normal(wide, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.7).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale))

    def step(elbo: Trace_IWLB) -> tuple[float, Tensor]:
        pyro.clear_param_store()
        torch.manual_seed(4)
        loss = elbo.loss_and_grads(model, guide, X)
        return loss, pyro.get_param_store()._params["scale"].grad

    with TestCase().assertLogs("fastvi", "INFO") as said:
        elbo = Trace_IWLB(64, chunk_size="auto", memory_budget=300_000)
        found = [step(elbo) for _ in range(2)]
    (message,) = said.output
    size = int(message.split("took ")[1].split()[0])
    assert 1 <= size < 32
    expected = step(Trace_IWLB(64))
    for each in found:
        torch.testing.assert_close(each, expected, rtol=1e-10, atol=1e-12)
