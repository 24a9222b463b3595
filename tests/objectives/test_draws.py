"""Samples that are drawn when they are wanted: the numbers of all at once, in a chunk's memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvi
from fastvi import distributions, objectives
from fastvi.objectives import Draws, Latent

GAUSSIAN = {
    "iwlb, dreg": lambda **o: objectives.IWLB(12, "dreg", **o),
    "iwlb, iwae": lambda **o: objectives.IWLB(12, "iwae", **o),
    "iwlb, stl": lambda **o: objectives.IWLB(12, "stl", **o),
    "wake-sleep": lambda **o: objectives.IWLB(12, "rws", **o),
    "piwae": lambda **o: objectives.PIWAE(3, 4, **o),
    "jackknife": lambda **o: objectives.Jackknife(12, **o),
}
BITS = {
    "vimco": lambda **o: objectives.VIMCO(12, **o),
    "wake-sleep": lambda **o: objectives.IWLB(12, "rws", **o),
    "miwae": lambda **o: objectives.MIWAE(3, 4, estimator="iwae", **o),
}


def network_guide(weight: Tensor, kind: str):
    def gaussian(x: Tensor) -> Independent:
        return Independent(Normal(x @ weight, (0.3 * x @ weight).exp()), 1)

    def bits(x: Tensor) -> distributions.Independent:
        return distributions.Independent(distributions.Bernoulli(logits=x @ weight), 1)

    return gaussian if kind == "gaussian" else bits


def step(make, kind: str, **options) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(3)
    x = torch.randn(5, 3, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    scale = nn.Parameter(torch.randn(2, dtype=torch.float64))
    svi = fastvi.SVI(
        lambda z, x: -((z * scale - x[..., :2]) ** 2).sum(-1),
        network_guide(weight, kind), torch.optim.SGD([weight, scale], lr=0.0), make(**options),
    )  # fmt: skip
    return svi.step(x), [weight.grad, scale.grad]


@pytest.mark.parametrize("chunk_size", [1, 5, 12], ids=lambda n: f"{n} at a time")
@pytest.mark.parametrize(
    "kind,name",
    [("gaussian", name) for name in GAUSSIAN] + [("bits", name) for name in BITS],
    ids=lambda part: part,
)
def test_a_network_guide_in_chunks_is_that_of_all_samples(kind: str, name: str, chunk_size: int):
    make = (GAUSSIAN if kind == "gaussian" else BITS)[name]
    value, gradients = step(make, kind)
    found, of_chunks = step(make, kind, chunk_size=chunk_size)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_chunks, gradients, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("estimator", ["dreg", "iwae", "rws"])
def test_the_samples_of_all_chunks_are_never_there_together(estimator: str):
    """What is saved for the backward pass, and what is made at any time, does not grow with K."""
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in torch.utils._pytree.tree_leaves(out):
                if isinstance(each, Tensor):
                    largest.append(each.numel())
            return out

    weight = nn.Parameter(torch.randn(3, 4))
    objective = objectives.IWLB(4000, estimator, chunk_size=100)
    svi = fastvi.SVI(
        lambda z, x: -(z.square().sum(-1)),
        network_guide(weight, "gaussian"), torch.optim.SGD([weight], lr=0.0), objective,
    )  # fmt: skip
    with Watch():
        svi.step(torch.randn(6, 3))
    # The samples of a chunk have 100 x 6 x 4 numbers, those of all 40 times as many.
    assert max(largest) <= 100 * 6 * 4


def test_ranges_are_those_of_all():
    q = {"z": Independent(Normal(torch.randn(4, 2), torch.ones(4, 2)), 1),
         "b": distributions.Bernoulli(logits=torch.randn(4))}  # fmt: skip
    draws = Draws.of(q)
    whole, part = draws(9), draws(4, 3)
    for name, all_, some in zip(q, whole, part, strict=True):
        assert all_.name == some.name == name
        assert torch.equal(all_.value[3:7], some.value)
        assert torch.equal(all_.log_q[3:7], some.log_q)


def test_a_family_without_keys_is_drawn_at_once():
    q = torch.distributions.Gamma(torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"Draws: expected .*drawn from a key.*Latent.draw"):
        Draws.of({"z": q})
    svi = fastvi.SVI(
        lambda z: -z, lambda: torch.distributions.Gamma(a := torch.ones(4), a),
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.0),
        objectives.IWLB(6, chunk_size=2),
    )  # fmt: skip
    assert svi.evaluate().isfinite()


def test_a_guide_that_draws_in_its_own_way_is_asked_for_all():
    class Shifted(fastvi.guides.AmortizedGuide):
        def latents(self, data, num_samples, *, path=False):
            (latent,) = super().latents(data, num_samples, path=path)
            return [Latent("z", latent.value, latent.log_q)]

    guide = Shifted(lambda: Independent(Normal(torch.zeros(4, 2), 1.0), 1))
    svi = fastvi.SVI(
        lambda z: -z.square().sum(-1), guide,
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.0),
        objectives.IWLB(6, "iwae", chunk_size=2),
    )  # fmt: skip
    assert not isinstance(svi._samples(None, 6), Draws)
    assert svi.evaluate().isfinite()
