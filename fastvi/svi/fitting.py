"""The loop of ``SVI.fit``: epochs, early stopping and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastvi._checks import check_num_samples
from fastvi.callbacks import Beginning, Epoch, ProgressBar
from fastvi.callbacks.joined import Callbacks
from fastvi.chunks.few import forget_few
from fastvi.files.saved import check_place
from fastvi.svi import checkpoint as files
from fastvi.svi.batches import Batches, length, parts
from fastvi.svi.fitted import Fitted


@dataclass
class _Progress:
    """Hold the state of a run, except for its parameters."""

    epochs: list[Epoch] = field(default_factory=list)
    # Of the current epoch: the batches so far, their data, and the sum of their bounds.
    batches: int = 0
    weight: float = 0.0
    total: float = 0.0
    # The generators when the epoch began.
    began_with: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    best_bound: float = -math.inf
    best_epoch: int = 0


def fit(
    svi: Fitted,
    data: Any,
    epochs: int,
    *,
    batch_size: int | None,
    shuffle: bool,
    held_out: Any,
    patience: int | None,
    checkpoint: str | Path | None,
    checkpoint_every: int | None,
    resume: bool,
    scheduler: Any,
    num_data: int | None,
    progress: bool,
    on_epoch: Any,
) -> list[Epoch]:
    """See :meth:`SVI.fit`; ``on_epoch`` is whatever :class:`Callbacks` takes."""
    where = "SVI.fit"
    callbacks = Callbacks(where, on_epoch)
    if progress:
        callbacks.first(ProgressBar())
    check_num_samples(where, epochs, "epochs")
    numbers = {
        "batch_size": batch_size, "patience": patience, "checkpoint_every": checkpoint_every,
        "num_data": num_data,
    }  # fmt: skip
    for name, value in numbers.items():
        if value is not None:
            check_num_samples(where, value, name)
    batches = Batches("data", data, batch_size, shuffle)
    others = None if held_out is None else Batches("held_out", held_out, batch_size, False)
    path = None if checkpoint is None else Path(checkpoint)
    if path is None and (resume or checkpoint_every is not None):
        raise ValueError(f"{where}: expected checkpoint to be the path of a file, got None")
    schedulers = _schedulers(svi, scheduler)
    if path is not None:
        # It also removes the rest of an interrupted write.
        check_place(where, "checkpoint", path)
        if path.exists() and not resume:
            raise FileExistsError(
                f"{where}: expected no file at {path}; resume=True goes on from it"
            )
        files.check_names_stay(svi)
    before = svi.num_data
    if num_data is not None or before is None:
        svi.num_data = batches.num_data() if num_data is None else num_data
    try:
        run = _Run(svi, batches, others, patience, path, checkpoint_every, schedulers, callbacks)
        if path is not None and path.exists():
            run.load(path)
        past = tuple(run.state.epochs)
        with callbacks.running(Beginning(epochs, past, run.plain_settings())):
            while len(run.state.epochs) < epochs and not run.finished():
                callbacks.epoch(run.epoch())
    finally:
        svi.num_data = before
    run.take_best()
    return run.state.epochs


class _Run:
    def __init__(
        self,
        svi: Fitted,
        batches: Batches,
        held_out: Batches | None,
        patience: int | None,
        path: Path | None,
        every: int | None,
        schedulers: list[Any],
        callbacks: Callbacks,
    ) -> None:
        self.svi, self.batches, self.held_out = svi, batches, held_out
        self.patience, self.path, self.every = patience, path, every
        self.schedulers, self.callbacks = schedulers, callbacks
        self.state = _Progress()
        self.began = time.perf_counter()
        self.before = 0.0
        self.resumed_at: dict[str, Any] | None = None

    # ---- one epoch ----------------------------------------------------------------------------
    def epoch(self) -> Epoch:
        state = self.state
        before = state.epochs[-1].steps if state.epochs else 0
        rate = self._learning_rate()
        total = torch.tensor(state.total, dtype=torch.float64)
        for batch in self._rest_of_epoch():
            bound = self.svi.step(batch)
            size = _size(batch)
            total = total.to(bound.device) + size * bound.double()
            state.weight += size
            state.batches += 1
            if self.every is not None and state.batches % self.every == 0:
                state.total = total.item()
                self.save()
            self.callbacks.step(before + state.batches, bound)
        if state.batches == 0:
            raise ValueError("SVI.fit: expected data to have at least one batch, got none")
        number = len(state.epochs) + 1
        mean = total.item() / state.weight
        held_out = None if self.held_out is None else self._evaluate(self.held_out)
        for name, value in (("bound", mean), ("held-out bound", held_out)):
            if value is not None and not math.isfinite(value):
                raise FloatingPointError(
                    f"SVI.fit: the {name} is {value} after epoch {number}; try a smaller learning "
                    f"rate, or look for data outside the support"
                )
        seconds = self.before + time.perf_counter() - self.began
        row = Epoch(number, mean, held_out, before + state.batches, rate, seconds)
        state.epochs.append(row)
        state.batches, state.weight, state.total, state.began_with = 0, 0.0, 0.0, None
        watched = mean if held_out is None else held_out
        for scheduler in self.schedulers:
            # ReduceLROnPlateau waits for its number to fall.
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([-watched] if plateau else []))
        if self.patience is not None:
            self._compare(watched, number)
        if self.path is not None:
            self.save()
        return row

    def _learning_rate(self) -> float | None:
        for optimizer in self.svi.optimizers():
            rate = optimizer.param_groups[0].get("lr")
            return None if rate is None else float(rate)
        return None

    def _rest_of_epoch(self) -> Iterator[Any]:
        """Yield the batches that were not used before the interruption."""
        state, own = self.state, self.batches.generators()
        done, resumed = state.batches, self.resumed_at
        self.resumed_at = None
        if state.began_with is not None:
            files.set_random_state(state.began_with, own)
        else:
            state.began_with = files.random_state(own)
        for number, batch in enumerate(self.batches):
            if number < done:
                continue
            if resumed is not None:
                files.set_random_state(resumed, [])
                resumed = None
            yield batch
        if resumed is not None:
            files.set_random_state(resumed, [])

    def _evaluate(self, batches: Batches) -> float:
        """Return the bound of all held-out data, which does not depend on N."""
        num_data, self.svi.num_data = self.svi.num_data, batches.num_data()
        try:
            rows = [(self.svi.evaluate(batch).item(), _size(batch)) for batch in batches]
        finally:
            self.svi.num_data = num_data
        return sum(value * size for value, size in rows) / sum(size for _, size in rows)

    # ---- early stopping -----------------------------------------------------------------------
    def _compare(self, bound: float, number: int) -> None:
        if bound > self.state.best_bound:
            self.state.best_bound, self.state.best_epoch = bound, number
            self.state.best = files.copy_of(files.parameters_of(self.svi))

    def finished(self) -> bool:
        state = self.state
        if self.patience is None or not state.epochs:
            return False
        return len(state.epochs) - state.best_epoch >= self.patience

    def take_best(self) -> None:
        if self.patience is not None and self.state.best is not None:
            files.set_parameters(self.svi, self.state.best)

    def plain_settings(self) -> dict[str, Any]:
        """Return the settings for loggers: plain values, without the data."""
        optimizers = [type(one).__name__ for one in self.svi.optimizers()]
        settings = {name: value for name, value in self._settings().items() if name != "data"}
        return settings | {"optimizer": ", ".join(optimizers)}

    # ---- the file -----------------------------------------------------------------------------
    def _settings(self) -> dict[str, Any]:
        return {
            "num_data": self.svi.num_data,
            "data": self.batches.description(),
            "batch_size": self.batches.batch_size,
            "shuffle": self.batches.shuffle,
            "patience": self.patience,
            "objective": str(self.svi.objective),
        }

    def save(self) -> None:
        assert self.path is not None
        # No file holds what "auto" remembers, so a run that goes on has to forget it as well.
        forget_few(self.svi.objective)
        state = {name: value for name, value in vars(self.state).items() if name != "epochs"}
        rows = [dataclasses.astuple(row) for row in self.state.epochs]
        files.save(
            self.path,
            {
                "settings": self._settings(),
                "parameters": files.parameters_of(self.svi),
                "optimizers": files.optimizers_of(self.svi),
                "schedulers": [(type(one).__name__, one.state_dict()) for one in self.schedulers],
                "random": files.random_state(self.batches.generators()),
                "own": {name: one.get_state() for name, one in self._generators().items()},
                "state": state | {"epochs": rows},
            },
        )

    def _generators(self) -> dict[str, torch.Generator]:
        """Return the generators of the model; the loader's are restored with its data."""
        loader = [id(generator) for generator in self.batches.generators()]
        return {n: one for n, one in self.svi.generators().items() if id(one) not in loader}

    def load(self, path: Path) -> None:
        """Load a file; a file that does not fit changes nothing."""
        content = files.load(path)
        where = f"SVI.fit: expected the checkpoint {path}"
        try:
            self._check(content, where)
            self._set(content)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            # Another program may have written the file.
            first = (str(error).splitlines() or [""])[0]
            raise ValueError(
                f"{where} to be as SVI.fit writes it, got {type(error).__name__}: {first}"
            ) from error

    def _check(self, content: dict[str, Any], where: str) -> None:
        files.check_optimizers(self.svi, content["optimizers"], where)
        mine = self._settings()
        for name, value in content["settings"].items():
            if mine.get(name) != value:
                raise ValueError(
                    f"{where} to have been made with {name} = {mine.get(name)}, got {value}"
                )
        kinds = [type(one).__name__ for one in self.schedulers]
        saved = [kind for kind, _ in content["schedulers"]]
        if kinds != saved:
            raise ValueError(
                f"{where} to have been made with {', '.join(kinds) or 'no scheduler'}, got "
                f"{', '.join(saved) or 'no scheduler'}"
            )
        files.check_parameters(self.svi, content["parameters"], where)
        own = self._generators()
        if set(own) != set(content["own"]):
            raise ValueError(
                f"{where} to hold the generators {sorted(own)}, got {sorted(content['own'])}"
            )

    def _set(self, content: dict[str, Any]) -> None:
        files.set_parameters(self.svi, content["parameters"])
        files.set_optimizers(self.svi, content["optimizers"])
        for scheduler, (_, state) in zip(self.schedulers, content["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        for name, generator in self._generators().items():
            generator.set_state(content["own"][name])
        progress = content["state"]
        rows = [Epoch(*row) for row in progress.pop("epochs")]
        self.state = _Progress(epochs=rows, **progress)
        self.before = rows[-1].seconds if rows else 0.0
        if self.state.began_with is None:
            files.set_random_state(content["random"], self.batches.generators())
        else:
            self.resumed_at = content["random"] | {"own": []}


def _schedulers(svi: Fitted, given: Any) -> list[Any]:
    """Return the schedulers, after a check that they belong to the optimizers of the run."""
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    schedulers = [one for one in several if one is not None]
    for one in schedulers:
        if not all(hasattr(one, name) for name in ("step", "state_dict", "load_state_dict")):
            raise TypeError(
                f"SVI.fit: expected scheduler to be one of torch.optim.lr_scheduler, got "
                f"{type(one).__name__}"
            )
        of = getattr(one, "optimizer", None)
        if of is not None and not any(of is optimizer for optimizer in svi.optimizers()):
            raise ValueError(
                f"SVI.fit: expected scheduler to be of SVI's optimizer, got a "
                f"{type(one).__name__} of another {type(of).__name__}, which takes no step here"
            )
    return schedulers


def _size(batch: Any) -> int:
    return length(parts(batch)) or 1
