"""A training step of SCVI's kind: stock, accelerated, and by a bound, as ratios in one process.

    python benchmarks/scvi_step.py    # with scvi-tools installed

Rounds alternate. 2000 genes, batches of 128, 128 hidden units: scvi-tools' own module, its forward
and backward pass and Adam, without the loader and the trainer. "The networks alone" have the sum of
the means in place of the log-likelihood: what no likelihood can save. Times are of processor time
over all threads and of the clock; where other programs run, only the first means something.
"""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import scvi
import torch
from torch import Tensor

import fastvi
from fastvi.integrations.scvi import accelerate, bounded

GENES, CELLS, ROUNDS = 2000, 128, 15
KINDS = {
    "nb": scvi.distributions.NegativeBinomial,
    "zinb": scvi.distributions.ZeroInflatedNegativeBinomial,
}


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


@contextlib.contextmanager
def no_likelihood(likelihood: str) -> Iterator[None]:
    kind = KINDS[likelihood]
    own = vars(kind)["log_prob"]

    def means(self: object, value: Tensor) -> Tensor:
        return self.mu  # type: ignore[attr-defined]

    kind.log_prob = means
    try:
        yield
    finally:
        kind.log_prob = own


def within(context: Callable[[], object], step: Callable[[], float]) -> Callable[[], float]:
    def run() -> float:
        with context():  # type: ignore[attr-defined]
            return step()

    return run


def gap(likelihood: str) -> float:
    """Return the relative difference of the first losses, with the same weights and noise."""
    losses = []
    for context in (contextlib.nullcontext, accelerate):
        step = step_of(scvi.module.VAE, likelihood)
        torch.manual_seed(1)
        losses.append(within(context, step)())
    return abs(losses[1] / losses[0] - 1)


def main() -> None:
    warnings.simplefilter("ignore")
    for likelihood in KINDS:
        plain = [step_of(scvi.module.VAE, likelihood) for _ in range(3)]
        runs = {
            "stock": plain[0],
            "accelerate()": within(accelerate, plain[1]),
            "networks alone": within(lambda x=likelihood: no_likelihood(x), plain[2]),
        }
        for k in (1, 10, 25):
            model = bounded(scvi.model.SCVI, fastvi.IWLBLoss(num_samples=k))
            runs[f"bound, K = {k}"] = step_of(model._module_cls, likelihood)
        print(f"{likelihood:5} first loss: {gap(likelihood):.1e} apart")
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                started = time.process_time(), time.perf_counter()
                run()
                ended = time.process_time(), time.perf_counter()
                times[name].append((ended[0] - started[0], ended[1] - started[1]))
        usual = [statistics.median(x) for x in zip(*times["stock"], strict=True)]
        for name, taken in times.items():
            medians = [statistics.median(x) for x in zip(*taken, strict=True)]
            columns = (
                f"{1e3 * own:8.1f} ms {stock / own:5.2f} x stock"
                for own, stock in zip(medians, usual, strict=True)
            )
            print(f"{likelihood:5} {name:15}", " | ".join(columns), flush=True)


if __name__ == "__main__":
    main()
