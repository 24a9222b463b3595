"""A variational autoencoder in Pyro, as Pyro's tutorial writes it, trained with and without fastvi.

The model, the guide and the loop stay as they are. Four ways to train them, in turn, epoch by
epoch, from the same weights and with the same seeds:

    Pyro's Trace_ELBO                   the same under accelerate()
    Pyro's RenyiELBO (alpha = 0)        fastvi's Trace_IWLB

Needs scikit-learn, for its digits. python examples/pyro_vae.py --epochs 40 --particles 50
"""

import argparse
import logging
import statistics
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

from fastvi.app.images import binarise, binarise_held_out, load_images
from fastvi.integrations.pyro import Trace_IWLB, accelerate


class VAE(nn.Module):
    def __init__(self, pixels: int, hidden: int, latents: int) -> None:
        super().__init__()
        self.latents = latents
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latents)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.Softplus(), nn.Linear(hidden, pixels), nn.Sigmoid()
        )

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], self.latents), x.new_ones(x.shape[0], self.latents)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_var = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, (0.5 * log_var).exp()).to_event(1))


class Training:
    """One way to train, with its own weights and its own part of Pyro's parameter store."""

    def __init__(self, name: str, objective: object, accelerated: bool, pixels: int) -> None:
        torch.manual_seed(0)
        self.name = name
        self.accelerated = accelerated
        self.vae = VAE(pixels, hidden=400, latents=20)
        self.svi = SVI(self.vae.model, self.vae.guide, Adam({"lr": 1e-3}), loss=objective)
        self.seconds: list[float] = []
        with pyro.get_param_store().scope() as self.store:
            pass

    def epoch(self, number: int, images: Tensor, batch_size: int) -> None:
        torch.manual_seed(number)
        x = binarise(images)[torch.randperm(len(images))]
        with pyro.get_param_store().scope(self.store) as self.store:
            handle = accelerate() if self.accelerated else None
            begin = time.perf_counter()
            for batch in x.split(batch_size):
                self.svi.step(batch)
            self.seconds.append(time.perf_counter() - begin)
            if handle is not None:
                handle.close()

    def bound(self, images: Tensor, num_samples: int = 500) -> float:
        """L_500 of held-out images, in nats for each."""
        torch.manual_seed(0)
        elbo = Trace_IWLB(num_samples, chunk_size=50)
        with pyro.get_param_store().scope(self.store):
            return -elbo.loss(self.vae.model, self.vae.guide, images) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=50)
    options = parser.parse_args()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    images = load_images("digits")
    held_out = binarise_held_out(images.held_out)

    particles = options.particles
    vectorized = {"num_particles": particles, "vectorize_particles": True}
    ways = [
        Training(name, objective, accelerated, images.train.shape[1])
        for name, objective, accelerated in (
            ("Trace_ELBO", Trace_ELBO(**vectorized), False),
            ("Trace_ELBO, accelerate()", Trace_ELBO(**vectorized), True),
            ("RenyiELBO", RenyiELBO(alpha=0, **vectorized), False),
            ("Trace_IWLB", Trace_IWLB(particles), True),
        )
    ]
    for number in range(options.epochs):
        for way in ways:
            way.epoch(number, images.train, options.batch_size)
    print(f"{particles} particles, {options.epochs} epochs")
    for way in ways:
        seconds, bound = statistics.median(way.seconds), way.bound(held_out)
        print(f"{way.name:26} {seconds:7.3f} s an epoch   held-out L_500 {bound:8.3f} nats")


if __name__ == "__main__":
    main()
