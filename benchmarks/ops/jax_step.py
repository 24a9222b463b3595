"""The training step of :mod:`benchmarks.ops.iwae_step` in JAX and in NumPyro, jitted as a whole.

Both are optional: without the packages the suite leaves the two providers out, and says so.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

from torch import Tensor, nn

from benchmarks.work import Run

JAX, NUMPYRO = "jax", "numpyro"
Layers = list[tuple[Any, Any]]


def why_missing(provider: str, device: str) -> str | None:
    """Return why a provider cannot be measured here; None if it can."""
    if provider not in (JAX, NUMPYRO):
        return None
    if device != "cpu":
        return "compared on a CPU alone"
    found = all(importlib.util.find_spec(name) for name in {JAX, provider})
    return None if found else f"not installed; pip install {provider}"


def jax_runs(
    provider: str, encoder: nn.Sequential, decoder: nn.Sequential, x: Tensor, num_samples: int
) -> dict[str, Run]:
    """The step of a provider: value and gradient by all weights, under a key of its own each time.

    The last layer of the encoder returns loc and log_var, joined.
    """
    import jax

    params = {"encoder": layers_of(encoder), "decoder": layers_of(decoder)}
    make = jax_loss if provider == JAX else numpyro_loss
    loss = make(jax.numpy.asarray(x.numpy()), num_samples)
    step = jax.jit(jax.value_and_grad(lambda params, key: loss(params, jax.random.PRNGKey(key))))
    calls = 0

    def run() -> object:
        nonlocal calls
        calls += 1
        return jax.block_until_ready(step(params, calls))

    return {"": run}


def layers_of(network: nn.Sequential) -> Layers:
    import jax.numpy as jnp

    return [
        (jnp.asarray(layer.weight.detach().numpy().T), jnp.asarray(layer.bias.detach().numpy()))
        for layer in network
        if isinstance(layer, nn.Linear)
    ]


def perceptron(layers: Layers, h: Any) -> Any:
    import jax.numpy as jnp

    for weight, bias in layers[:-1]:
        h = jnp.tanh(h @ weight + bias)
    weight, bias = layers[-1]
    return h @ weight + bias


def jax_loss(x: Any, num_samples: int) -> Any:
    import jax
    import jax.numpy as jnp

    def loss(params: Any, key: Any) -> Any:
        loc, log_var = jnp.split(perceptron(params["encoder"], x), 2, -1)
        eps = jax.random.normal(key, (num_samples, *loc.shape))
        z = loc + jnp.exp(0.5 * log_var) * eps
        logits = perceptron(params["decoder"], z)
        log_px = (x * logits - jax.nn.softplus(logits)).sum(-1)
        # The normals' constants cancel.
        log_w = log_px + (-0.5 * z**2 + 0.5 * eps**2 + 0.5 * log_var).sum(-1)
        return -(jax.nn.logsumexp(log_w, 0) - math.log(num_samples)).mean()

    return loss


def numpyro_loss(x: Any, num_samples: int) -> Any:
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import RenyiELBO

    def model(params: Any, x: Any) -> None:
        with numpyro.plate("data", len(x)):
            unit = dist.Normal(jnp.zeros(params["decoder"][0][0].shape[0]), 1.0)
            z = numpyro.sample("z", unit.to_event(1))
            logits = perceptron(params["decoder"], z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(params: Any, x: Any) -> None:
        loc, log_var = jnp.split(perceptron(params["encoder"], x), 2, -1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * log_var)).to_event(1))

    bound = RenyiELBO(alpha=0.0, num_particles=num_samples)

    def loss(params: Any, key: Any) -> Any:
        return bound.loss(key, {}, model, guide, params, x) / len(x)

    return loss
