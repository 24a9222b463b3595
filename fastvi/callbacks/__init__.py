"""Callbacks of a run: functions, loggers and progress bars, with one protocol for all loops."""

from fastvi.callbacks.callback import Beginning, Callback, Epoch
from fastvi.callbacks.loggers import CSVLog, ScalarLog, TensorBoardLog, WandbLog
from fastvi.callbacks.progress import ProgressBar

__all__ = [
    "Beginning",
    "CSVLog",
    "Callback",
    "Epoch",
    "ProgressBar",
    "ScalarLog",
    "TensorBoardLog",
    "WandbLog",
]
