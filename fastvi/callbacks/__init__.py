"""Who hears of a run: functions, loggers, progress bars; one protocol for every loop of fastvi."""

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
