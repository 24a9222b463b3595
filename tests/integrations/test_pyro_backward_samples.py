"""Few samples backward in Pyro: of every kind of site, in the mean over all choices."""

from __future__ import annotations

import pytest
import torch
from choices import mean_over_choices
from quick import quick_in
from torch import Tensor

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro.infer.autoguide import AutoMessenger  # noqa: E402

import fastvi  # noqa: E402
from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

DOUBLE = torch.float64
K = 6
X = torch.tensor([[0.3, -1.0], [1.4, 0.2]], dtype=DOUBLE)


def one(x: float) -> Tensor:
    return torch.tensor(x, dtype=DOUBLE)


def model(x: Tensor, kind: str) -> None:
    weight = pyro.param("weight", one(0.7))
    shared = pyro.sample("shared", dist.Normal(one(0.0), 1.0)) if kind == "global" else 0.0
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1))
        mean = weight * z
        if kind == "plain":
            mean = mean + pyro.sample("u", dist.Normal(one(0.0).expand(len(x)), 1.0))[..., None]
        if kind == "gamma":
            mean = mean * pyro.sample("s", dist.Gamma(one(2.0).expand(len(x)), 1.0))[..., None]
        if kind == "bits":
            mean = mean + pyro.sample("b", dist.Bernoulli(one(0.3).expand(len(x))))[..., None]
        if kind == "layers":
            mean = pyro.sample("w", dist.Normal(mean, 1.0).to_event(1))
        shared = shared[..., None] if isinstance(shared, Tensor) and shared.ndim else shared
        pyro.sample("x", dist.Normal(mean + shared, 0.5).to_event(1), obs=x)


def guide(x: Tensor, kind: str) -> None:
    slope, scale = pyro.param("slope", one(0.5)), pyro.param("scale", one(0.6))
    if kind == "global":
        pyro.sample("shared", dist.Normal(slope, scale))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(slope * x, scale).to_event(1))
        if kind == "plain":
            pyro.sample("u", dist.Normal(slope * x[:, 0], scale))
        if kind == "gamma":
            pyro.sample("s", dist.Gamma(2 * scale.exp(), one(1.0).expand(len(x))))
        if kind == "bits":
            pyro.sample("b", dist.Bernoulli(logits=slope * x[:, 0]))
        if kind == "layers":
            pyro.sample("w", dist.Normal(slope * z, scale).to_event(1))


def step(elbo: Trace_IWLB, kind: str) -> tuple[Tensor, ...]:
    pyro.clear_param_store()
    torch.manual_seed(3)
    loss = elbo.loss_and_grads(model, guide, X, kind)
    store = pyro.get_param_store()._params
    grads = [store[name].grad for name in sorted(store)]
    return one(loss), *(g for g in grads if g is not None)


CASES = [
    (kind, estimator)
    for kind in ("normal", "plain", "gamma", "layers", "global")
    for estimator in ("dreg", "iwae", "stl", "rws")
] + [("bits", "iwae"), ("bits", "rws")]


@pytest.mark.parametrize("chunk_size", quick_in({"None": None, "4": 4}, "4"))
@pytest.mark.parametrize(
    ("kind", "estimator"),
    quick_in(
        {"-".join(case): case for case in CASES},
        *(f"normal-{estimator}" for estimator in ("dreg", "iwae", "stl", "rws")),
        *("gamma-dreg", "layers-dreg", "layers-rws", "global-dreg", "bits-iwae", "bits-rws"),
    ),
)
def test_whole_gradient_in_the_mean(
    monkeypatch: pytest.MonkeyPatch, kind: str, estimator: str, chunk_size: int | None
):
    # Sites that no key draws have other numbers in chunks, and with few samples at once.
    whole = step(Trace_IWLB(K, estimator, chunk_size=chunk_size or K), kind)
    few = Trace_IWLB(K, estimator, chunk_size=chunk_size, backward_samples=2)
    mean, number = mean_over_choices(monkeypatch, lambda: step(few, kind))
    assert number > 1
    for found, expected in zip(mean, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("few", [1, 3, "auto"], ids=str)
def test_value_and_mean_of_other_settings(monkeypatch: pytest.MonkeyPatch, few: int | str):
    growth = {"variance_growth": 3.0} if few == "auto" else {}
    whole = step(Trace_IWLB(K, chunk_size=K), "normal")
    elbo = Trace_IWLB(K, backward_samples=few, **growth)
    mean, _ = mean_over_choices(monkeypatch, lambda: step(elbo, "normal"))
    for found, expected in zip(mean, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["vimco", "piwae", "jackknife"])
def test_objectives_bring_their_setting(monkeypatch: pytest.MonkeyPatch, name: str):
    make, kind = {
        "vimco": (lambda **o: fastvi.objectives.VIMCO(K, **o), "bits"),
        "piwae": (lambda **o: fastvi.objectives.PIWAE(3, 2, **o), "normal"),
        "jackknife": (lambda **o: fastvi.objectives.Jackknife(K, **o), "normal"),
    }[name]
    whole = step(Trace_IWLB(objective=make(chunk_size=K)), kind)
    elbo = Trace_IWLB(objective=make(backward_samples=2))
    mean, _ = mean_over_choices(monkeypatch, lambda: step(elbo, kind))
    for found, expected in zip(mean, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_guide_that_runs_the_model_is_refused():
    class Messenger(AutoMessenger):
        def get_posterior(self, name: str, prior: dist.Distribution) -> dist.Distribution:
            return dist.Normal(pyro.param("loc", one(0.0)), 1.0)

    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(one(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    elbo = Trace_IWLB(K, "iwae", backward_samples=2)
    with pytest.raises(ValueError, match="backward_samples to be None .* messenger"):
        elbo.loss_and_grads(program, Messenger(program), X[:, 0])


def test_bad_settings():
    with pytest.raises(ValueError, match="Trace_IWLB: expected backward_samples"):
        Trace_IWLB(K, backward_samples=0)
    with pytest.raises(ValueError, match="without weights"):
        Trace_IWLB(K, alpha=1.0, backward_samples=2)
    with pytest.raises(ValueError, match="backward_samples to be given to the objective"):
        Trace_IWLB(objective=fastvi.objectives.IWLB(K), backward_samples=2)
