"""A training step of SCVI's kind: stock, accelerated, and by a bound, as ratios in one process.

    python benchmarks/scvi_step.py    # with scvi-tools installed

Rounds alternate. 2000 genes, batches of 128, 128 hidden units, a negative binomial: scvi-tools'
own module, its forward and backward pass and Adam.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import scvi
import torch

import fastvi
from fastvi.integrations.scvi import accelerate, bounded

GENES, CELLS, ROUNDS = 2000, 128, 15


def step_of(kind: type, likelihood: str) -> Callable[[], float]:
    torch.manual_seed(0)
    module = kind(n_input=GENES, n_batch=1, n_hidden=128, gene_likelihood=likelihood)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    counts = torch.poisson(torch.rand(CELLS, GENES) * 3)
    zeros = torch.zeros(CELLS, 1, dtype=torch.long)
    batch = {"X": counts, "batch": zeros, "labels": zeros}

    def step() -> float:
        optimizer.zero_grad()
        loss = module(batch)[2].loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main() -> None:
    warnings.simplefilter("ignore")
    for likelihood in ("nb", "zinb"):
        stock = step_of(scvi.module.VAE, likelihood)
        plain = step_of(scvi.module.VAE, likelihood)

        def accelerated(plain: Callable[[], float] = plain) -> float:
            with accelerate():
                return plain()

        runs = {"stock": stock, "accelerate()": accelerated}
        for k in (1, 10, 25):
            model = bounded(scvi.model.SCVI, fastvi.IWLBLoss(num_samples=k))
            runs[f"bound, K = {k}"] = step_of(model._module_cls, likelihood)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                times[name].append(1e3 * (time.perf_counter() - started))
        usual = statistics.median(times["stock"])
        for name, taken in times.items():
            median = statistics.median(taken)
            print(f"{likelihood:5} {name:14} {median:7.1f} ms  {usual / median:5.2f} x stock")


if __name__ == "__main__":
    main()
