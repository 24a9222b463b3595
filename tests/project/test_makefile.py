"""The Makefile, without running it: its help, its targets, and what the pages say of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
# A file's fixtures, such as an installation, are made once, in the one process that runs the file.
DIST = "--dist=loadfile --no-loadscope-reorder"
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(MAKE is None, reason="no make on this machine"),
]


GIVEN = ("ARGS", "MAKEFLAGS", "MFLAGS", "PYTHON", "TORCH", "VENV", "WORKERS")


def make(*arguments: str) -> str:
    command = [str(MAKE), "--no-print-directory", *arguments]
    # Not what the make that runs this test was given.
    own = {name: value for name, value in os.environ.items() if name not in GIVEN}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    return done.stdout


def in_help() -> set[str]:
    return set(re.findall(r"^make (\w+)", make("help"), re.MULTILINE))


def test_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert in_help() | {"help"} == set(phony.group(1).split())
    assert make() == make("help")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"], ids=str)
def test_pages_name_targets_that_are_there(page: str):
    text = (ROOT / page).read_text()
    named = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
    assert {"demo", "test"} <= named <= in_help()
    variables = set(re.findall(r"make \w+ (\w+)=", text))
    assert variables <= set(re.findall(r"(\w+)=", make("help")))


@pytest.mark.parametrize(
    ("target", "command", "extra"),
    [
        ("demo", "fastvi train --name second", "demo"),
        ("test", f"python -m pytest -n 0 {DIST} --name second", "test"),
        ("matrix", "python tests/matrix.py --name second", "test"),
        ("bench", "python -m benchmarks --name second", "test"),
        ("scvi", "python -m pytest tests/integrations/test_scvi*.py --name second", "test,scvi"),
        ("wheel", "python tools/release.py --name second", "wheel"),
        ("docs", "python -m sphinx -W -n --keep-going -d build/docs/trees -b html docs", "docs"),
    ],
    ids=["demo", "test", "matrix", "bench", "scvi", "wheel", "docs"],
)
def test_a_target_sets_up_builds_and_runs(tmp_path: Path, target: str, command: str, extra: str):
    venv = tmp_path / "venv"
    arguments = [f"VENV={venv}", "TORCH=torch==9.9", "ARGS=--name second"]
    steps = make("--dry-run", target, *arguments)
    told = [
        f"-m venv {venv}",
        "pip install torch==9.9",
        f"pip install --no-build-isolation -e '.[{extra}]'",
        f"{venv}/bin/{command}",
    ]
    places = [steps.find(step) for step in told]
    assert -1 not in places and places == sorted(places), steps
    assert not venv.exists()
