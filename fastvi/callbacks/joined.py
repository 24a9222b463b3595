"""One callback for all that a user gives to a loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

from torch import Tensor

from fastvi.callbacks.callback import Beginning, Callback, Epoch
from fastvi.callbacks.loggers import writer_of


class _Function(Callback):
    def __init__(self, function: Callable[[Epoch], object]) -> None:
        self.function = function

    def on_epoch(self, epoch: Epoch) -> None:
        self.function(epoch)


class Callbacks:
    """Join all given callbacks and functions to one callback for the loops.

    Args:
        where: the first word of an error.
        given: ``None``; a :class:`Callback`; a function of an :class:`Epoch`; a writer of another
            library with ``add_scalar`` (TensorBoard's ``SummaryWriter``), ``log_metrics`` (a logger
            of Lightning's) or ``log`` (a run of Weights & Biases); or several of them.

    Raises:
        TypeError: something else.
    """

    def __init__(self, where: str, given: Any) -> None:
        self._all = [_callback(where, one) for one in _several(given)]
        self._of_steps: list[Callback] = []

    def first(self, callback: Callback) -> None:
        """Put a callback before all others."""
        self._all.insert(0, callback)

    @contextlib.contextmanager
    def running(self, run: Beginning) -> Iterator[Callbacks]:
        """Begin all callbacks, and end all that have begun, in reverse order, even after errors."""
        # A step is short, so only callbacks that override on_step are called.
        self._of_steps = [one for one in self._all if type(one).on_step is not Callback.on_step]
        with contextlib.ExitStack() as stack:
            for one in self._all:
                one.on_begin(run)
                stack.push(_ending(one))
            yield self

    def step(self, number: int, bound: Tensor) -> None:
        for one in self._of_steps:
            one.on_step(number, bound)

    def epoch(self, epoch: Epoch) -> None:
        for one in self._all:
            one.on_epoch(epoch)


def _several(given: Any) -> Iterable[Any]:
    if given is None:
        return ()
    return given if isinstance(given, (list, tuple)) else (given,)


def _ending(
    callback: Callback,
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    return lambda kind, error, trace: callback.on_end(error)


def _callback(where: str, given: Any) -> Callback:
    if isinstance(given, Callback):
        return given
    if not isinstance(given, type):
        writer = writer_of(given)
        if writer is not None:
            return writer
        if callable(given):
            return _Function(given)
    raise TypeError(
        f"{where}: expected on_epoch to be a function of an Epoch, a fastvi.callbacks.Callback, a "
        f"SummaryWriter, a run of wandb, or several in a list, got "
        f"{f'the class {given.__name__}' if isinstance(given, type) else type(given).__name__}"
    )
