"""Train an importance-weighted autoencoder whose samples are shared among processes.

    torchrun --nproc-per-node=2 examples/large_k_torchrun.py --num-samples 2000

runs here, and unchanged on several nodes. Every rank draws its own range of the K samples of every
image; the gradients add up. With ``--max-restarts`` of torchrun a run whose rank has died goes on
from the last checkpoint, and ends with the same parameters, bit for bit.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

import fastvi

LATENT = 8


def images() -> torch.Tensor:
    from sklearn.datasets import load_digits

    return (torch.as_tensor(load_digits().data, dtype=torch.float32) > 7.5).float()


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 100), nn.Tanh(), nn.Linear(100, outputs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=2000, help="K, over all ranks")
    parser.add_argument("--chunk-size", type=int, default=250, help="samples at a time on a rank")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/large_k.pt"))
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # A launcher that restarts its workers may keep the store of addresses: each attempt gets names
    # of its own in it, or the new ranks would call the old ones.
    store, rank, size = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    device = torch.device("cuda" if cuda else "cpu")
    first = dist.get_rank() == 0

    # The same seed on every rank: they hold the same parameters and see the same batches.
    torch.manual_seed(0)
    data = images().to(device)
    vae = fastvi.VAE(network(data.shape[1], 2 * LATENT), network(LATENT, data.shape[1])).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    criterion = fastvi.IWLBLoss(
        options.num_samples, chunk_size=options.chunk_size, group=dist.group.WORLD
    )

    start = 0
    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
        if first:
            print(f"resumed at step {start}", flush=True)

    for step in range(start, options.steps):
        # Batch and noise are functions of the step, so that a resumed run repeats them.
        generator = torch.Generator().manual_seed(step)
        x = data[torch.randint(len(data), (options.batch,), generator=generator).to(device)]
        key = torch.tensor([0, step], device=device)
        optimizer.zero_grad()
        loss = vae.loss(x, criterion, key)
        loss.backward()
        fastvi.sum_gradients(vae.parameters())
        optimizer.step()
        if first and (step + 1) % options.every == 0:
            print(f"step {step + 1}: L_{options.num_samples} = {-loss.item():.3f} nats", flush=True)
            options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            # Whoever is killed while it writes leaves the last checkpoint whole.
            part = options.checkpoint.with_suffix(".part")
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1}, part)
            part.replace(options.checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
