"""`fastvi train --resume` as users type it: without the options of before, after any end."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import rows

pytest.importorskip("typer")
pytest.importorskip("safetensors")

import numpy as np

from fastvi.app import cli
from fastvi.app.images import load_images
from fastvi.app.networks import load_run
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings, read_settings
from fastvi.app.training import train

pytestmark = pytest.mark.native
SETTINGS = {
    "epochs": 3, "num_samples": 4, "backward_samples": "auto", "variance_growth": 1.3,
    "hidden": 4, "latent_features": 2, "batch_size": 5, "seed": 3,
    "likelihood": "gaussian", "scale": 0.4, "estimator": "iwae", "learning_rate": 0.01,
    "held_out": 4,
}  # fmt: skip


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run of settings none of which is the default, interrupted after its first epoch."""
    monkeypatch.setattr(cli, "EVALUATED", (1, 5))
    pixels = np.random.default_rng(0).integers(0, 256, (26, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels)
    folder = RunFolder(tmp_path / "runs", "odd name")
    folder.create()

    def interrupt(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_images(tmp_path / "mine.npz"), Settings(**SETTINGS), folder, interrupt)
    return folder.path


def whole(folder):
    other = RunFolder(folder.parent, "whole")
    other.create()
    train(load_images(folder.parents[1] / "mine.npz"), Settings(**SETTINGS), other)
    return other.path


@pytest.mark.slow
def test_the_name_is_enough(command, interrupted):
    status, out, error = command(
        "train", "--runs", interrupted.parent, "--name", "odd name", "--resume"
    )
    assert status == 0, error
    assert "mine.npz" in out and len(rows(interrupted / "metrics.csv")) == 3
    expected = load_run(whole(interrupted)).state_dict()
    for name, value in load_run(interrupted).state_dict().items():
        assert torch.equal(value, expected[name])


@pytest.mark.slow
def test_a_finished_run_is_evaluated_again_and_nothing_else(command, interrupted):
    options = ["--runs", interrupted.parent, "--name", "odd name", "--resume"]
    assert command("train", *options)[0] == 0
    before = {
        name: (interrupted / name).read_bytes() for name in ("metrics.csv", "weights.safetensors")
    }
    assert command("train", *options)[0] == 0
    assert before == {name: (interrupted / name).read_bytes() for name in before}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--epochs", "9"], "with the epochs of the run in .*, 3, got 9"),
        (["--hidden", "200"], "with the hidden of the run in .*, 4, got 200"),
        (["--variance-growth", "2"], "with the variance_growth of the run in .*, 1.3, got 2.0"),
        (["--data", "digits"], "with the data .sha256. of the run"),
    ],
    ids=["epochs", "a default, typed", "variance growth", "data"],
)
def test_what_is_typed_and_differs_is_refused(command, interrupted, typed, words):
    import re

    options = ["--runs", interrupted.parent, "--name", "odd name", "--resume", *typed]
    status, _, error = command("train", *options)
    assert status == 2 and re.search(words, error) and "--overwrite begins anew" in error
    assert len(rows(interrupted / "metrics.csv")) == 1


@pytest.mark.slow
def test_a_run_of_before_a_setting_was_kept_has_its_default(command, interrupted):
    """Runs of before backward_samples are read, and go on with all samples."""
    folder = RunFolder(interrupted.parent, "odd name", resume=True)
    state, described = folder.load_state(), json.loads((interrupted / "settings.json").read_text())
    for name in ("backward_samples", "variance_growth"):
        del state["of"][name], described["settings"][name]
    folder.save_state(state)
    (interrupted / "settings.json").write_text(json.dumps(described))
    assert read_settings(interrupted)[1] == Settings(
        **SETTINGS | {"backward_samples": None, "variance_growth": None}
    )
    options = ["--runs", interrupted.parent, "--name", "odd name", "--resume"]
    status, _, error = command("train", *options)
    assert status == 0, error
    status, _, error = command("train", *options, "--backward-samples", "3")
    assert status == 2 and "with the backward_samples of the run" in error


def test_data_that_were_changed_are_refused(command, interrupted, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (26, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels)
    options = ["--runs", interrupted.parent, "--name", "odd name", "--resume"]
    status, _, error = command("train", *options)
    assert status == 2 and "go on with the data (sha256) of the run" in error


@pytest.mark.slow
def test_without_a_run_it_begins_one(command, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "EVALUATED", (1,))
    options = ["--runs", tmp_path, "--resume", "--epochs", 1, "--hidden", 4, "--num-samples", 2]
    assert command("train", *options)[0] == 0
    assert len(rows(tmp_path / "digits/metrics.csv")) == 1
