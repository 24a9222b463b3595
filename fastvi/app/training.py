"""Train a VAE on images with the importance-weighted bound, for ``fastvi train``."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fastvi.app.images import Images, binarise, binarise_held_out
from fastvi.app.networks import build_vae
from fastvi.app.ranks import Ranks
from fastvi.app.run_folder import METRICS, RunFolder
from fastvi.app.settings import Settings, describe
from fastvi.callbacks import Beginning, CSVLog, Epoch
from fastvi.callbacks.joined import Callbacks
from fastvi.chunks.few import forget_few
from fastvi.losses import IWLBLoss
from fastvi.models.vae import VAE
from fastvi.svi.checkpoint import random_state, set_random_state

# The activations of a chunk fit in the cache of a CPU, which halves the time of K = 5000.
_IMAGES_AT_ONCE, _SAMPLES_AT_ONCE = 50, 50
ALONE = Ranks()


@dataclass(frozen=True)
class Evaluation:
    """Hold the held-out L_K in nats per image, and its standard error over the images."""

    num_samples: int
    bound: float
    standard_error: float
    images: int


def held_out_pixels(images: Images, settings: Settings) -> Tensor:
    """Return at most ``settings.held_out`` held-out images as the model takes them, drawn once."""
    pixels = images.held_out[: settings.held_out]
    if settings.likelihood == "bernoulli":
        pixels = binarise_held_out(pixels)
    return pixels.to(settings.device)


def train(
    images: Images,
    settings: Settings,
    folder: RunFolder,
    on_epoch: Any = None,
    ranks: Ranks = ALONE,
) -> VAE:
    """Train a VAE, and keep metrics and weights in the folder during the run.

    The weights are written after every epoch, and if an epoch is interrupted. If the bound is no
    longer finite, the weights of the last epoch with a finite bound stay. First of all, every epoch
    saves the state on which the rest of the run depends: a run that is killed at any moment and
    resumed ends with the same bits as one that was not.

    Args:
        images: from :func:`fastvi.app.images.load_images`.
        settings: of the run.
        folder: a created :class:`fastvi.app.run_folder.RunFolder`; with its ``resume`` the run
            goes on from the last epoch that it has saved.
        on_epoch: callbacks of the run: a function of an :class:`fastvi.callbacks.Epoch`, a
            callback, a logger, or a list of several; only on the first rank.
        ranks: the processes that share the batches, from :func:`fastvi.app.ranks.joined`. Every
            rank trains on its rows of each batch, and the gradients are added up.

    Returns:
        The trained model, on ``settings.device``.

    Raises:
        FloatingPointError: the bound is no longer finite.
        OSError: a file cannot be written; the saved files do not change.
        ValueError: a checkpoint of other settings or images, or no checkpoint; ranks with different
            images; a batch with fewer images than ranks.
    """
    # The table comes first, so that callbacks of an epoch find its line there.
    callbacks = Callbacks("train", on_epoch if ranks.is_first else None)
    if ranks.is_first:
        callbacks.first(CSVLog(folder.path / METRICS))
    if settings.batch_size < ranks.size:
        raise ValueError(
            f"expected batch_size to be at least {ranks.size}, an image for each process, got "
            f"{settings.batch_size}"
        )
    ranks.check_alike("the data (sha256)", images.sha256)
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    pixels, held_out = images.train.to(device), held_out_pixels(images, settings)
    vae = build_vae(pixels.shape[1], settings, images.train.mean(0)).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    run = _Run(vae, optimizer, schedule, _of_run(images, settings))
    if (saved := ranks.from_first(folder.load_state)) is not None:
        run.load(folder.path, saved)
    described = describe(images, settings, ranks.size)
    if ranks.is_first:
        folder.write_settings(described)
        if run.rows:
            # A kill may have happened between the state and these files.
            folder.save_weights(vae.state_dict())
    began = time.perf_counter() - (run.rows[-1].seconds if run.rows else 0.0)
    steps = -(-len(pixels) // settings.batch_size)
    criterion = _criterion(settings)
    try:
        with callbacks.running(Beginning(settings.epochs, tuple(run.rows), _flat(described))):
            for epoch in range(len(run.rows) + 1, settings.epochs + 1):
                rate = float(schedule.get_last_lr()[0])
                heard = functools.partial(_heard, callbacks, steps * (epoch - 1))
                # What backward_samples="auto" remembers of steps is in no checkpoint.
                forget_few(criterion)
                train_bound = _train_epoch(
                    vae, criterion, optimizer, pixels, settings, ranks, heard
                )
                schedule.step()
                with torch.no_grad():
                    held_out_bound = -_mean_loss(vae, criterion, held_out, settings, ranks)
                if not math.isfinite(train_bound + held_out_bound):
                    raise FloatingPointError(
                        f"the bound is {train_bound} on the training part and {held_out_bound} on "
                        f"the held-out part after epoch {epoch}; try a smaller learning rate"
                    )
                bounds = round(train_bound, 4), round(held_out_bound, 4)
                seconds = time.perf_counter() - began
                run.rows.append(Epoch(epoch, *bounds, steps * epoch, rate, seconds))
                if ranks.is_first:
                    folder.save_state(run.state())
                    # Weights come before metrics, so that a line of metrics has its weights.
                    folder.save_weights(vae.state_dict())
                    callbacks.epoch(run.rows[-1])
    except KeyboardInterrupt:
        if ranks.is_first:
            folder.save_weights(vae.state_dict())
        raise
    return vae


def _criterion(settings: Settings) -> IWLBLoss:
    return IWLBLoss(
        settings.num_samples,
        settings.estimator,
        backward_samples=cast(Any, settings.backward_samples),
        variance_growth=settings.variance_growth,
    )


def _heard(callbacks: Callbacks, before: int, number: int, bound: Tensor) -> None:
    callbacks.step(before + number, bound)


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of settings.json for loggers."""
    return {**described["settings"], "data": described["data"]["name"], **described["versions"]}


def _of_run(images: Images, settings: Settings) -> dict[str, Any]:
    """Return the facts that a resumed run must have in common with the old one, by name."""
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
            "random": random_state(self._generators()),
            "epochs": [dataclasses.astuple(row) for row in self.rows],
        }

    def load(self, path: Path, state: Mapping[str, Any]) -> None:
        try:
            self._check(path, state["of"])
            self.rows = [Epoch(*row) for row in state["epochs"]]
            self.vae.load_state_dict(state["vae"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            # Only the run's own device counts: the machine may have other devices than before.
            set_random_state({**state["random"], "cuda": []}, self._generators())
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"train: expected the checkpoint in {path} to be as `fastvi train` writes it, got "
                f"{type(error).__name__}: {error}"
            ) from error

    def _generators(self) -> list[torch.Generator]:
        """Return the generator of the device, unless it is the CPU's, which is saved anyway."""
        device = next(self.vae.parameters()).device
        if device.type != "cuda":
            return []
        return [torch.cuda.default_generators[device.index]]

    def _check(self, path: Path, of: Mapping[str, Any]) -> None:
        for name, value in self.of.items():
            # Runs of before a setting was kept have none, which is its default.
            if of.get(name) != value:
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
    ranks: Ranks,
    on_step: Callable[[int, Tensor], None],
) -> float:
    """Train for one pass over the data in random order, and return the mean bound over it."""
    total = torch.zeros((), dtype=torch.float64, device=pixels.device)
    order = torch.randperm(len(pixels), device=pixels.device)
    for number, rows in enumerate(order.split(settings.batch_size), 1):
        x = pixels[rows]
        if settings.likelihood == "bernoulli":
            x = binarise(x)
        own, key = ranks.share(x), ranks.key(x.device)
        optimizer.zero_grad(set_to_none=True)
        bound = torch.zeros((), device=x.device)
        if len(own):
            loss = vae.loss(own, criterion, key=key)
            if len(own) < len(x):
                loss = loss * (len(own) / len(x))
            loss.backward()
            bound = -loss.detach()
        ranks.sum_gradients(vae.parameters())
        optimizer.step()
        bound = ranks.sum(bound)
        total += bound * len(rows)
        on_step(number, bound)
    return total.item() / len(pixels)


def _mean_loss(
    vae: VAE, criterion: IWLBLoss, pixels: Tensor, settings: Settings, ranks: Ranks
) -> float:
    total = 0.0
    for x in pixels.split(settings.batch_size):
        own, key = ranks.share(x), ranks.key(x.device)
        if len(own):
            total += vae.loss(own, criterion, key=key).item() * len(own)
    sums = torch.tensor(total, dtype=torch.float64, device=pixels.device)
    return ranks.sum(sums).item() / len(pixels)


def evaluate(
    vae: VAE, pixels: Tensor, nums_samples: Sequence[int], ranks: Ranks = ALONE
) -> list[Evaluation]:
    """Estimate held-out L_K for each K, on the pixels of :func:`held_out_pixels`."""
    rows = []
    for num_samples in nums_samples:
        chunk_size = min(num_samples, _SAMPLES_AT_ONCE)
        parts = [
            vae.log_evidence(x, num_samples, chunk_size=chunk_size, key=ranks.key(x.device))
            for x in ranks.share(pixels).split(_IMAGES_AT_ONCE)
        ]
        bounds = ranks.join(torch.cat(parts)).double()
        # A single image has no standard error.
        error = bounds.std().item() / math.sqrt(len(bounds)) if len(bounds) > 1 else math.nan
        rows.append(Evaluation(num_samples, bounds.mean().item(), error, len(bounds)))
    return rows
