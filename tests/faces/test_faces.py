"""Every face, bound, estimator and way to cut the samples: right, or refused in words that help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faces import Cell, cells, run
from quick import quick_in

pytest.importorskip("pyro")
pytest.importorskip("lightning")

ROOT = Path(__file__).parents[2]
CELLS = list(cells())


# In chunks a cell is the same and one mechanism more.
@pytest.mark.parametrize(
    "cell",
    quick_in(
        {str(c): c for c in CELLS if c.option != "group"},
        *(str(c) for c in CELLS if c.option == "chunks"),
    ),
)
def test_cell(cell: Cell):
    run(cell)


@pytest.fixture(scope="module")
def in_group(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What went wrong in each cell of one job of two processes."""
    report = tmp_path_factory.mktemp("faces") / "report.json"
    path = os.pathsep.join(str(ROOT / part) for part in ("", "tests/support"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    job = ROOT / "tests/support/torchrun/faces_group.py"
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            str(job), str(report),
        ],
        env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads(report.read_text())


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("cell", [c for c in CELLS if c.option == "group"], ids=str)
def test_cell_of_a_group(cell: Cell, in_group: dict[str, str]):
    assert in_group[str(cell)] == ""
