"""Train an importance-weighted autoencoder whose samples are shared among processes.

    torchrun --nproc-per-node=2 examples/large_k_torchrun.py --num-samples 2000

runs here, and unchanged on several nodes. Every rank draws its own range of the K samples of every
image; the gradients add up. All samples run forward, and 100 of them backward, chosen by their
weights. With ``--max-restarts`` of torchrun a run whose rank has died goes on from the last
checkpoint, and ends with the same parameters, bit for bit. Rank 0 writes and reads the checkpoint:
it has to find it again, on one disk or on one node, the others do not.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

import fastvi
from fastvi.files import saved as files

LATENT = 8


def images() -> torch.Tensor:
    from sklearn.datasets import load_digits

    return (torch.as_tensor(load_digits().data, dtype=torch.float32) > 7.5).float()


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 100), nn.Tanh(), nn.Linear(100, outputs))


def name_of_attempt(store: dist.Store, rank: int, size: int) -> str:
    """A name that the ranks of this attempt have in common, and no other attempt has.

    The launcher keeps its store when it restarts the workers, and every node counts restarts of its
    own. So each rank asks with a number that it has just drawn; what those before it left behind is
    answered too, and read by nobody.
    """
    mine = uuid.uuid4().hex
    if rank > 0:
        store.set(f"rank {rank} asks", mine)
        name = store.get(f"answer to {mine}").decode()
        store.set(f"rank {rank} has {name}", "")
        return name
    waiting = set(range(1, size))
    while waiting:
        for other in waiting:
            if store.check([f"rank {other} asks"]):
                asked = store.get(f"rank {other} asks").decode()
                store.set(f"answer to {asked}", mine)
        waiting = {other for other in waiting if not store.check([f"rank {other} has {mine}"])}
        time.sleep(0.01)
    return mine


def load(path: Path, device: torch.device) -> dict | None:
    """The first rank's checkpoint, on every rank; None before there is one."""
    saved = [None]
    if dist.get_rank() == 0 and path.exists():
        saved = [files.load("large_k_torchrun", path, "a checkpoint of this example")]
        if not isinstance(saved[0], dict) or saved[0].keys() != {"model", "optimizer", "step"}:
            raise SystemExit(f"expected {path} to be a checkpoint of this example, it is another")
    dist.broadcast_object_list(saved, src=0, device=device)
    return saved[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num-samples", type=int, default=2000, help="K, over all ranks")
    parser.add_argument("--chunk-size", type=int, default=250, help="samples at a time on a rank")
    parser.add_argument("--backward-samples", type=int, default=100, help="of K, over all ranks")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/large_k.pt"))
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://"))
    store = dist.PrefixStore(name_of_attempt(store, rank, size), store)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    device = torch.device("cuda" if cuda else "cpu")
    first = rank == 0

    # The same seed on every rank: they hold the same parameters and see the same batches.
    torch.manual_seed(0)
    data = images().to(device)
    vae = fastvi.VAE(network(data.shape[1], 2 * LATENT), network(LATENT, data.shape[1])).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    criterion = fastvi.IWLBLoss(
        options.num_samples,
        chunk_size=options.chunk_size,
        group=dist.group.WORLD,
        backward_samples=options.backward_samples,
    )

    start = 0
    saved = load(options.checkpoint, device)
    if saved is not None:
        try:
            vae.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            start = saved["step"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{options.checkpoint} is the checkpoint of another model") from error
        if first:
            print(f"resumed at step {start}", flush=True)

    for step in range(start, options.steps):
        # Batch and noise are functions of the step, so that a resumed run repeats them.
        generator = torch.Generator().manual_seed(step)
        x = data[torch.randint(len(data), (options.batch,), generator=generator).to(device)]
        key = torch.tensor([0, step], device=device)
        optimizer.zero_grad()
        loss = vae.loss(x, criterion, key=key)
        loss.backward()
        fastvi.sum_gradients(vae.parameters())
        optimizer.step()
        if first and (step + 1) % options.every == 0:
            print(f"step {step + 1}: L_{options.num_samples} = {-loss.item():.3f} nats", flush=True)
            options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            # Whoever is killed while it writes leaves the last checkpoint whole.
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict()}
            files.save(options.checkpoint, state | {"step": step + 1})
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
