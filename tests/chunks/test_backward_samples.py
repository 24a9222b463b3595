"""Few samples backward: the exact value, and in the mean over all choices the whole gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from few_setting import (
    DISCRETE,
    DOUBLE,
    FEATURES,
    KEY,
    LOSSES,
    OBJECTIVES,
    K,
    check_unbiased,
    gradient_of,
    layered,
    named,
    some_data,
    vae,
)
from torch import Tensor, nn
from torch.distributions import Bernoulli, Gamma, Independent, Normal

import fastvi
from fastvi import distributions, objectives
from fastvi.objectives import Draws, Latent


# ---- every face ---------------------------------------------------------------------------------
@named(LOSSES)
def test_a_loss_has_the_whole_gradient_in_the_mean(monkeypatch: pytest.MonkeyPatch, name: str):
    model, x = vae(), some_data()

    def run(**options) -> tuple[Tensor, ...]:
        return gradient_of(model, model.loss(x, LOSSES[name](**options), key=KEY))

    check_unbiased(monkeypatch, run)


@named(OBJECTIVES)
def test_an_objective_over_drawn_latents(monkeypatch: pytest.MonkeyPatch, name: str):
    model, x = vae(), some_data()

    def run(**options) -> tuple[Tensor, ...]:
        return gradient_of(model, model.loss(x, OBJECTIVES[name](**options), key=KEY))

    check_unbiased(monkeypatch, run)


@named(OBJECTIVES)
def test_an_objective_over_given_latents(monkeypatch: pytest.MonkeyPatch, name: str):
    """Samples that are there already, of a family that no kernel draws."""
    x = some_data().sum(-1)
    weight = nn.Parameter(torch.tensor([0.3, 0.8], dtype=DOUBLE))
    scale = nn.Parameter(torch.tensor(0.7, dtype=DOUBLE))

    def run(**options) -> tuple[Tensor, ...]:
        torch.manual_seed(4)
        q = Gamma((weight[0] * x).exp(), weight[1].expand(2))
        z = Latent.draw("z", q, K, path=True)
        p = Gamma(torch.ones((), dtype=DOUBLE), 1.0)
        bound = OBJECTIVES[name](**options).bound(
            [z], lambda v: {"z": p, "x": Normal(scale * v["z"], 0.5).log_prob(x)}
        )
        loss = -bound.mean()
        return loss.detach(), *torch.autograd.grad(loss, [weight, scale])

    check_unbiased(monkeypatch, run)


@named(DISCRETE)
@pytest.mark.parametrize("kinds", [
    pytest.param(kinds, id=" ".join(kinds), marks=() if quick else pytest.mark.slow)
    for kinds, quick in [(("bernoulli", "gaussian"), True), (("categorical", "bernoulli"), False),
                         (("gaussian", "bernoulli"), True), (("poisson", "bernoulli"), False)]
])  # fmt: skip
def test_layers(monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str], name: str):
    model, x = layered(*kinds), some_data()

    def run(**options) -> tuple[Tensor, ...]:
        return gradient_of(model, model.loss(x, DISCRETE[name](**options), key=KEY))

    check_unbiased(monkeypatch, run)


@named(["dreg", "iwae", "rws", "piwae"])
@pytest.mark.parametrize("kinds", [("gaussian", "gaussian"), ("laplace", "gaussian")], ids=" ".join)
def test_reparameterised_layers(monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str], name: str):
    model, x = layered(*kinds), some_data()

    def run(**options) -> tuple[Tensor, ...]:
        return gradient_of(model, model.loss(x, LOSSES[name](**options), key=KEY))

    check_unbiased(monkeypatch, run)


GUIDES: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda h: Independent(Normal(h, h.mul(0.1).exp()), 1),
    "rows of normals": lambda h: distributions.Normal(h.sum(-1), h[:, 0].mul(0.1).exp()),
    "laplace": lambda h: distributions.Independent(distributions.Laplace(h, h.exp()), 1),
    "gamma": lambda h: Independent(Gamma(h.exp(), h.exp()), 1),
    "bits": lambda h: distributions.Independent(distributions.Bernoulli(logits=h), 1),
    "torch's bits": lambda h: Independent(Bernoulli(logits=h), 1),
    "classes": lambda h: distributions.Categorical(logits=h),
}


@pytest.mark.parametrize("kind", GUIDES)
def test_svi_with_a_network_guide(monkeypatch: pytest.MonkeyPatch, kind: str):
    x = some_data(3)
    torch.manual_seed(2)
    weight = nn.Parameter(torch.randn(FEATURES, 2, dtype=DOUBLE))
    scale = nn.Parameter(torch.randn((), dtype=DOUBLE))

    def model(z: Tensor, x: Tensor) -> Tensor:
        z = z.to(DOUBLE)
        z = z.sum(-1) if z.ndim == 3 else z
        return -((scale * z - x.sum(-1)) ** 2)

    discrete = kind in ("bits", "torch's bits", "classes")

    def run(**options) -> tuple[Tensor, ...]:
        torch.manual_seed(6)
        weight.grad = scale.grad = None
        objective = objectives.VIMCO(K, **options) if discrete else objectives.IWLB(K, **options)
        optimizer = torch.optim.SGD([weight, scale], lr=0.0)
        svi = fastvi.SVI(model, lambda x: GUIDES[kind](x @ weight), optimizer, objective)
        loss = svi.step(x)
        return loss.detach(), weight.grad, scale.grad

    check_unbiased(monkeypatch, run)


def test_svi_with_latents_of_all_the_data(monkeypatch: pytest.MonkeyPatch):
    x = some_data(3)
    guide = fastvi.guides.MeanFieldGaussian({"a": (), "b": (2,)}).double()

    def model(z: Any, x: Tensor) -> Any:
        at = z["a"][:, None] + z["b"].sum(-1, keepdim=True)
        return {
            "a": Normal(0.0, 1.0), "b": Independent(Normal(torch.zeros(2), 1.0), 1),
            "x": Normal(at, 1.0).log_prob(x.sum(-1)),
        }  # fmt: skip

    def run(**options) -> tuple[Tensor, ...]:
        torch.manual_seed(6)
        guide.zero_grad()
        svi = fastvi.SVI(
            model, guide, torch.optim.SGD(guide.parameters(), lr=0.0),
            objectives.IWLB(K, **options),
        )  # fmt: skip
        loss = svi.step(x)
        return loss.detach(), *(p.grad for p in guide.parameters())

    check_unbiased(monkeypatch, run)


def test_draws_of_a_user_in_ranges(monkeypatch: pytest.MonkeyPatch):
    """What cannot be drawn by number is drawn as all samples."""
    loc = nn.Parameter(torch.randn(3, 2, dtype=DOUBLE))
    noise = torch.randn(K, 3, 2, dtype=DOUBLE)

    def function(count: int, begin: int | Tensor) -> list[Latent]:
        assert isinstance(begin, int)
        z = loc + noise[begin : begin + count]
        q = Independent(Normal(loc, 1.0), 1)
        return [Latent("z", z, q.log_prob(z), parents=())]

    def run(**options) -> tuple[Tensor, ...]:
        bound = objectives.IWLB(K, **options).bound(
            Draws(function), lambda v: -((v["z"] - 1) ** 2).sum(-1)
        )
        return bound.sum().detach(), *torch.autograd.grad(bound.sum(), [loc])

    check_unbiased(monkeypatch, run)
