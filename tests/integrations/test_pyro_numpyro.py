"""Trace_IWLB against NumPyro's RenyiELBO: another code base, another autograd."""

from __future__ import annotations

import math

import pytest
import torch

pyro = pytest.importorskip("pyro")
numpyro = pytest.importorskip("numpyro")

import jax  # noqa: E402
import numpyro.distributions as ndist  # noqa: E402
import pyro.distributions as dist  # noqa: E402

from fastvi.integrations.pyro import Trace_IWLB  # noqa: E402

X = torch.tensor([0.4, -1.2, 2.1, 0.3], dtype=torch.float64)
K, REPEATS = 4, 20_000
LOC, SCALE, WEIGHT = 0.3, 0.8, 0.7


def ours(alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Bounds, and gradients by loc, scale and weight, of REPEATS copies of a global latent."""
    parameters = [
        torch.full((REPEATS,), value, dtype=torch.float64, requires_grad=True)
        for value in (LOC, SCALE, WEIGHT)
    ]
    loc, scale, weight = parameters

    def model() -> None:
        with pyro.plate("copies", REPEATS):
            t = pyro.sample("t", dist.Normal(torch.zeros(()).double(), 1.0))
            fn = dist.Normal((weight * t)[..., None], 1.0).expand([*t.shape, len(X)]).to_event(1)
            pyro.sample("x", fn, obs=X.expand(REPEATS, len(X)))

    def guide() -> None:
        with pyro.plate("copies", REPEATS):
            pyro.sample("t", dist.Normal(loc, scale))

    elbo = Trace_IWLB(K, "iwae", alpha=alpha, max_plate_nesting=1)
    loss = elbo.differentiable_loss(model, guide)
    return loss.detach() / REPEATS, torch.stack(torch.autograd.grad(loss, parameters))


def theirs(alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = X.numpy()

    def model(parameters):
        t = numpyro.sample("t", ndist.Normal(0.0, 1.0))
        numpyro.sample(
            "x", ndist.Normal(parameters["weight"] * t, 1.0).expand([4]).to_event(1), obs=x
        )

    def guide(parameters):
        numpyro.sample("t", ndist.Normal(parameters["loc"], parameters["scale"]))

    elbo = numpyro.infer.RenyiELBO(alpha=alpha, num_particles=K)
    parameters = {"loc": LOC, "scale": SCALE, "weight": WEIGHT}

    def loss(values, key):
        return elbo.loss(key, {}, lambda: model(values), lambda: guide(values))

    keys = jax.random.split(jax.random.PRNGKey(0), REPEATS)
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(parameters, keys)
    stacked = [torch.tensor(grads[name].tolist()) for name in ("loc", "scale", "weight")]
    return torch.tensor(values.tolist()), torch.stack(stacked)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5], ids=lambda alpha: f"alpha {alpha:g}")
def test_bound_and_gradient_agree_in_expectation(alpha: float):
    loss, grads = ours(alpha)
    other_loss, other_grads = theirs(alpha)
    # The two means of REPEATS draws each: ours has the spread of theirs.
    error = other_loss.std() * math.sqrt(2 / REPEATS)
    assert abs(loss - other_loss.mean()) < 4 * error
    error = ((grads.var(1) + other_grads.var(1)) / REPEATS).sqrt()
    assert ((grads.mean(1) - other_grads.mean(1)).abs() / error).max() < 4
    # The bound and the ELBO are well apart at this precision.
    assert abs(ours(1.0)[0] - other_loss.mean()) > 8 * other_loss.std() / math.sqrt(REPEATS)
