"""Runs that are killed at random moments lose nothing that was saved, and end with the same bits.

FASTVI_KILLS sets how many kills each run gets, FASTVI_KILLS_SEED their moments.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("typer")

from fastvi.files import saved as files

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FASTVI_KILLS", "6"))
SEED = int(os.environ.get("FASTVI_KILLS_SEED", str(random.SystemRandom().randrange(2**31))))
pytestmark = [pytest.mark.native, pytest.mark.slow]


class Lives:
    """A process that has imported everything, and forks a life whenever it is asked for one."""

    def __init__(self, kind: str, folder: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests/support/lives.py", kind, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment | {"MASTER_ADDR": "127.0.0.1"}, cwd=folder,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()

    def begin(self, name: str) -> list[int]:
        """The processes of a life of the run of that name, in groups of their own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process.stdin.write(f"{name} {port}\n")
        self.process.stdin.flush()
        return [int(number) for number in self.process.stdout.readline().split()]

    def end(self) -> list[int]:
        """How they ended, once they have; until it is asked, their numbers are nobody else's."""
        self.process.stdin.write("end\n")
        self.process.stdin.flush()
        return [int(number) for number in self.process.stdout.readline().split()]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def lives(request, tmp_path: Path):
    started = Lives(request.param, tmp_path)
    yield started
    started.close()


def progress(kind: str, folder: Path, name: str) -> tuple[int, ...]:
    """How far the saved state says that the run is; a file that is not whole raises."""
    if kind == "train":
        path = folder / "runs" / name / "checkpoint.pt"
        if not path.exists():
            return (0, 0)
        metrics = folder / "runs" / name / "metrics.csv"
        text = metrics.read_text() if metrics.exists() else "\n"
        assert text.endswith("\n")
        epochs = len(files.load("here", path, "a state")["epochs"])
        # What could be read was saved before.
        assert text.count("\n") - 1 <= epochs
        return (epochs, 0)
    path = folder / f"{name}.pt"
    if not path.exists():
        return (0, 0)
    content = files.load("here", path, "a state")
    if kind == "torchrun":
        return (content["step"], 0)
    return (len(content["state"]["epochs"]), content["state"]["batches"])


def content_of(kind: str, folder: Path, name: str) -> object:
    """What a finished run leaves, without the seconds that it took."""
    if kind == "train":
        run = folder / "runs" / name
        lines = [line.rpartition(",")[0] for line in (run / "metrics.csv").read_text().split("\n")]
        assert not list(run.glob(".*.part"))
        return lines, *((run / n).read_bytes() for n in ("weights.safetensors", "evaluation.csv"))
    content = files.load("here", folder / f"{name}.pt", "a state")
    assert not list(folder.glob(f".{name}.pt.part"))
    if kind == "SVI.fit":
        content["state"]["epochs"] = [row[:-1] for row in content["state"]["epochs"]]
    return content


def same(a: object, b: object) -> bool:
    if hasattr(a, "shape"):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("lives", ["SVI.fit", "train", "torchrun"], indirect=True, ids=str)
def test_kills_at_random_moments(lives: Lives, tmp_path: Path, request):
    kind = request.node.callspec.params["lives"]
    print(f"FASTVI_KILLS={KILLS} FASTVI_KILLS_SEED={SEED}")
    draw = random.Random(f"{SEED} {kind}")
    began = time.monotonic()
    lives.begin("whole")
    assert set(lives.end()) == {0}
    whole = time.monotonic() - began
    number, killed, before = 0, 0, (0, 0)
    while killed < KILLS:
        name = f"parts{number}"
        processes = lives.begin(name)
        # The longer ones are killed as they end, or after.
        time.sleep(draw.uniform(0.0, whole))
        victims = processes if len(processes) == 1 else [draw.choice(processes)]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        for other in set(processes) - set(victims):
            # What torchrun does with the others.
            time.sleep(draw.uniform(0.0, 0.02))
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        how = lives.end()
        if set(how) == {0}:
            # It had ended: another run, as that one stands.
            assert same(content_of(kind, tmp_path, name), content_of(kind, tmp_path, "whole"))
            number, before = number + 1, (0, 0)
            continue
        # A rank whose peer is gone says so.
        assert set(how) <= {0, signal.SIGKILL} | ({1} if kind == "torchrun" else set()), how
        killed += 1
        now = progress(kind, tmp_path, name)
        assert now >= before, "something that was saved is lost"
        before = now
    name = f"parts{number}"
    lives.begin(name)
    assert set(lives.end()) == {0}
    assert same(content_of(kind, tmp_path, name), content_of(kind, tmp_path, "whole"))
