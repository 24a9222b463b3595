"""The protocol of callbacks: the calls that a run makes, and their arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Epoch:
    """Hold the numbers of one epoch: mean bounds in nats, and the steps and seconds so far.

    Attributes:
        number: of the epoch, from 1.
        bound: mean over the epoch's steps, in nats.
        held_out: the bound of held-out data after the epoch; ``None`` without such data.
        steps: steps of the optimizer since the run began.
        learning_rate: of the epoch, in the first group of the first optimizer; ``None`` without.
        seconds: seconds since the run began, without the time of an interruption.
    """

    number: int
    bound: float
    held_out: float | None
    steps: int
    learning_rate: float | None
    seconds: float

    def scalars(self) -> dict[str, float]:
        """Return the numbers for loggers by name, without those that are ``None``."""
        named = {
            "epoch": self.number,
            "train_bound": self.bound,
            "held_out_bound": self.held_out,
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Beginning:
    """Hold the facts of a run when it begins or continues.

    Attributes:
        epochs: the number of epochs in all.
        past: the epochs before an interruption; empty for a new run.
        settings: of the run, by name, plain values.
    """

    epochs: int
    past: Sequence[Epoch] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Callback:
    """Receive the calls of a run and do nothing; a subclass overrides the methods that it needs.

    ``SVI.fit`` and ``fastvi train`` call them in this order. If a method raises an error, the run
    ends after its files are saved, so a callback can stop a run in this way.

    Example:
        >>> class Stop(fastvi.callbacks.Callback):
        ...     def on_epoch(self, epoch):
        ...         if epoch.bound > -1.0:
        ...             raise StopIteration
    """

    def on_begin(self, run: Beginning) -> None:
        """Handle the begin of a run. A run that continues has the epochs before it."""

    def on_step(self, number: int, bound: Tensor) -> None:
        """Handle a step of the optimizer; ``number`` counts the steps of the run from 1.

        ``bound`` is the detached bound before the step, on the model's device. To read its value is
        to wait for the device.
        """

    def on_epoch(self, epoch: Epoch) -> None:
        """Handle the end of an epoch, after it is saved if the run keeps a checkpoint."""

    def on_end(self, error: BaseException | None) -> None:
        """Handle the end of the run; ``error`` is the error or the interruption that ended it."""
