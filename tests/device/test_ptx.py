"""The kernels' own PTX, as nvcc makes it for compute capability 9.0, executed on this CPU.

``ptx/translate.py`` turns it into C++, ``ptx/machine.cpp`` runs the blocks: every access is checked
for its alignment and its bounds, every meeting of lanes for who takes part, and every byte
remembers who touched it, so that what no barrier orders is a race. The cases are those of
``cuda_emulation``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_build import ROOT, build
from cuda_reports import needs_nvcc
from ptx.reader import read_file

pytestmark = [pytest.mark.native, pytest.mark.slow, needs_nvcc]

FAULT = 3  # the exit status of machine.h


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [build(name) / name, *arguments]
    return subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=1800
    )


CASES = (
    "row_sum",
    "rsample",
    "iwlb",
    "leave_one_out",
    "categorical",
    "categorical_sample",
    "bernoulli_sample",
)
# In which order threads and blocks have their turns, and with how many blocks at most.
ORDERS = {"ascending": "2147483647", "descending": "5", "mixed": "3"}


@pytest.fixture(scope="module", params=ORDERS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """What each kernel did in all cases."""
    report = tmp_path_factory.mktemp("ptx") / "report"
    how = ("--order", request.param, "--grid", ORDERS[request.param])
    done = run("ptx_driver", *how, "--report", report, *CASES)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " 0 failures" in done.stdout
    return [json.loads(line) for line in report.read_text().splitlines()]


def test_every_kernel_runs_and_agrees_with_the_cpu(kernels: list[dict]):
    own = [kernel for kernel in kernels if "planted" not in kernel["kernel"]]
    never = [kernel["kernel"] for kernel in own if kernel["launches"] == 0]
    assert not never
    texts = (build("ptx_texts") / "ptx").glob("*_cuda.ptx")
    assert len(own) == sum(text.read_text().count(".entry") for text in texts)


def test_a_launch_behind_another_of_its_call_begins_early(kernels: list[dict]):
    waiting, followed = set(), set()
    for text in (build("ptx_texts") / "ptx").glob("*_cuda.ptx"):
        own = read_file(text).kernels
        waiting |= {k.name for k in own if k.has("griddepcontrol", "wait")}
        followed |= {k.name for k in own if k.has("griddepcontrol", "launch_dependents")}
    early = {kernel["kernel"] for kernel in kernels if kernel["early"] > 0}
    assert {name for name in early if "planted" not in name} == waiting
    for name in ("sample", "accumulate", "combine", "write_values", "row_sum_over_rows_kernel"):
        assert any(name in kernel for kernel in waiting)
    # And those before them say that they may be followed.
    parts = {
        name: sum(name in kernel for kernel in followed)
        for name in ("prepare", "accumulate", "reduce_", "combine_splits", "TermFamily")
    }
    assert all(parts.values())
    assert not any("row_sum_backward_kernel" in kernel for kernel in followed)


FAULTS = {
    "neighbour": "a read of shared memory that no thread has written",
    "rounds": "a race on shared memory",
    "vectors": "an access of global memory is not aligned",
    "overrun": "an access beyond every array",
    "shared_overrun": "an access beyond shared memory",
    "divergence": "left a block whose others wait at a barrier",
    "half_a_warp": "a lane waits for one that has left",
    "never_written": "a read of shared memory that no thread has written",
    "blocks_collide": "a race on global memory",
    "last_block": "a race on global memory",
    "last_block_reads": "a race on global memory",
    "reads_early": "an access of global memory before a wait for the launch before",
    "leaves_early": "left without a wait for the launch before",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, order: str):
    done = run("ptx_driver", "--order", order, "planted", name)
    assert done.returncode == FAULT
    assert FAULTS[name] in done.stderr
    assert f"planted::{name}<" in done.stderr
    sound = run("ptx_driver", "--order", order, "planted", f"sound_{name}")
    assert sound.returncode == 0, sound.stderr


LEFT_OUT = {
    0: "a read of shared memory that no thread has written",
    1: "a race on shared memory",
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", LEFT_OUT, ids=["before the reads", "after the reads"])
def test_a_barrier_that_is_left_out_of_a_kernel_is_missed(number: int, order: str):
    # One block goes from row to row, and would overwrite what is still to be read.
    name = f"ptx_driver_without_barrier_{number}"
    done = run(name, "--order", order, "--grid", "1", "row_sum")
    assert done.returncode == FAULT
    assert LEFT_OUT[number] in done.stderr
    assert "row_sum_kernel" in done.stderr


# ---- the ops as Python calls them, in a process of its own: one extension per process ------------
# The others with FASTVI_PTX_ALL=1: their cases are more, and their kernels the same.
SUITES = ["tests/ops/test_op_contract.py"]
if os.environ.get("FASTVI_PTX_ALL"):
    SUITES += [
        "tests/ops/test_noise.py",
        "tests/ops/test_keys.py",
        "tests/ops/test_ops_bernoulli_sample.py",
        "tests/ops/test_ops_categorical_sample.py",
        "tests/ops/test_ops_laplace_rsample.py",
        "tests/ops/test_not_finite.py",
    ]


@pytest.mark.parametrize("suite", SUITES, ids=[Path(suite).stem for suite in SUITES])
def test_the_suite_of_the_ops(suite: str):
    (extension,) = (build("_C_ptx") / "ptx").glob("_C*.so")
    asked = {"FASTVI_EXTENSION": str(extension), "FASTVI_PTX_ORDER": "mixed"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite],
        cwd=ROOT,
        env=os.environ | asked | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " passed" in done.stdout or "[100%]" in done.stdout
