"""A run that is interrupted, by Ctrl-C, a signal or for good, at any moment."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import hear_signals, rows, start

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from fastvi.app import cli
from fastvi.app.images import load_images
from fastvi.app.networks import load_run
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.app.training import train

pytestmark = pytest.mark.slow


def wait_for_epochs(path, count, process):
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and process.poll() is None:
        if path.exists() and path.read_text().count("\n") > count:
            return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no {count} epochs in {path}:\n{process.communicate()[0]}")


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"], ids=str)
def test_an_interrupted_run_stays_readable(tmp_path, how):
    """From the first epoch on."""
    options = ["--num-samples", "2", "--hidden", "8", "--epochs", "100000"]
    process = start("train", "--runs", tmp_path, *options)
    folder = tmp_path / "digits"
    wait_for_epochs(folder / "metrics.csv", 1, process)
    process.send_signal(getattr(signal, how))
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    metrics = rows(folder / "metrics.csv")
    assert [int(row["epoch"]) for row in metrics] == list(range(1, len(metrics) + 1))
    assert all(math.isfinite(float(value)) for row in metrics for value in row.values())
    assert load_run(folder).sample(3).shape == (3, 64)
    if how != "SIGKILL":
        assert process.returncode == 128 + getattr(signal, how)
        message = f"Interrupted after {len(metrics)} of 100000 epochs"
        assert message in out and "metrics.csv" in out and "Traceback" not in out


def test_an_interruption_of_the_first_epoch_keeps_its_weights(tmp_path):
    folder = RunFolder(tmp_path, "run")
    folder.create()
    images, settings = load_images("digits"), Settings(num_samples=2, hidden=8, latent_features=2)

    def interrupt(epoch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(images, settings, folder, interrupt)
    assert load_run(folder.path).sample(3).shape == (3, 64)


def test_a_hang_up_under_nohup_is_not_heard(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli._interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt) as caught:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        assert caught.value.args == (signal.SIGTERM,)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


IMPORTS_FOR_EVER = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "fastvi":
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from fastvi_command import main
main()
"""


def test_ctrl_c_while_importing_says_nothing():
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTS_FOR_EVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=hear_signals,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[0], process.returncode) == ("", 130)
