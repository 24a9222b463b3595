"""A whole training step of Pyro's VAE on binary images, with the program left as it is.

784-200-200-50 with tanh, in Pyro's own way: ``pyro.module``, a plate of data, Bernoulli pixels from
logits. A step clears the gradients and calls the objective's ``loss_and_grads``; the optimiser is
left out. ``eager`` is Pyro alone; validation is on, as Pyro has it, or off for the providers that
say so.

- ``pyro_vae_iwlb``: ``Trace_IWLB`` (the plain IWAE gradient, and DReG) against ``RenyiELBO``;
- ``pyro_vae_elbo``: Pyro's ``Trace_ELBO`` under ``accelerate()`` against the same without;
- ``pyro_vae_probs``: as the first, with the sigmoid and the probabilities of Pyro's tutorial.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from torch import Tensor, nn

from benchmarks.ops.iwae_step import FASTVI_DREG, LATENT, Networks
from benchmarks.work import Case, Run, normal_draw

UNCHECKED = ", no validation"
IWLB, ELBO, PROBS = "pyro_vae_iwlb", "pyro_vae_elbo", "pyro_vae_probs"
NAMES = (IWLB, ELBO, PROBS)


class Program(nn.Module):
    """A VAE as a Pyro user writes it."""

    def __init__(self, networks: Networks, probs: bool) -> None:
        super().__init__()
        self.networks = networks
        self.probs = probs

    def model(self, x: Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        pyro.module("decoder", self.networks.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], LATENT), x.new_ones(x.shape[0], LATENT)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            logits = self.networks.decoder(z)
            pixels = dist.Bernoulli(logits.sigmoid()) if self.probs else _of_logits(logits)
            pyro.sample("obs", pixels.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        pyro.module("encoder", self.networks.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_var = self.networks.encode(x)
            pyro.sample("latent", dist.Normal(loc, (0.5 * log_var).exp()).to_event(1))


def _of_logits(logits: Tensor) -> Any:
    import pyro.distributions as dist

    return dist.Bernoulli(logits=logits)


class PyroVae:
    """A training step of the program as a piece of work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.providers: tuple[str, ...] = ("fastvi", "eager")
        if name != ELBO:
            self.providers += (FASTVI_DREG,)
        if name != PROBS:
            self.providers += ("fastvi" + UNCHECKED, "eager" + UNCHECKED)

    def objective(self, provider: str, num_samples: int) -> Any:
        from pyro.infer import RenyiELBO, Trace_ELBO

        from fastvi.integrations.pyro import Trace_IWLB

        vectorized = functools.partial(
            Trace_ELBO if self.name == ELBO else RenyiELBO,
            num_particles=num_samples,
            vectorize_particles=True,
        )
        if self.name == ELBO or provider.startswith("eager"):
            return vectorized()
        return Trace_IWLB(num_samples, "dreg" if provider == FASTVI_DREG else "iwae")

    def runs(self, provider: str, case: Case) -> dict[str, Run]:
        import pyro

        from fastvi.integrations.pyro import accelerate

        logging.getLogger("pyro").setLevel(logging.WARNING)
        pyro.clear_param_store()
        pyro.enable_validation(UNCHECKED not in provider)
        if self.name == ELBO and provider.startswith("fastvi"):
            # As a user does: once, for the whole of a program.
            accelerate()
        networks = Networks().to(case.device, case.torch_dtype)
        program = Program(networks, self.name == PROBS)
        normal = normal_draw(case, seed=0)
        x = (normal(case.sizes["B"], networks.encoder[0].in_features) > 0).to(case.torch_dtype)
        elbo = self.objective(provider, case.sizes["K"])

        def run() -> None:
            networks.zero_grad(set_to_none=True)
            elbo.loss_and_grads(program.model, program.guide, x)

        return {"": run}

    def num_bytes(self, case: Case) -> int | None:
        return None


PYRO_VAES = tuple(PyroVae(name) for name in NAMES)
