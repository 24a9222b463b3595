"""The runs of ``matrix.py``: which there are, what they set, and what is said of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matrix
import pytest

pytestmark = pytest.mark.native
ISAS = ["avx512", "avx2", "baseline"]


def test_every_setting_is_met():
    chosen = matrix.runs(ISAS, seed=5)
    names = [run.name for run in chosen]
    assert len(set(names)) == len(names)
    assert {run.isa for run in chosen} == set(ISAS)
    assert {(run.isa, run.torch) for run in chosen} >= {("avx512", torch) for torch in matrix.TORCH}
    assert {run.threads for run in chosen} == {1, 2, None}
    assert [run.whole for run in chosen] == [True] + [False] * (len(chosen) - 1)
    assert [run.seed for run in chosen if run.seed is not None] == [5]
    (loaded,) = (run for run in chosen if run.loaded)
    assert loaded.threads is None
    product = matrix.runs(ISAS, seed=5, product=True)
    assert len({(r.isa, r.torch, r.threads) for r in product if r.threads}) == 3 * 3 * 2


@pytest.mark.parametrize("isas", [["baseline"], ["avx2", "baseline"]], ids=["one", "two"])
def test_a_machine_with_less(isas: list[str]):
    chosen = matrix.runs(isas, seed=5)
    assert {run.isa for run in chosen} == set(isas)
    assert len({run.name for run in chosen}) == len(chosen)


def test_a_run_sets_what_its_name_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    run = matrix.Run("avx2", "default", threads=None)
    environment = run.environment()
    assert environment["FASTVI_CPU_ISA"] == "avx2"
    assert environment["ATEN_CPU_CAPABILITY"] == "default"
    assert environment["MKL_ENABLE_INSTRUCTIONS"] == "SSE4_2"
    assert environment["ONEDNN_MAX_CPU_ISA"] == "SSE41"
    assert "OMP_NUM_THREADS" not in environment
    assert "ATEN_CPU_CAPABILITY" not in matrix.Run("avx2").environment()
    assert "--ignore=tests/device/test_cuda_compile.py" in run.command([])
    assert not [x for x in matrix.Run("avx2", whole=True).command([]) if "--ignore" in x]
    for name in matrix.ONCE:
        assert (matrix.ROOT / "tests" / f"{name}.py").exists()


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_right(): assert os.environ['FASTVI_CPU_ISA']\n"
        "def test_threads(): assert os.environ.get('OMP_NUM_THREADS') != '1'\n"
    )
    return tmp_path


@pytest.mark.slow
def test_runs_are_carried_out(suite: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matrix, "instruction_sets", lambda: ["baseline"])
    wanted = [
        "--only",
        "threads-1",
        "--only",
        "loaded",
        "--jobs",
        "2",
        "--logs",
        str(suite / "logs"),
    ]
    plain = ["-c", os.devnull, "--rootdir", str(suite), str(suite / "test_it.py")]
    assert matrix.main([*wanted, "--quick", "--", *plain]) == 1
    out = capsys.readouterr().out
    assert "FAILED baseline_torch-default_threads-1: " not in out, "one processor's best is enough"
    assert "FAILED baseline_torch-best_threads-1: 1 failed, 1 passed" in out
    assert "ok     baseline_torch-best_threads-unset_loaded: 2 passed" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("baseline")]
    assert [row[1:4] for row in rows] == [["1", "1", "0"], ["2", "0", "0"]]
    assert len(list((suite / "logs").glob("*.log"))) == 2


def test_a_word_that_no_run_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matrix, "instruction_sets", lambda: ["baseline"])
    with pytest.raises(SystemExit, match="no run has avx9 in its name"):
        matrix.main(["--only", "avx9", "--list"])


@pytest.mark.slow
def test_this_machine_is_listed(capsys):
    assert matrix.main(["--list", "--seed", "3"]) == 0
    names = capsys.readouterr().out.split()
    assert any(name.startswith("baseline_") for name in names)
    assert names[-1].endswith("_shuffled-3")


def order(*arguments: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "tests/project/test_matrix.py"]
    done = subprocess.run([*command, *arguments], cwd=matrix.ROOT, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_the_order_is_shuffled_by_a_seed():
    plain, one, again, other = order(), *(order(f"--shuffle={seed}") for seed in (1, 1, 2))
    assert one == again != other
    assert sorted(one) == sorted(other) == sorted(plain)
    assert plain not in (one, other)
