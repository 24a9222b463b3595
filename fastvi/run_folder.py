"""The folder of a run: what is in it can be read at any moment, also after an interruption."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvi._optional import need

METRICS = "metrics.csv"
WEIGHTS = "weights.safetensors"
SETTINGS = "settings.json"
EVALUATION = "evaluation.csv"
BOUND, RECONSTRUCTIONS, SAMPLES = "bound.png", "reconstructions.png", "samples.png"
FILES = (METRICS, WEIGHTS, SETTINGS, EVALUATION, BOUND, RECONSTRUCTIONS, SAMPLES)


class RunFolder:
    """A folder of one run, of which nothing is overwritten unless asked.

    Args:
        root: the folder of all runs.
        name: of this run; a plain folder name.
        overwrite: take a folder that holds a run already, and remove that run's files.

    Raises:
        FileExistsError: there is a run in it, and ``overwrite`` is false.
        ValueError: a name that is not a plain folder name.
    """

    def __init__(self, root: str | Path, name: str, *, overwrite: bool = False) -> None:
        if not name or name in (".", "..") or any(char in name for char in '/\\:*?"<>|\0'):
            raise ValueError(
                f"RunFolder: expected name to be the name of a folder, without slashes, "
                f"got {name!r}"
            )
        self.path = Path(root) / name
        self.overwrite = overwrite
        self._columns: Sequence[str] | None = None
        self._refuse_if_taken()

    def _refuse_if_taken(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} exists and is not a folder; choose another --name")
        if not self.overwrite and self.path.exists() and any(self.path.iterdir()):
            raise FileExistsError(
                f"{self.path} holds a run already. Choose another --name, or replace that run "
                "with --overwrite (make demo ARGS=--overwrite)"
            )

    def create(self) -> None:
        """Make the folder, and remove the files of the run that is overwritten."""
        self._refuse_if_taken()
        self.path.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Add a line to metrics.csv, in one write, so that no reader sees half of it."""
        if self._columns is None:
            self._columns = list(row)
            self._append(self._columns)
        self._append([row[column] for column in self._columns])

    def _append(self, values: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        with (self.path / METRICS).open("a", newline="") as file:
            file.write(line.getvalue())

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        self._replace(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())

    def write_evaluation(self, rows: Sequence[Mapping[str, object]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._replace(EVALUATION, text.getvalue().encode())

    def save_weights(self, state: Mapping[str, Tensor]) -> None:
        """Write weights.safetensors; a reader sees the old file or the new one, whole."""
        safetensors = need("safetensors.torch", "saving weights")
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        self._replace(WEIGHTS, safetensors.save(tensors))

    def _replace(self, name: str, content: bytes) -> None:
        part = self.path / f".{name}.part"
        try:
            part.write_bytes(content)
            os.replace(part, self.path / name)
        finally:
            part.unlink(missing_ok=True)
