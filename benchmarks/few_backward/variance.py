"""How the variance of the gradient over the samples grows, and what the law of it says."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvi
from benchmarks.few_backward.digits import images, loss_of, new_vae, some
from fastvi.app.images import Images, binarise
from fastvi.chunks.choice import growth

SAMPLES, IMAGES = 500, 20
# The image batch of a training step, and its samples.
TRAINED_IMAGES, TRAINED_SAMPLES = 50, 50
STEPS = (0, 250, 1000)
FEW = (10, 25, 50, 100, "auto")


@dataclass(frozen=True)
class VarianceRow:
    """The variance of the whole gradient after some training, as a factor on that of all samples.

    ``backward`` is m, or what a row of its own is: ``"auto"``, and ``"mini-batches"`` for what
    other images add.
    """

    steps: int
    effective_samples: float
    backward: str
    taken: float
    measured: float
    law: float


def measure(draws: int) -> Iterator[VarianceRow]:
    found = images()
    vae, optimizer = new_vae(found)
    x = binarise(found.train[:IMAGES])
    trained = loss_of(TRAINED_SAMPLES, None)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            yield from at(step, vae, found, x, draws)
        optimizer.zero_grad(set_to_none=True)
        vae.loss(some(found, TRAINED_IMAGES), trained).backward()
        optimizer.step()


def at(step: int, vae: fastvi.VAE, found: Images, x: Tensor, draws: int) -> Iterator[VarianceRow]:
    everything = loss_of(SAMPLES, None)
    whole = variance(lambda: gradient(vae, x, everything), draws)
    with torch.no_grad():
        log_w = vae.log_weights(x, SAMPLES)
    effective = fastvi.effective_sample_size(log_w).mean().item()
    for few in FEW:
        with Taken() as taken:
            measured = variance(lambda few=few: gradient(vae, x, loss_of(SAMPLES, few)), draws)
        number = float(few) if isinstance(few, int) else taken.mean
        law = by_law(log_w, few) if isinstance(few, int) else float("nan")
        yield VarianceRow(step, effective, str(few), number, measured / whole, law)
    others = variance(lambda: gradient(vae, some(found, IMAGES), everything), draws)
    yield VarianceRow(step, effective, "mini-batches", SAMPLES, others / whole - 1.0, float("nan"))


def gradient(vae: fastvi.VAE, x: Tensor, criterion: fastvi.IWLBLoss) -> Tensor:
    vae.zero_grad(set_to_none=True)
    vae.loss(x, criterion).backward()
    return torch.cat([p.grad.flatten() for p in vae.parameters() if p.grad is not None])


def by_law(log_w: Tensor, few: int) -> float:
    """The growth that the law says, the mean over the images."""
    weights = log_w.double().softmax(0).t()
    return growth(weights, torch.full((len(weights),), few)).mean().item()


def variance(one: Callable[[], Tensor], draws: int) -> float:
    """The sum over the gradient's numbers of their variance."""
    return torch.stack([one() for _ in range(draws)]).double().var(0).sum().item()


class Taken(logging.Handler):
    """How many samples ``"auto"`` takes, as it tells the logger."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[float] = []

    @property
    def mean(self) -> float:
        return sum(self.numbers) / len(self.numbers) if self.numbers else float("nan")

    def emit(self, record: logging.LogRecord) -> None:
        found = re.search(r"took ([\d.]+) of", record.getMessage())
        if found:
            self.numbers.append(float(found[1]))

    def __enter__(self) -> Taken:
        logger = logging.getLogger("fastvi")
        self._level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("fastvi")
        logger.removeHandler(self)
        logger.setLevel(self._level)
