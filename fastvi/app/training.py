"""Train a VAE on images with the importance-weighted bound: what ``fastvi train`` runs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvi.app.images import Images, binarise, binarise_held_out
from fastvi.app.networks import build_vae
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings, describe
from fastvi.losses import IWLBLoss
from fastvi.models.vae import VAE
from fastvi.svi.checkpoint import random_state, set_random_state

# A chunk's activations stay in the cache of a CPU, which halves the time of K = 5000.
_IMAGES_AT_ONCE, _SAMPLES_AT_ONCE = 50, 50


@dataclass(frozen=True)
class Epoch:
    """Hold a line of metrics.csv: bounds in nats per image."""

    epoch: int
    train_bound: float
    held_out_bound: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Hold the held-out L_K in nats per image, and its standard error over the images."""

    num_samples: int
    bound: float
    standard_error: float
    images: int


def held_out_pixels(images: Images, settings: Settings) -> Tensor:
    """Return at most ``settings.held_out`` held-out images as the model sees them, drawn once."""
    pixels = images.held_out[: settings.held_out]
    if settings.likelihood == "bernoulli":
        pixels = binarise_held_out(pixels)
    return pixels.to(settings.device)


def train(
    images: Images,
    settings: Settings,
    folder: RunFolder,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> VAE:
    """Train a VAE, and keep metrics and weights in the folder while it goes on.

    The weights are written after every epoch, and when an epoch is interrupted. Those of the last
    epoch with a finite bound stay where the bound is not finite any more. After every epoch, and
    before anything else of it, all that the rest depends on is saved too: a run that is killed at
    any moment and resumed ends with the same bits as one that was not.

    Args:
        images: from :func:`fastvi.app.images.load_images`.
        settings: of the run.
        folder: a created :class:`fastvi.app.run_folder.RunFolder`; with its ``resume`` the run
            goes on from the last epoch that it has saved.
        on_epoch: called after each epoch, those before a resumption too, e.g. to show progress.

    Returns:
        The trained model, on ``settings.device``.

    Raises:
        FloatingPointError: the bound is not finite any more.
        OSError: a file cannot be written; what was saved before is as it was.
        ValueError: a checkpoint of other settings or images, or a file that is none.
    """
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    pixels, held_out = images.train.to(device), held_out_pixels(images, settings)
    vae = build_vae(pixels.shape[1], settings, images.train.mean(0)).to(device)
    criterion = IWLBLoss(settings.num_samples, settings.estimator)
    optimizer = torch.optim.Adam(vae.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    run = _Run(vae, optimizer, schedule, _of_run(images, settings))
    if (saved := folder.load_state()) is not None:
        run.load(folder.path, saved)
    folder.write_settings(describe(images, settings))
    if run.rows:
        # A kill may have come between the state and these.
        folder.save_weights(vae.state_dict())
        folder.write_metrics([_shown(row) for row in run.rows])
        for row in run.rows:
            on_epoch(row)
    began = time.perf_counter() - (run.rows[-1].seconds if run.rows else 0.0)
    try:
        for epoch in range(len(run.rows) + 1, settings.epochs + 1):
            rate = float(schedule.get_last_lr()[0])
            train_bound = _train_epoch(vae, criterion, optimizer, pixels, settings)
            schedule.step()
            with torch.no_grad():
                held_out_bound = -_mean_loss(vae, criterion, held_out, settings)
            if not math.isfinite(train_bound + held_out_bound):
                raise FloatingPointError(
                    f"the bound is {train_bound} on the training part and {held_out_bound} on the "
                    f"held-out part after epoch {epoch}; try a smaller learning rate"
                )
            seconds = time.perf_counter() - began
            row = Epoch(epoch, round(train_bound, 4), round(held_out_bound, 4), rate, seconds)
            run.rows.append(row)
            folder.save_state(run.state())
            # Before the metrics: whoever reads a line of them finds weights.
            folder.save_weights(vae.state_dict())
            folder.append_metrics(_shown(row))
            on_epoch(row)
    except KeyboardInterrupt:
        folder.save_weights(vae.state_dict())
        raise
    return vae


def _shown(row: Epoch) -> dict[str, object]:
    """Return a line of metrics.csv."""
    short = {"learning_rate": f"{row.learning_rate:.3g}", "seconds": f"{row.seconds:.2f}"}
    return dataclasses.asdict(row) | short


def _of_run(images: Images, settings: Settings) -> dict[str, Any]:
    """Return by name what a resumed run must have in common with the run before."""
    return dataclasses.asdict(settings) | {"data (sha256)": images.sha256}


@dataclass
class _Run:
    """Hold all that the rest of a run depends on."""

    vae: VAE
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    of: dict[str, Any]
    rows: list[Epoch] = dataclasses.field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state([]),
            "epochs": [dataclasses.astuple(row) for row in self.rows],
        }

    def load(self, path: Path, state: Mapping[str, Any]) -> None:
        try:
            self._check(path, state["of"])
            self.rows = [Epoch(*row) for row in state["epochs"]]
            self.vae.load_state_dict(state["vae"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            set_random_state(state["random"], [])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"train: expected the checkpoint in {path} to be as `fastvi train` writes it, got "
                f"{type(error).__name__}: {error}"
            ) from error

    def _check(self, path: Path, of: Mapping[str, Any]) -> None:
        for name, value in self.of.items():
            if name not in of or of[name] != value:
                raise ValueError(
                    f"train: expected to go on with the {name} of the run in {path}, "
                    f"{of.get(name)}, got {value}; --overwrite begins anew"
                )


def _train_epoch(
    vae: VAE,
    criterion: IWLBLoss,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    settings: Settings,
) -> float:
    """Train for one pass over the data in random order, and return the mean bound over it."""
    total = torch.zeros((), dtype=torch.float64, device=pixels.device)
    for rows in torch.randperm(len(pixels), device=pixels.device).split(settings.batch_size):
        x = pixels[rows]
        if settings.likelihood == "bernoulli":
            x = binarise(x)
        optimizer.zero_grad(set_to_none=True)
        loss = vae.loss(x, criterion)
        loss.backward()
        optimizer.step()
        total -= loss.detach() * len(rows)
    return total.item() / len(pixels)


def _mean_loss(vae: VAE, criterion: IWLBLoss, pixels: Tensor, settings: Settings) -> float:
    parts = pixels.split(settings.batch_size)
    return sum(vae.loss(x, criterion).item() * len(x) for x in parts) / len(pixels)


def evaluate(vae: VAE, pixels: Tensor, nums_samples: Sequence[int]) -> list[Evaluation]:
    """Estimate held-out L_K for each K, on pixels as :func:`held_out_pixels` gives them."""
    rows = []
    for num_samples in nums_samples:
        parts, chunk_size = pixels.split(_IMAGES_AT_ONCE), min(num_samples, _SAMPLES_AT_ONCE)
        bounds = torch.cat(
            [vae.log_evidence(x, num_samples, chunk_size=chunk_size) for x in parts]
        ).double()
        # One image alone has no standard error.
        error = bounds.std().item() / math.sqrt(len(bounds)) if len(bounds) > 1 else math.nan
        rows.append(Evaluation(num_samples, bounds.mean().item(), error, len(bounds)))
    return rows
