"""Loggers: a CSV file, TensorBoard, Weights & Biases, and writers of other libraries."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvi._checks import check_num_samples
from fastvi._optional import need
from fastvi.callbacks.callback import Beginning, Callback, Epoch
from fastvi.files import saved as files
from fastvi.files._strangers import check_regular, one_line

_EXTRA = "logs"
_MOST_TEXT = 2**26


class CSVLog(Callback):
    """Write a line for each epoch to a CSV file, which can be read at any moment.

    A run that continues writes the file again, with the earlier epochs: a kill loses no line and
    doubles none. The columns are epoch, train_bound, held_out_bound, step, learning_rate and
    seconds. A column without a number is empty.

    Args:
        path: of the file, in a folder that exists.
        overwrite: replace a file that exists when a run begins.

    Raises:
        FileExistsError: the file exists when a run begins, without ``overwrite``.
        FileNotFoundError: its folder does not exist.
        OSError: it cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "fit.csv"
        >>> guide = fastvi.guides.MeanFieldGaussian({"z": ()})
        >>> def model(z):
        ...     return torch.distributions.Normal(2.0, 0.5).log_prob(z["z"])
        >>> optimizer = torch.optim.Adam(guide.parameters())
        >>> svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.ELBO(8))
        >>> _ = svi.fit(epochs=3, on_epoch=fastvi.callbacks.CSVLog(path))
        >>> path.read_text().splitlines()[0]
        'epoch,train_bound,held_out_bound,step,learning_rate,seconds'
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path, self.overwrite = Path(path), overwrite

    def on_begin(self, run: Beginning) -> None:
        files.check_place("CSVLog", "path", self.path)
        if run.past:
            files.replace(self.path, _lines([_HEAD, *map(_row, run.past)]))
        elif self.overwrite:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            raise FileExistsError(
                f"CSVLog: expected no file at {self.path} when a run begins; overwrite=True "
                f"replaces it"
            )

    def on_epoch(self, epoch: Epoch) -> None:
        # One write, so that no reader gets half of a line.
        head = [] if self.path.exists() else [_HEAD]
        files.append(self.path, _lines([*head, _row(epoch)]))


_HEAD = ("epoch", "train_bound", "held_out_bound", "step", "learning_rate", "seconds")


def _row(epoch: Epoch) -> tuple[object, ...]:
    rate = None if epoch.learning_rate is None else f"{epoch.learning_rate:.6g}"
    seconds = f"{epoch.seconds:.2f}"
    return (epoch.number, epoch.bound, epoch.held_out, epoch.steps, rate, seconds)


def _lines(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read_csv_log(path: str | Path) -> list[Epoch]:
    """Read the epochs that a :class:`CSVLog` has written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another kind, or too long to be one.
    """
    path = Path(path)
    check_regular("read_csv_log", path)
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        content = file.read(_MOST_TEXT + 1)
    try:
        if len(content) > _MOST_TEXT:
            raise ValueError(f"more than {_MOST_TEXT} characters")
        rows = list(csv.DictReader(io.StringIO(content)))
        return [
            Epoch(
                int(row["epoch"]),
                float(row["train_bound"]),
                _number(row["held_out_bound"]),
                int(row["step"]),
                _number(row["learning_rate"]),
                float(row["seconds"]),
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"read_csv_log: expected {path} to be as CSVLog writes it, got "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error


def _number(text: str) -> float | None:
    return float(text) if text else None


class ScalarLog(Callback):
    """Pass numbers to a logger after each epoch, and every ``every_steps`` steps.

    The numbers of an epoch are train_bound, held_out_bound, learning_rate, seconds and epoch; the
    number of a step is step_bound. All are counted by the steps of the optimizer. A subclass
    overrides :meth:`write`.

    Args:
        every_steps: steps between two numbers of steps; ``None`` writes only those of epochs.

    Example:
        >>> class Print(fastvi.callbacks.ScalarLog):
        ...     def write(self, scalars, step):
        ...         print(step, scalars["train_bound"])
    """

    def __init__(self, every_steps: int | None = None) -> None:
        if every_steps is not None:
            check_num_samples(type(self).__name__, every_steps, "every_steps")
        self.every_steps = every_steps

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Write numbers by their names, at a step of the optimizer."""
        raise NotImplementedError

    def on_step(self, number: int, bound: Tensor) -> None:
        if self.every_steps is not None and number % self.every_steps == 0:
            self.write({"step_bound": bound.item()}, number)

    def on_epoch(self, epoch: Epoch) -> None:
        self.write(epoch.scalars(), epoch.steps)


class TensorBoardLog(ScalarLog):
    """Write a run's numbers for TensorBoard (extra ``logs``).

    A run that continues writes the earlier epochs again, and TensorBoard hides the rest of a
    killed run, so that each epoch is drawn once. Give a ``SummaryWriter`` of your own to
    ``on_epoch`` itself. If a run continues, it gets only the new epochs.

    Args:
        folder: of the event files.
        every_steps: see :class:`ScalarLog`.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path, *, every_steps: int | None = None) -> None:
        super().__init__(every_steps)
        need("tensorboard", "logging to TensorBoard", _EXTRA)
        self.folder = Path(folder)
        self._writer: Any = None

    def on_begin(self, run: Beginning) -> None:
        module = need("torch.utils.tensorboard", "logging to TensorBoard", _EXTRA)
        again = {"purge_step": 0} if run.past else {}
        self._writer = module.SummaryWriter(str(self.folder), **again)
        for epoch in run.past:
            self.on_epoch(epoch)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def on_epoch(self, epoch: Epoch) -> None:
        super().on_epoch(epoch)
        self._writer.flush()

    def on_end(self, error: BaseException | None) -> None:
        self._writer.close()


class WandbLog(ScalarLog):
    """Write a run's numbers for Weights & Biases (extra ``logs``), on this machine alone.

    ``wandb sync FOLDER/wandb/offline-run-...`` sends them later. A run that continues begins a new
    record with all earlier epochs: sync the newest. Give a run of your own, from ``wandb.init``, to
    ``on_epoch`` itself.

    Args:
        folder: wandb makes its folder ``wandb`` in it.
        project: the name of the project.
        name: of the run; wandb's own choice if None.
        every_steps: see :class:`ScalarLog`.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(
        self,
        folder: str | Path = ".",
        *,
        project: str = "fastvi",
        name: str | None = None,
        every_steps: int | None = None,
    ) -> None:
        super().__init__(every_steps)
        need("wandb", "logging to Weights & Biases", _EXTRA)
        self.folder, self.project, self.name = Path(folder), project, name
        self._run: Any = None

    def on_begin(self, run: Beginning) -> None:
        wandb = need("wandb", "logging to Weights & Biases", _EXTRA)
        self.folder.mkdir(parents=True, exist_ok=True)
        # wandb would print its messages into the middle of a progress bar.
        quiet = wandb.Settings(silent=True)
        self._run = wandb.init(
            dir=str(self.folder),
            project=self.project,
            name=self.name,
            config=dict(run.settings),
            mode="offline",
            # A run that the user has begun is not ended here.
            reinit="create_new",
            settings=quiet,
        )
        for epoch in run.past:
            self.on_epoch(epoch)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def on_end(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class _Writer(ScalarLog):
    def __init__(self, call: Callable[[Mapping[str, float], int], object]) -> None:
        super().__init__()
        self._call = call

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._call(dict(scalars), step)


def writer_of(given: Any) -> ScalarLog | None:
    """Return a logger that calls a writer of another library, or None for other objects."""

    def add_scalars(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            given.add_scalar(name, value, step)

    if callable(getattr(given, "add_scalar", None)):
        return _Writer(add_scalars)
    if callable(getattr(given, "log_metrics", None)):
        return _Writer(given.log_metrics)
    # Python's own loggers have a method of that name for messages.
    if callable(getattr(given, "log", None)) and not isinstance(given, logging.Logger):
        return _Writer(lambda scalars, step: given.log(scalars, step=step))
    return None
