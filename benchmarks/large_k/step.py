"""One training step in a process of its own: prints its seconds, and how far memory rose.

Encoder 784-200-200-(50, 50) and decoder 50-200-200-784 with tanh, binary images. Under torchrun the
samples are shared among the ranks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.utils.checkpoint import checkpoint

import fastvi
from benchmarks.ops.gaussian_rsample import PRIOR
from benchmarks.ops.iwae_step import DATA, Networks
from benchmarks.worker import RESET_PEAK, resident, synchronize

FASTVI, FASTVI_AT_ONCE = "fastvi", "fastvi, all at once"
# So many samples of each image run backward, of more than these.
BACKWARD_SAMPLES = 50
FASTVI_FEW = f"fastvi, {BACKWARD_SAMPLES} samples backward"
CHECKPOINTED, EAGER = "eager, checkpointed", "eager, all at once"
COMPILED = "compile, all at once"
PROVIDERS = (FASTVI, FASTVI_FEW, FASTVI_AT_ONCE, CHECKPOINTED, EAGER, COMPILED)

Loss = Callable[[Tensor, int], Tensor]


def by_fastvi(networks: Networks, chunk_size: int | None, few: int | None) -> Loss:
    group = dist.group.WORLD if dist.is_initialized() else None

    def loss(x: Tensor, num_samples: int) -> Tensor:
        loc, log_var = networks.encode(x)
        return fastvi.iwlb_loss(
            loc,
            log_var,
            fastvi.log_likelihood(networks.decoder, x),
            num_samples,
            chunk_size=chunk_size and min(chunk_size, num_samples),
            group=group,
            backward_samples=few,
        )

    return loss


def by_hand(networks: Networks, chunk_size: int | None) -> Loss:
    """The IWAE gradient; in chunks, each one's activations are made again in its backward."""

    def log_weights(x: Tensor, loc: Tensor, scale: Tensor, size: int) -> Tensor:
        q = Normal(loc, scale, validate_args=False)
        z = q.rsample((size,))
        log_px = Bernoulli(logits=networks.decoder(z), validate_args=False).log_prob(x).sum(-1)
        return log_px + PRIOR.log_prob(z).sum(-1) - q.log_prob(z).sum(-1)

    def loss(x: Tensor, num_samples: int) -> Tensor:
        loc, log_var = networks.encode(x)
        scale = (0.5 * log_var).exp()
        if chunk_size is None:
            log_w = log_weights(x, loc, scale, num_samples)
        else:
            parts = []
            for start in range(0, num_samples, chunk_size):
                size = min(chunk_size, num_samples - start)
                parts.append(checkpoint(log_weights, x, loc, scale, size, use_reentrant=False))
            log_w = torch.cat(parts)
        return -(log_w.logsumexp(0) - math.log(num_samples)).mean()

    return loss


def compiled(networks: Networks) -> Loss:
    from benchmarks.ops.iwae_step import compiled_losses

    made: dict[int, Callable[[Tensor], Tensor]] = {}

    def loss(x: Tensor, num_samples: int) -> Tensor:
        if num_samples not in made:
            losses = compiled_losses(networks, num_samples, torch.compile)
            made[num_samples] = losses["by hand, noise inside"]
        return made[num_samples](x)

    return loss


def loss_of(provider: str, networks: Networks, chunk_size: int) -> Loss:
    if provider == COMPILED:
        return compiled(networks)
    size = chunk_size if provider in (FASTVI, FASTVI_FEW, CHECKPOINTED) else None
    if provider in (FASTVI, FASTVI_FEW, FASTVI_AT_ONCE):
        few = BACKWARD_SAMPLES if provider == FASTVI_FEW else None
        return by_fastvi(networks, size, few)
    return by_hand(networks, size)


class Memory:
    """What the process holds on a CPU, what torch's allocator does on a card; in bytes."""

    def __init__(self, device: str) -> None:
        self._on_card = device != "cpu"

    def reset(self) -> int:
        """Forget the peak, and return what is held now."""
        if self._on_card:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        RESET_PEAK.write_text("5")
        return resident("VmRSS")

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self._on_card else resident("VmHWM")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("provider", choices=PROVIDERS)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--chunk", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    networks = Networks().to(options.device)
    x = (torch.rand(options.batch, DATA) > 0.5).to(options.device, torch.float32)
    memory = Memory(options.device)
    loss = loss_of(options.provider, networks, options.chunk)

    def step(num_samples: int) -> float:
        synchronize(options.device)
        start = time.perf_counter()
        networks.zero_grad(set_to_none=True)
        loss(x, num_samples).backward()
        if dist.is_initialized():
            fastvi.sum_gradients(networks.parameters())
        synchronize(options.device)
        return time.perf_counter() - start

    # What the first call of everything takes is not the step's.
    step(options.samples if options.provider == COMPILED else min(options.samples, options.chunk))
    before = memory.reset()
    times = [step(options.samples) for _ in range(options.repeats)]
    found = {"times": times, "bytes": memory.peak() - before, "peak": memory.peak()}
    if not dist.is_initialized() or dist.get_rank() == 0:
        sys.stdout.write(json.dumps(found) + "\n")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
