"""Folders of runs as `fastvi train` writes them, without the training."""

from __future__ import annotations

from fastvi.app.images import load_images
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings, describe
from fastvi.callbacks import Beginning, CSVLog, Epoch


def make(root, name, *, bounds=(-30.0, -25.0), evaluation=(-24.5, 0.3), data=None, **settings):
    """The folder of a run, written as `fastvi train` writes it."""
    folder = RunFolder(root, name)
    folder.create()
    described = describe(load_images("digits"), Settings(epochs=3, **settings))
    described["data"] |= data or {}
    folder.write_settings(described)
    log = CSVLog(folder.path / "metrics.csv")
    log.on_begin(Beginning(3))
    for number, bound in enumerate(bounds, 1):
        log.on_epoch(Epoch(number, bound - 1, bound, 29 * number, 1e-3, 0.5 * number))
    if evaluation is not None:
        rows = [
            {"num_samples": k, "bound": evaluation[0] - 1 / k, "standard_error": evaluation[1],
             "images": 359}
            for k in (1, 50)
        ]  # fmt: skip
        folder.write_evaluation(rows)
    return folder.path
