"""Trainings of the same time table, with all samples backward and with few."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.few_backward.digits import SETTINGS, images, loss_of, new_vae
from fastvi.app.images import binarise
from fastvi.app.training import evaluate, held_out_pixels

# (K, how many of them run backward), and every how many epochs the held-out bound is estimated.
TRAININGS: tuple[tuple[int, int | str | None], ...] = (
    (1, None),
    (50, None),
    (50, 10),
    (500, None),
    (500, 50),
    (500, "auto"),
)
HELD_OUT_SAMPLES = 5000


@dataclass(frozen=True)
class TrainingRow:
    """A training so far: its seconds without the evaluations, and L_5000 of held-out images.

    ``standard_error`` is the bound's, over the images.
    """

    num_samples: int
    backward: str
    epoch: int
    seconds: float
    held_out_bound: float
    standard_error: float


class Training:
    """One of several that take turns, epoch by epoch, so that the machine's moods fall on all."""

    def __init__(self, num_samples: int, few: int | str | None, epochs: int) -> None:
        self.num_samples, self.few = num_samples, few
        self._images = images()
        self._held_out = held_out_pixels(self._images, SETTINGS)
        self.vae, self._optimizer = new_vae(self._images)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, epochs)
        self._criterion = loss_of(num_samples, few)
        self._random = torch.get_rng_state()
        self.epoch, self.seconds = 0, 0.0

    def train(self) -> None:
        torch.set_rng_state(self._random)
        start = time.perf_counter()
        for rows in torch.randperm(len(self._images.train)).split(SETTINGS.batch_size):
            self._optimizer.zero_grad(set_to_none=True)
            self.vae.loss(binarise(self._images.train[rows]), self._criterion).backward()
            self._optimizer.step()
        self.seconds += time.perf_counter() - start
        self._schedule.step()
        self._random = torch.get_rng_state()
        self.epoch += 1

    def row(self) -> TrainingRow:
        torch.manual_seed(0)
        [found] = evaluate(self.vae, self._held_out, [HELD_OUT_SAMPLES])
        few = "all" if self.few is None else str(self.few)
        return TrainingRow(
            self.num_samples, few, self.epoch, self.seconds, found.bound, found.standard_error
        )


def measure(epochs: int, every: int) -> Iterator[TrainingRow]:
    """Train, and yield a row of each training after every so many epochs, and the last."""
    trainings = [Training(samples, few, epochs) for samples, few in TRAININGS]
    for epoch in range(1, epochs + 1):
        for training in trainings:
            training.train()
        if epoch == 1 or epoch % every == 0 or epoch == epochs:
            yield from (training.row() for training in trainings)
