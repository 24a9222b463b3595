"""A whole training step of an importance-weighted autoencoder on binary images.

Encoder 784-200-200-(50, 50) and decoder 50-200-200-784 with tanh, as in the paper. A step clears
the gradients and runs forward and backward. The optimiser is left out: it costs every provider the
same, and would only bring the ratios nearer to one. ``fastvi`` joins the decoder and the likelihood
by ``fastvi.log_likelihood``, as ``fastvi.VAE`` does; ``fastvi swapped`` leaves the loop as it was
and swaps the loss alone. All providers but ``fastvi dreg`` take the total gradient of the IWAE
paper. ``networks`` is the same two networks forward and backward under a fixed gradient, with no
sampling and no loss at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

import fastvi
from benchmarks.ops.bernoulli_log_prob import by_hand
from benchmarks.ops.gaussian_rsample import PRIOR, densities
from benchmarks.ops.jax_step import JAX, NUMPYRO, jax_runs
from benchmarks.work import Case, Compile, Function, Run, compilers, normal_draw

DATA, HIDDEN, LATENT = 784, 200, 50
NETWORKS = "networks"
FASTVI_DREG, FASTVI_SWAPPED = "fastvi dreg", "fastvi swapped"


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    )


class Networks(nn.Module):
    """The encoder and the decoder, with the same weights for every provider."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = perceptron(DATA, 2 * LATENT)
        self.decoder = perceptron(LATENT, DATA)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_var = self.encoder(x).chunk(2, -1)
        return loc, log_var


def fastvi_loss(networks: Networks, num_samples: int, estimator: str) -> Callable[[Tensor], Tensor]:
    criterion = fastvi.IWLBLoss(num_samples=num_samples, estimator=estimator)

    def loss(x: Tensor) -> Tensor:
        loc, log_var = networks.encode(x)
        return criterion(loc, log_var, fastvi.log_likelihood(networks.decoder, x))

    return loss


def swapped_loss(networks: Networks, num_samples: int) -> Callable[[Tensor], Tensor]:
    criterion = fastvi.IWLBLoss(num_samples=num_samples, estimator="iwae")

    def loss(x: Tensor) -> Tensor:
        loc, log_var = networks.encode(x)
        return criterion(
            loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(x, networks.decoder(z))
        )

    return loss


def eager_loss(networks: Networks, num_samples: int) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        loc, log_var = networks.encode(x)
        q = Normal(loc, (0.5 * log_var).exp(), validate_args=False)
        z = q.rsample((num_samples,))
        log_px = Bernoulli(logits=networks.decoder(z), validate_args=False).log_prob(x).sum(-1)
        log_w = log_px + PRIOR.log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        return -(log_w.logsumexp(0) - math.log(num_samples)).mean()

    return loss


def cross_entropy(x: Tensor, logits: Tensor) -> Tensor:
    target = x.expand_as(logits)
    return -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def hand_loss(networks: Networks, num_samples: int, log_likelihood: Function) -> Function:
    """The whole step's mathematics in the fewest operations, for the compiler to fuse."""

    def loss(x: Tensor, eps: Tensor) -> Tensor:
        loc, log_var = networks.encode(x)
        z, log_q, log_p = densities(loc, log_var, eps)
        log_w = log_likelihood(x, networks.decoder(z)) + log_p - log_q
        return -(log_w.logsumexp(0) - math.log(num_samples)).mean()

    return loss


def compiled_losses(
    networks: Networks, num_samples: int, compile_: Compile
) -> dict[str, Callable[[Tensor], Tensor]]:
    def draw_noise(x: Tensor) -> Tensor:
        return torch.randn(num_samples, x.shape[0], LATENT, dtype=x.dtype, device=x.device)

    def noise_outside(log_likelihood: Function) -> Callable[[Tensor], Tensor]:
        compiled = compile_(hand_loss(networks, num_samples, log_likelihood))
        return lambda x: compiled(x, draw_noise(x))

    def noise_inside(log_likelihood: Function) -> Callable[[Tensor], Tensor]:
        loss = hand_loss(networks, num_samples, log_likelihood)
        return compile_(lambda x: loss(x, draw_noise(x)))

    return {
        "cross entropy, noise outside": noise_outside(cross_entropy),
        "by hand, noise inside": noise_inside(by_hand),
    }


class IwaeStep:
    """The training step as a piece of work."""

    name = "iwae_step"
    providers = (
        "fastvi", FASTVI_DREG, FASTVI_SWAPPED, "eager", "compile", NETWORKS, JAX, NUMPYRO,
    )  # fmt: skip

    def losses(
        self, provider: str, case: Case, networks: Networks
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        num_samples = case.sizes["K"]
        if provider == "fastvi":
            return {"": fastvi_loss(networks, num_samples, "iwae")}
        if provider == FASTVI_DREG:
            return {"": fastvi_loss(networks, num_samples, "dreg")}
        if provider == FASTVI_SWAPPED:
            return {"": swapped_loss(networks, num_samples)}
        if provider == "eager":
            return {"": eager_loss(networks, num_samples)}
        return {
            name + suffix: loss
            for suffix, compiler in compilers(case.device).items()
            for name, loss in compiled_losses(networks, num_samples, compiler).items()
        }

    def runs(self, provider: str, case: Case) -> dict[str, Run]:
        networks = Networks().to(case.device, case.torch_dtype)
        normal = normal_draw(case, seed=0)
        x = (normal(case.sizes["B"], DATA) > 0).to(case.torch_dtype)
        if provider == NETWORKS:
            z = normal(case.sizes["K"], case.sizes["B"], LATENT).requires_grad_()
            return {"": networks_alone(networks, x, z, normal(*z.shape[:-1], DATA))}
        if provider in (JAX, NUMPYRO):
            return jax_runs(provider, networks.encoder, networks.decoder, x, case.sizes["K"])
        losses = self.losses(provider, case, networks)
        return {name: training_step(networks, loss, x) for name, loss in losses.items()}

    def num_bytes(self, case: Case) -> int | None:
        return None


def training_step(networks: Networks, loss: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    def run() -> None:
        networks.zero_grad(set_to_none=True)
        loss(x).backward()

    return run


def networks_alone(networks: Networks, x: Tensor, z: Tensor, upstream: Tensor) -> Run:
    heads = torch.randn(x.shape[0], LATENT).to(x)
    scaled = upstream / upstream[..., 0].numel()

    def run() -> None:
        networks.zero_grad(set_to_none=True)
        z.grad = None
        loc, log_var = networks.encode(x)
        outputs = [networks.decoder(z), loc, log_var]
        torch.autograd.backward(outputs, [scaled, heads, heads])

    return run


IWAE_STEP = IwaeStep()
