"""The folder of a run, whose files can be read at any moment, even after an interruption."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvi.files import saved as files
from fastvi.files.weights import save_weights

METRICS = "metrics.csv"
WEIGHTS = "weights.safetensors"
SETTINGS = "settings.json"
EVALUATION = "evaluation.csv"
CHECKPOINT = "checkpoint.pt"
BOUND, RECONSTRUCTIONS, SAMPLES = "bound.png", "reconstructions.png", "samples.png"
# The checkpoint is removed last, so that an interrupted removal can be resumed.
FILES = (METRICS, WEIGHTS, SETTINGS, EVALUATION, BOUND, RECONSTRUCTIONS, SAMPLES, CHECKPOINT)
# The folders of loggers, if there are any.
TENSORBOARD, WANDB = "tensorboard", "wandb"
LOGS = (TENSORBOARD, WANDB)
FORMAT = 2


class RunFolder:
    """Hold the folder of one run, and overwrite nothing in it without ``overwrite``.

    Args:
        root: the folder of all runs.
        name: of this run; a plain folder name.
        overwrite: take a folder that already holds a run, and remove that run's files.
        resume: take a folder that already holds a run, and continue from its checkpoint.

    Raises:
        FileExistsError: it holds a run, and ``overwrite`` and ``resume`` are false; or the run has
            no checkpoint.
        ValueError: a name that is not a plain folder name; both of them.
    """

    def __init__(
        self, root: str | Path, name: str, *, overwrite: bool = False, resume: bool = False
    ) -> None:
        if not name or name in (".", "..") or any(char in name for char in '/\\:*?"<>|\0'):
            raise ValueError(
                f"RunFolder: expected name to be the name of a folder, without slashes, "
                f"got {name!r}"
            )
        self.path = Path(root) / name
        if overwrite and resume:
            raise ValueError("RunFolder: expected overwrite or resume, got both")
        self.overwrite, self.resume = overwrite, resume
        self._refuse_existing()

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} exists and is not a folder; choose another --name")
        if self.resume and (self.path / METRICS).exists() and not self._has_state():
            raise FileExistsError(
                f"{self.path} holds a run that has saved nothing to resume from: no {CHECKPOINT}"
            )
        holds_files = self.path.exists() and any(self.path.iterdir())
        if holds_files and not (self.overwrite or self.resume):
            raise FileExistsError(
                f"{self.path} holds a run already. Choose another --name, go on with that run by "
                "--resume, or replace it with --overwrite (make demo ARGS=--overwrite)"
            )

    def _has_state(self) -> bool:
        return (self.path / CHECKPOINT).exists()

    def create(self) -> None:
        """Make the folder; remove the files of an overwritten run or of a kill.

        Raises:
            OSError: nothing can be written there.
        """
        self._refuse_existing()
        self.path.mkdir(parents=True, exist_ok=True)
        files.check_place("train", "the run", self.path / CHECKPOINT)
        for name in FILES:
            files.clean(self.path / name)
            if not (self.resume and self._has_state()):
                (self.path / name).unlink(missing_ok=True)
        if self.overwrite:
            for name in LOGS:
                shutil.rmtree(self.path / name, ignore_errors=True)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self._replace(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())

    def write_evaluation(self, rows: Sequence[Mapping[str, object]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._replace(EVALUATION, text.getvalue().encode())

    def save_weights(self, state: Mapping[str, Tensor]) -> None:
        """Write weights.safetensors; a reader gets the old file or the new one, complete."""
        save_weights(self.path / WEIGHTS, state)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write all that the rest of the run depends on; see :meth:`load_state`."""
        files.save(self.path / CHECKPOINT, {"format": FORMAT, **state})

    def load_state(self) -> dict[str, Any] | None:
        """Return the state that a resumed run has saved, or None if there is none yet.

        Raises:
            ValueError: a file that no run wrote, or one of another version.
        """
        path = self.path / CHECKPOINT
        if not self.resume or not path.exists():
            return None
        state = files.load("train", path, "a checkpoint of `fastvi train`")
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(
                f"train: expected {path} to be a checkpoint of `fastvi train`, of format {FORMAT}, "
                f"it is not"
            )
        return state

    def _replace(self, name: str, content: bytes) -> None:
        files.replace(self.path / name, content)
