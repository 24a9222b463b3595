"""The protocol: what a run tells, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Epoch:
    """Hold what is known after one epoch: mean bounds in nats, and the steps and seconds so far.

    Attributes:
        number: of the epoch, from 1.
        bound: mean over the epoch's steps, in nats.
        held_out: the bound of held-out data after the epoch; ``None`` without such data.
        steps: of the optimizer, since the run began.
        learning_rate: of the epoch, in the first group of the first optimizer; ``None`` without.
        seconds: since the run began, without those between an interruption and its resumption.
    """

    number: int
    bound: float
    held_out: float | None
    steps: int
    learning_rate: float | None
    seconds: float

    def scalars(self) -> dict[str, float]:
        """Return what loggers write down, by name, without what is ``None``."""
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
    """Hold what is known when a run begins, or goes on.

    Attributes:
        epochs: how many there will be in all.
        past: those of before an interruption; empty for a run that begins.
        settings: of the run, by name, plain values.
    """

    epochs: int
    past: Sequence[Epoch] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Callback:
    """Hear of a run, and do nothing: a class of one's own overrides the methods that it needs.

    ``SVI.fit`` and ``fastvi train`` call them in this order. An error that a method raises ends the
    run, after what was saved has been saved; so a callback stops a run by raising one.

    Example:
        >>> class Stop(fastvi.callbacks.Callback):
        ...     def on_epoch(self, epoch):
        ...         if epoch.bound > -1.0:
        ...             raise StopIteration
    """

    def on_begin(self, run: Beginning) -> None:
        """Hear that a run begins, or goes on: then with the epochs of before."""

    def on_step(self, number: int, bound: Tensor) -> None:
        """Hear of a step of the optimizer, by its number in the run, from 1.

        ``bound`` is the detached bound before the step, on the model's device: to read it as a
        number waits for the device.
        """

    def on_epoch(self, epoch: Epoch) -> None:
        """Hear that an epoch is over, and saved if the run keeps a checkpoint."""

    def on_end(self, error: BaseException | None) -> None:
        """Hear that the run is over, or which error or interruption ends it."""
