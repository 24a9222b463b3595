"""TensorBoard and Weights & Biases, read back; what is said where they are not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from both_loops import Everything, fit, train

from fastvi.callbacks import ProgressBar, TensorBoardLog, WandbLog

pytestmark = pytest.mark.native
ROOT = Path(__file__).parents[2]


def events_of(folder):
    """What TensorBoard shows: steps and values by name."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}


def as_float32(history, name):
    values = [(e.steps, torch.tensor(getattr(e, name)).float().item()) for e in history]
    return values


@pytest.mark.slow
def test_tensorboard_shows_what_fit_returns(tmp_path):
    pytest.importorskip("tensorboard")
    history = fit(TensorBoardLog(tmp_path, every_steps=3))
    shown = events_of(tmp_path)
    assert shown["train_bound"] == as_float32(history, "bound")
    assert shown["held_out_bound"] == as_float32(history, "held_out")
    assert [step for step, _ in shown["step_bound"]] == [3, 6, 9, 12]


@pytest.mark.slow
def test_tensorboard_of_a_killed_run_that_goes_on_shows_each_epoch_once(tmp_path):
    pytest.importorskip("tensorboard")
    checkpoint, folder = tmp_path / "run.pt", tmp_path / "logs"
    fit(TensorBoardLog(folder), epochs=2, checkpoint=checkpoint)
    history = fit(TensorBoardLog(folder), epochs=4, checkpoint=checkpoint, resume=True)
    assert events_of(folder)["train_bound"] == as_float32(history, "bound")


@pytest.mark.slow
def test_a_summary_writer_of_one_s_own(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        history = fit(writer)
        # It is the caller's, and open.
        writer.add_scalar("mine", 1.0, 0)
    shown = events_of(tmp_path)
    assert shown["train_bound"] == as_float32(history, "bound") and shown["mine"] == [(0, 1.0)]


OFFLINE = """
import sys, json, pathlib
sys.path[:0] = {paths}
from both_loops import fit
from fastvi.callbacks import WandbLog
import wandb
with wandb.init(mode="offline", dir={other!r}, settings=wandb.Settings(silent=True)) as run:
    # Another run beside it, which ends alone.
    history = fit(WandbLog({folder!r}, name="mine"))
    fit(run)
print(json.dumps([[e.steps, e.bound] for e in history]))
"""


@pytest.mark.slow
def test_wandb_keeps_what_fit_returns_on_this_machine(tmp_path):
    pytest.importorskip("wandb")
    paths = [str(ROOT), str(ROOT / "tests/support")]
    code = OFFLINE.format(paths=paths, folder=str(tmp_path / "a"), other=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180,
        env=os.environ | {"HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = json.loads(done.stdout.splitlines()[-1])
    # Ours, and one of wandb.init given as it is.
    for folder in (tmp_path / "a", tmp_path):
        [record] = (folder / "wandb").glob("offline-run-*/*.wandb")
        assert _rows_of(record) == [(step, pytest.approx(bound)) for step, bound in history]


def _rows_of(record):
    """The bounds in a file of wandb's: records in LevelDB's log format, in wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    content, at, whole, rows = record.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if (left := 2**15 - at % 2**15) < 7:
            at += left  # no head of a piece fits into the rest of a block
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (2, 3):  # the first and middle pieces of a record
            continue
        said = wandb_internal_pb2.Record.FromString(whole)
        whole = b""
        if said.WhichOneof("record_type") == "history":
            items = {i.key or ".".join(i.nested_key): i.value_json for i in said.history.item}
            if "train_bound" in items:
                rows.append((said.history.step.num, float(items["train_bound"])))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "make", "purpose"),
    [
        ("tensorboard", "TensorBoardLog('x')", "logging to TensorBoard"),
        ("wandb", "WandbLog('x')", "logging to Weights & Biases"),
        ("rich", "ProgressBar()", "the progress bar"),
    ],
    ids=["tensorboard", "wandb", "rich"],
)
def test_a_missing_package_is_one_line(module, make, purpose):
    code = f"import sys; sys.modules[{module!r}] = None\nfrom fastvi.callbacks import *\n{make}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    last = done.stderr.strip().splitlines()[-1]
    extra = "progress" if module == "rich" else "logs"
    assert last == (
        f"ImportError: {purpose} needs {module}, which is part of the optional extra {extra!r}: "
        f"pip install 'fastvi[{extra}]'"
    )


# ---- the command --------------------------------------------------------------------------------
SMALL = ["--epochs", "2", "--num-samples", "2", "--hidden", "4", "--latent-features", "2"]
SMALL += ["--held-out", "5", "--batch-size", "500"]


def test_the_command_refuses_another_logger(command, tmp_path):
    status, _, error = command("train", *SMALL, "--runs", tmp_path / "runs", "--log", "mlflow")
    assert status == 2 and "expected --log to be tensorboard or wandb, got 'mlflow'" in error
    assert not (tmp_path / "runs").exists()


def test_the_command_says_what_to_install(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    status, _, error = command("train", *SMALL, "--runs", tmp_path / "a", "--log", "tensorboard")
    assert status == 2 and error.count("\n") == 1 and "pip install 'fastvi[logs]'" in error
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_the_command_logs_into_the_run(command, tmp_path):
    pytest.importorskip("tensorboard")
    options = [*SMALL, "--runs", tmp_path, "--log", "tensorboard"]
    assert command("train", *options)[0] == 0
    folder = tmp_path / "digits/tensorboard"
    assert [step for step, _ in events_of(folder)["held_out_bound"]] == [3, 6]
    # Another run has no part in it.
    assert command("train", *options, "--overwrite")[0] == 0
    assert len(list(folder.iterdir())) == 1


# ---- bars ---------------------------------------------------------------------------------------
def test_the_bar_is_one_line_where_there_is_no_terminal(capsys):
    pytest.importorskip("rich")
    fit(ProgressBar())
    out, error = capsys.readouterr()
    assert "3/3" in out and out.count("\n") == 1 and "\x1b" not in out and not error
    assert "held out" in out


def test_the_bar_moves_in_a_terminal(tmp_path):
    console = pytest.importorskip("rich.console")
    with (tmp_path / "screen").open("w") as file:
        screen = console.Console(file=file, force_terminal=True, width=100)
        train(tmp_path / "runs", ProgressBar(screen))
    text = (tmp_path / "screen").read_text()
    assert "\x1b[2K" in text and "3/3" in text


def test_the_bar_of_a_run_that_goes_on_begins_there(tmp_path, capsys):
    pytest.importorskip("rich")
    fit(None, epochs=2, checkpoint=tmp_path / "run.pt")
    fit(ProgressBar(), epochs=3, checkpoint=tmp_path / "run.pt", resume=True)
    assert "3/3" in capsys.readouterr().out


def test_the_bar_is_a_cell_s_output_in_a_notebook(monkeypatch):
    pytest.importorskip("rich")
    from types import ModuleType, SimpleNamespace

    shown = []

    def display(data, raw, display_id):
        assert raw and display_id
        shown.append(data)
        return SimpleNamespace(update=lambda data, raw: shown.append(data))

    ipython, part = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    part.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    fit([ProgressBar(), Everything()])
    texts = [data["text/plain"] for data in shown]
    assert [f"{n}/3" in text for n, text in enumerate(texts)] == [True] * 4
    assert all("\n" not in text and "\x1b" not in text for text in texts)
    assert "held out" in texts[-1]


def test_wandb_names_its_project():
    pytest.importorskip("wandb")
    assert WandbLog("x").project == "fastvi"
