"""Every face that evaluates, in every mode of autograd: the same number, to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_faces import MODES, all_faces, assert_same_bits, evaluated
from quick import quick_in

FACES = all_faces()


def built(name: str) -> Any:
    torch.manual_seed(0)
    return FACES[name]()


@pytest.mark.parametrize("name", quick_in(FACES.keys(), *list(FACES)[::2]))
def test_every_mode_gives_the_value_of_grad_mode(name: str):
    expected = evaluated(built(name))
    for mode in MODES.values():
        with mode():
            assert_same_bits(evaluated(built(name)), expected)


@pytest.mark.parametrize("name", quick_in(FACES.keys(), *list(FACES)[::3]))
def test_parameters_and_data_of_inference_mode(name: str):
    """What is made there can have no gradient anywhere, and is evaluated all the same."""
    expected = evaluated(built(name))
    with torch.inference_mode():
        face = built(name)
    for mode in MODES.values():
        with mode():
            assert_same_bits(evaluated(face), expected)


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_samples_shared_among_processes():
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            str(root / "tests/support/torchrun/mode_checks.py"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=300, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
