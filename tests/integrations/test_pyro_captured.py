"""Pyro programs in chunks of samples that use tensors with a graph of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

DOUBLE = torch.float64
DATA, LATENT = 5, 2


def loss_of(features: Tensor, decode: Callable[[Tensor], Tensor], elbo: Trace_IWLB) -> Tensor:
    """Model and guide close over features that were computed before."""

    def model() -> None:
        with pyro.plate("data", len(features)):
            unit = features.new_ones(len(features), LATENT)
            z = pyro.sample("z", dist.Normal(0.1 * features, unit).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=features.detach() + 1)

    def guide() -> None:
        with pyro.plate("data", len(features)):
            pyro.sample("z", dist.Normal(features, features.exp()).to_event(1))

    torch.manual_seed(3)
    return elbo.differentiable_loss(model, guide)


def made() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    leaf = 0.3 * torch.randn(DATA, LATENT, dtype=DOUBLE, generator=generator)
    return leaf.requires_grad_(), leaf.tanh()


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("estimator", ["dreg", "iwae", "stl", "rws"])
def test_a_captured_tensor_gets_its_gradient(estimator: str):
    results = []
    for chunk_size in (None, 7, 3):
        leaf, features = made()
        loss = loss_of(features, torch.sin, Trace_IWLB(7, estimator, chunk_size=chunk_size))
        results.append(torch.autograd.grad(loss, (features, leaf)))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_hooks_of_a_captured_tensor_run_once():
    results = []
    for chunk_size in (None, 3):
        leaf, features = made()
        features.retain_grad()
        seen: list[Tensor] = []
        features.register_hook(lambda grad, seen=seen: seen.append(grad) or grad.clamp(-0.1, 0.1))
        loss_of(features, torch.sin, Trace_IWLB(7, chunk_size=chunk_size)).backward()
        assert len(seen) == 1
        results.append([seen[0], features.grad, leaf.grad])
    assert_same(results[1], results[0])


@pytest.mark.slow
def test_compiled_decoder():
    """A compiled graph goes backward once, and gives its buffers away."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, LATENT)).double()
        run = torch.compile(decoder, backend="aot_eager") if compiled else decoder
        leaf, features = made()

        def decode(z: Tensor, run=run, features=features) -> Tensor:
            return run(z + features)

        loss_of(features, decode, Trace_IWLB(7, chunk_size=3)).backward()
        results.append([leaf.grad, *(p.grad for p in decoder.parameters())])
    assert_same(results[1], results[0])
