"""Pyro's transforms in a guide, with log q at held parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
dist = pytest.importorskip("pyro.distributions")
T = pytest.importorskip("pyro.distributions.transforms")

from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

ESTIMATORS = ["dreg", "stl", "rws_dreg"]
X = torch.tensor([[0.5, -0.3], [1.2, 0.4], [-0.7, 0.9]])


def model():
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        w = pyro.sample("w", dist.Normal(z, 1.0).to_event(1))
        pyro.sample("x", dist.Normal(w, 0.5).to_event(1), obs=X)


def guide_of(make):
    """Two layers: w is drawn by the transforms from a base that moves with z."""
    torch.manual_seed(3)
    pyro.clear_param_store()
    first, second = make(), make()
    first._cache_size = second._cache_size = 1

    def guide():
        for name, transform in (("first", first), ("second", second)):
            if isinstance(transform, nn.Module):
                pyro.module(name, transform)
        loc = pyro.param("loc", torch.zeros(2))
        slope = pyro.param("slope", torch.full((2,), 0.6))
        with pyro.plate("data", 3):
            base = dist.Normal(loc, 0.8).expand([3, 2]).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [first]))
            base = dist.Normal(slope * z, 0.9).to_event(1)
            pyro.sample("w", dist.TransformedDistribution(base, [second]))

    return guide


def gradients(guide, estimator: str, num_samples: int = 6, seed: int = 4) -> tuple[float, list]:
    torch.manual_seed(seed)
    loss = Trace_IWLB(num_samples, estimator=estimator).differentiable_loss(model, guide)
    store = pyro.get_param_store()
    own = [store._params[name] for name in sorted(store._params)]
    return loss.item(), list(torch.autograd.grad(loss, own, allow_unused=True))


INVERTIBLE = {
    "coupling": lambda: T.affine_coupling(2),
    "autoregressive": lambda: T.affine_autoregressive(2),
    "matrix": lambda: T.matrix_exponential(2),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", INVERTIBLE)
def test_without_its_inverse_a_transform_has_the_same_gradient(
    name: str, estimator: str, monkeypatch: pytest.MonkeyPatch
):
    guide = guide_of(INVERTIBLE[name])
    value, expected = gradients(guide, estimator)
    kind = type(INVERTIBLE[name]())

    def forgotten(self, y):
        raise KeyError("found no key in the cache")

    for base in (kind, *kind.__mro__):
        if "_inverse" in vars(base) and base.__module__.startswith("pyro"):
            monkeypatch.setattr(base, "_inverse", forgotten)
    again, found = gradients(guide, estimator)
    assert again == pytest.approx(value, rel=1e-5)
    for ours, theirs in zip(found, expected, strict=True):
        # float32, through some hundred operations and the solution of a system of two.
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


ONE_WAY = {
    "planar": lambda: T.planar(2),
    "radial": lambda: T.radial(2),
    "sylvester": lambda: T.sylvester(2),
    "polynomial": lambda: T.polynomial(2),
    "neural": lambda: T.neural_autoregressive(2),
    "block": lambda: T.block_autoregressive(2),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", ONE_WAY)
def test_transforms_that_have_no_inverse_are_guides(name: str, estimator: str):
    guide = guide_of(ONE_WAY[name])
    value, found = gradients(guide, estimator)
    assert torch.isfinite(torch.tensor(value))
    assert any(g is not None and bool(g.abs().max() > 0) for g in found)
    assert all(g is None or bool(g.isfinite().all()) for g in found)


@pytest.mark.slow
def test_the_mean_gradient_of_a_planar_guide_is_the_total_one():
    guide = guide_of(ONE_WAY["planar"])
    many = 300
    drawn = {
        estimator: [gradients(guide, estimator, 2, seed)[1] for seed in range(many)]
        for estimator in ("iwae", "dreg")
    }
    for total, path in zip(zip(*drawn["iwae"], strict=True), zip(*drawn["dreg"], strict=True),
                           strict=True):  # fmt: skip
        total, path = torch.stack(total), torch.stack(path)
        error = ((total.var(0) + path.var(0)) / many) ** 0.5
        assert ((total.mean(0) - path.mean(0)).abs() < 5 * error + 1e-5).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_support_that_moves_is_refused(estimator: str):
    pyro.clear_param_store()

    def guide():
        low = pyro.param("low", torch.zeros(2))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Uniform(low, low + 1).expand([3, 2]).to_event(1))
            pyro.sample("w", dist.Normal(low, 1.0).expand([3, 2]).to_event(1))

    with pytest.raises(ValueError, match="guide site 'z' .*support moves, so the mean of its sc"):
        gradients(guide, estimator)
