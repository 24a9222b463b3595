"""A whole VIMCO training step of a sigmoid belief network on binary images.

Two layers of 200 Bernoulli latents over 784 pixels, every distribution one linear layer, as in the
VIMCO paper: guide 784-200-200, model 200-200-784, and a learned prior. A step clears the gradients
and runs forward and backward. The optimiser is left out, as it is in ``iwae_step``. ``networks`` is
the same four linear layers forward and backward under a fixed gradient, with no sampling, no
densities and no signals at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli
from torch.nn.functional import binary_cross_entropy_with_logits

import fastvi
from benchmarks.ops.iwae_step import NETWORKS, training_step
from benchmarks.work import Case, Compile, Run, compilers, normal_draw

DATA, HIDDEN = 784, 200


class Networks(nn.Module):
    """The four linear layers and the prior, with the same weights for every provider."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.guides = nn.ModuleList([nn.Linear(DATA, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        self.model = nn.Linear(HIDDEN, HIDDEN)
        self.decoder = nn.Linear(HIDDEN, DATA)
        self.prior = nn.Parameter(torch.zeros(HIDDEN))


def fastvi_loss(networks: Networks, num_samples: int) -> Callable[[Tensor], Tensor]:
    first, second = networks.guides
    network = fastvi.HierarchicalVAE(
        [
            fastvi.StochasticLayer("bernoulli", HIDDEN, guide=first, model=networks.model),
            fastvi.StochasticLayer("bernoulli", HIDDEN, guide=second, prior=networks.prior),
        ],
        networks.decoder,
    )
    objective = fastvi.objectives.VIMCO(num_samples)
    return lambda x: network.loss(x, objective)


def surrogate(log_w: Tensor, log_q: Tensor) -> Tensor:
    """The negative bound with VIMCO's gradient, in as few operations as it takes.

    The matrix of all samples with each one left out, [K, K, B], is the quickest form at K = 50:
    one log-sum-exp, and no difference of logarithms.
    """
    num_samples = len(log_w)
    bound = log_w.logsumexp(0)
    with torch.no_grad():
        mean = (log_w.sum(0) - log_w) / (num_samples - 1)
        own = torch.eye(num_samples, dtype=torch.bool, device=log_w.device)[..., None]
        signal = bound - torch.where(own, mean, log_w).logsumexp(1)
    score = (signal * log_q).sum(0)
    return -(bound - math.log(num_samples) + (score - score.detach())).mean()


def eager_loss(networks: Networks, num_samples: int) -> Callable[[Tensor], Tensor]:
    def sample(logits: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
        q = Bernoulli(logits=logits, validate_args=False)
        z = q.sample(torch.Size(shape))
        return z, q.log_prob(z).sum(-1)

    def log_prob(logits: Tensor, value: Tensor) -> Tensor:
        return Bernoulli(logits=logits, validate_args=False).log_prob(value).sum(-1)

    def loss(x: Tensor) -> Tensor:
        first, second = networks.guides
        h1, log_q1 = sample(first(x), num_samples)
        h2, log_q2 = sample(second(h1))
        log_q = log_q1 + log_q2
        log_p = log_prob(networks.decoder(h1), x) + log_prob(networks.model(h2), h1)
        return surrogate(log_p + log_prob(networks.prior, h2) - log_q, log_q)

    return loss


def by_hand_loss(
    networks: Networks, num_samples: int, compiler: Compile
) -> Callable[[Tensor], Tensor]:
    """The same mathematics without distributions, for the compiler to fuse."""

    def sample(logits: Tensor) -> Tensor:
        return (torch.rand_like(logits) < logits.detach().sigmoid()).to(logits.dtype)

    def log_prob(logits: Tensor, value: Tensor) -> Tensor:
        logits, value = torch.broadcast_tensors(logits, value)
        return -binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1)

    def loss(x: Tensor) -> Tensor:
        first, second = networks.guides
        logits = first(x).expand(num_samples, -1, -1)
        h1 = sample(logits)
        logits_2 = second(h1)
        h2 = sample(logits_2)
        log_q = log_prob(logits, h1) + log_prob(logits_2, h2)
        log_p = log_prob(networks.decoder(h1), x) + log_prob(networks.model(h2), h1)
        return surrogate(log_p + log_prob(networks.prior, h2) - log_q, log_q)

    return compiler(loss)


class SbnStep:
    """The training step as a piece of work."""

    name = "sbn_step"
    providers = ("fastvi", "eager", "compile", NETWORKS)

    def runs(self, provider: str, case: Case) -> dict[str, Run]:
        networks = Networks().to(case.device, case.torch_dtype)
        normal = normal_draw(case, seed=0)
        num_samples = case.sizes["K"]
        x = (normal(case.sizes["B"], DATA) > 0).to(case.torch_dtype)
        if provider == NETWORKS:
            return {"": networks_alone(networks, x, normal, num_samples)}
        if provider == "fastvi":
            losses = {"": fastvi_loss(networks, num_samples)}
        elif provider == "eager":
            losses = {"": eager_loss(networks, num_samples)}
        else:
            losses = {
                f"by hand{suffix}": by_hand_loss(networks, num_samples, compiler)
                for suffix, compiler in compilers(case.device).items()
            }
        return {name: training_step(networks, loss, x) for name, loss in losses.items()}

    def num_bytes(self, case: Case) -> int | None:
        return None


def networks_alone(
    networks: Networks, x: Tensor, normal: Callable[..., Tensor], num_samples: int
) -> Run:
    h1, h2 = ((normal(num_samples, len(x), HIDDEN) > 0).to(x) for _ in range(2))
    first, second = networks.guides
    pairs = [(first, x), (second, h1), (networks.model, h2), (networks.decoder, h1)]
    upstream = [normal(*layer(given).shape) for layer, given in pairs]

    def run() -> None:
        networks.zero_grad(set_to_none=True)
        torch.autograd.backward([layer(given) for layer, given in pairs], upstream)

    return run


SBN_STEP = SbnStep()
