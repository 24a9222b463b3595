"""Lives of a run, one for each line ``NAME PORT``, waited for after the next; see test_kills.py.

Everything is imported once, and a life is a fork, so that a kill meets the run and not an import.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import sklearn.datasets
import torch
import torch.distributed  # noqa: F401

import fastvi
from fastvi.app import cli, plots  # noqa: F401

ROOT = Path(__file__).parents[2]


def svi_fit(folder: Path, name: str) -> None:
    from torch import nn
    from torch.distributions import Bernoulli, Independent, Normal

    torch.manual_seed(0)
    x = torch.rand(30, 6).round()
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    decoder = nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 6))

    def guide(x: torch.Tensor) -> Independent:
        loc, log_scale = encoder(x).chunk(2, -1)
        return Independent(Normal(loc, log_scale.exp()), 1)

    def model(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob(z)
        return prior + Independent(Bernoulli(logits=decoder(z)), 1).log_prob(x)

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.IWLB(4))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
    svi.fit(
        x, epochs=12, batch_size=7, held_out=x[:9], checkpoint=folder / f"{name}.pt",
        checkpoint_every=1, resume=True, scheduler=scheduler, patience=50,
    )  # fmt: skip


def train(folder: Path, name: str) -> None:
    cli.EVALUATED = (1, 5)
    sys.argv = ["fastvi", "train", "--name", name, "--runs", str(folder / "runs"), "--resume"]
    sys.argv += [
        "--epochs",
        "8",
        "--num-samples",
        "4",
        "--backward-samples",
        "auto",
        "--hidden",
        "8",
        "--batch-size",
        "400",
    ]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise


def torchrun(folder: Path, name: str) -> None:
    """One rank of two of the example, as torchrun starts it."""
    sys.argv = ["large_k_torchrun.py", "--steps", "24", "--every", "2", "--num-samples", "20"]
    sys.argv += ["--backward-samples", "6"]
    sys.argv += ["--chunk-size", "5", "--batch", "5", "--checkpoint", str(folder / f"{name}.pt")]
    runpy.run_path(str(ROOT / "examples/large_k_torchrun.py"), run_name="__main__")


RUNS = {"SVI.fit": (svi_fit, 1), "train": (train, 1), "torchrun": (torchrun, 2)}


def main() -> None:
    run, ranks = RUNS[sys.argv[1]]
    folder = Path(sys.argv[2])
    torch.set_num_threads(1)
    sklearn.datasets.load_digits()
    out = os.fdopen(os.dup(1), "w")
    # What a run prints is no answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print("ready", file=out, flush=True)
    while line := sys.stdin.readline():
        name, port = line.split()
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child == 0:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port,
                               "WORLD_SIZE": str(ranks)}  # fmt: skip
                status = 1
                try:
                    run(folder, name)
                    status = 0
                finally:
                    # What runs in the parent at its end is not this one's.
                    sys.stderr.flush()
                    os._exit(status)
            children.append(child)
        print(*children, file=out, flush=True)
        sys.stdin.readline()
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(*(-status if status < 0 else status for status in ended), file=out, flush=True)


if __name__ == "__main__":
    main()
