"""A progress bar of a run's epochs, in a terminal and in a notebook."""

from __future__ import annotations

import sys
from typing import Any

from fastvi._optional import need
from fastvi.callbacks.callback import Beginning, Callback, Epoch

_WIDTH = 100  # the width of a bar in a notebook


class ProgressBar(Callback):
    """Show the progress of a run, its bounds and the time left (extra ``progress``).

    In a notebook the bar is the cell's output, and needs no widgets. Without a terminal, such as in
    a file or a pipe, it prints one line when the run ends.

    Args:
        console: a ``rich.console.Console``; ``None`` makes one of the standard output.

    Raises:
        ImportError: rich is not installed.
    """

    def __init__(self, console: Any = None) -> None:
        rich = need("rich.progress", "the progress bar", "progress")
        self._notebook = console is None and _in_notebook()
        if console is None:
            module = need("rich.console", "the progress bar", "progress")
            plain = {"force_jupyter": False, "force_terminal": False, "color_system": None}
            shown = {**plain, "width": _WIDTH} if self._notebook else {}
            console = module.Console(markup=False, **shown)
        columns = (
            rich.TextColumn("epoch"),
            rich.MofNCompleteColumn(),
            rich.BarColumn(),
            rich.TimeRemainingColumn(elapsed_when_finished=True),
            rich.TextColumn("{task.description}", markup=False),
        )
        self._console = console
        self._bar = rich.Progress(*columns, console=console, disable=self._notebook)
        self._task: Any = None
        self._display: Any = None

    def on_begin(self, run: Beginning) -> None:
        last = _words(run.past[-1]) if run.past else ""
        self._task = self._bar.add_task(last, total=run.epochs, completed=len(run.past))
        if self._notebook:
            display = need("IPython.display", "the progress bar", "progress").display
            self._display = display({"text/plain": self._line()}, raw=True, display_id=True)
        else:
            self._bar.start()

    def on_epoch(self, epoch: Epoch) -> None:
        self._bar.update(self._task, advance=1, description=_words(epoch))
        if self._display is not None:
            self._display.update({"text/plain": self._line()}, raw=True)

    def on_end(self, error: BaseException | None) -> None:
        self._bar.stop()

    def _line(self) -> str:
        with self._console.capture() as captured:
            self._console.print(self._bar.make_tasks_table(self._bar.tasks))
        return captured.get().rstrip()


def _words(epoch: Epoch) -> str:
    held_out = "" if epoch.held_out is None else f", held out {epoch.held_out:.2f}"
    return f"bound {epoch.bound:.2f}{held_out}"


def _in_notebook() -> bool:
    """Return whether the output of a notebook's cell can be changed after it is shown."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
