"""The data of a run: where they were, and what is said if they are there no more, or are others."""

from __future__ import annotations

import gzip
import hashlib
import json
import shlex

import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import numpy as np

from fastvi.app.images import load_images
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.app.training import train

pytestmark = pytest.mark.native
SMALL = ["--num-samples", "25", "--batch", "3"]


def idx(images) -> bytes:
    return b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape) + images.tobytes()


def pixels(seed: int = 0):
    return np.random.default_rng(seed).integers(0, 256, (30, 6, 4), dtype=np.uint8)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose data were given by a relative path."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.idx").write_bytes(idx(pixels()))
    monkeypatch.chdir(tmp_path / "data")
    folder = RunFolder(tmp_path / "runs", "mine run")
    folder.create()
    settings = Settings(epochs=1, num_samples=2, hidden=4, latent_features=2)
    train(load_images("mine.idx"), settings, folder)
    monkeypatch.chdir(tmp_path)
    return folder.path


def data_of(run):
    return json.loads((run / "settings.json").read_text())["data"]


def test_a_run_knows_its_data(run, tmp_path):
    data = data_of(run)
    assert data["source"] == str(tmp_path / "data/mine.idx")
    images = load_images(tmp_path / "data/mine.idx")
    # By hand, from what the class says of itself.
    digest = hashlib.sha256()
    for part in (images.train, images.held_out):
        digest.update(f"({len(part)}, 24) (6, 4) torch.float32".encode() + part.numpy().tobytes())
    assert data["sha256"] == digest.hexdigest()


def test_the_hash_is_of_the_pixels_and_not_of_the_file(tmp_path):
    (tmp_path / "a.idx").write_bytes(idx(pixels()))
    (tmp_path / "b.gz").write_bytes(gzip.compress(idx(pixels())))
    np.savez(tmp_path / "c.npz", images=pixels())
    changed = pixels()
    changed[29, 5, 3] ^= 1
    (tmp_path / "d.idx").write_bytes(idx(changed))
    (tmp_path / "e.idx").write_bytes(idx(pixels().reshape(30, 4, 6)))
    a, b, c, d, e = (load_images(path).sha256 for path in sorted(tmp_path.iterdir()))
    assert a == b == c and len({a, d, e}) == 3
    assert load_images("digits").sha256 == load_images("digits").sha256


@pytest.mark.slow
def test_diagnose_needs_nothing_but_the_run(command, run):
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 0, error
    page = (run / "diagnosis/diagnosis.md").read_text()
    assert "held-out images of mine.idx;" in page


def typed_in(error: str, command):
    """Types the command that an error names last."""
    words = shlex.split(error.strip().rpartition("fastvi diagnose ")[2])
    return command("diagnose", *words, *SMALL)


@pytest.mark.slow
def test_data_that_were_moved(command, run, tmp_path):
    moved = tmp_path / "moved.idx"
    (tmp_path / "data/mine.idx").rename(moved)
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and error.count("\n") == 1 and not (run / "diagnosis").exists()
    sha256 = data_of(run)["sha256"]
    assert (
        f"expected the data of {run} at {tmp_path}/data/mine.idx, of sha256 {sha256[:12]}" in error
    )
    assert "which does not exist" in error
    assert error.endswith(f"fastvi diagnose '{run}' --data PATH\n")
    assert typed_in(error.replace("PATH", str(moved)), command)[0] == 0
    assert "not the run's" not in (run / "diagnosis/diagnosis.md").read_text()


def test_data_that_are_no_images_any_more(command, run, tmp_path):
    (tmp_path / "data/mine.idx").write_text("gone")
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and error.count("\n") == 1
    assert "a file that starts with" in error and "--data PATH" in error


@pytest.mark.slow
def test_data_that_were_changed(command, run, tmp_path):
    path = tmp_path / "data/mine.idx"
    path.write_bytes(idx(pixels(1)))
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and error.count("\n") == 1 and not (run / "diagnosis").exists()
    assert f"of sha256 {data_of(run)['sha256'][:12]}, got other data, of sha256 " in error
    assert load_images(path).sha256[:12] in error
    # What it says for those who want it all the same.
    assert typed_in(error, command)[0] == 0
    assert "which are not the run's data" in (run / "diagnosis/diagnosis.md").read_text()


@pytest.mark.slow
def test_a_run_of_before_asks_for_its_data(command, run, tmp_path):
    described = json.loads((run / "settings.json").read_text())
    del described["data"]["source"], described["data"]["sha256"]
    (run / "settings.json").write_text(json.dumps(described))
    # It had no column of steps.
    old = "epoch,train_bound,held_out_bound,learning_rate,seconds\n1,-9,-9,0.1,1\n"
    (run / "metrics.csv").write_text(old)
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and "expected --data, the path of mine.idx" in error
    path = str(tmp_path / "data/mine.idx")
    status, out, error = typed_in(error.replace("PATH", path), command)
    assert status == 0, error
    assert "Note: no picture of the epochs" in out and "'step'" in out


@pytest.mark.parametrize("part", [{"source": 3}, {"sha256": None}], ids=["source", "sha256"])
def test_a_place_that_is_none_is_refused(command, run, part):
    described = json.loads((run / "settings.json").read_text())
    described["data"] |= part
    (run / "settings.json").write_text(json.dumps(described))
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and f"expected {next(iter(part))} to be str" in error
