"""The error budgets under each instruction set, in a process of its own: it is chosen once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.native, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
# One code serves all layouts, and low precision differs by its loads and stores alone.
BUDGETS = (
    "test_error_budget and not (transposed or sliced or expanded) and (float32 or bfloat16 and odd)"
    " or kernel and is_exact"
)


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_error_budgets(isa: str):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-x", "-o", "addopts=", "-p", "no:cacheprovider"),
            *("tests/ops/test_op_contract.py", "tests/ops/test_ops_counts_exact.py", "-k", BUDGETS),
        ],
        cwd=ROOT,
        env=os.environ | {"FASTVI_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    if "this machine does not have" in done.stdout + done.stderr:
        pytest.skip(f"this machine does not have {isa}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert f", {isa}, " in done.stdout, "the header names the instruction set"
    assert " passed" in done.stdout
