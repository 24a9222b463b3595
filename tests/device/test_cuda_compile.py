"""nvcc compiles every kernel for every architecture: no warning, no spilled register.

No GPU is needed. The reports name the registers of each kernel. What has not changed since it
was last compiled is not compiled again, see ``cuda_reports.py``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_reports
import pytest
from cuda_build import ROOT, build
from cuda_reports import NVCC, needs_nvcc

pytestmark = pytest.mark.native

SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
ARCHITECTURES = (80, 90, 100, 120)


def compiler_version() -> tuple[int, ...]:
    out = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", out)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def architectures() -> tuple[int, ...]:
    """Those that this compiler knows: Blackwell came with 12.8."""
    return ARCHITECTURES if compiler_version() >= (12, 8) else ARCHITECTURES[:2]


def test_the_build_has_the_same_flags():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "set(CMAKE_CUDA_STANDARD 20)" in text
    assert all(flag in text for flag in cuda_reports.FLAGS if flag != "-std=c++20")


def test_there_are_sources():
    assert {source.parent.name for source in SOURCES} >= {
        "bernoulli_log_prob",
        "categorical_sample",
        "gaussian_kl",
        "gaussian_log_prob",
        "gaussian_rsample",
        "iwlb",
        "laplace_rsample",
        "leave_one_out",
    }


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=[source.parent.name for source in SOURCES])
def test_every_architecture_without_spills(source: Path):
    targets = architectures()
    kernels = cuda_reports.kernels(source, targets, NVCC)
    assert {kernel["arch"] for kernel in kernels} == {f"sm_{a}" for a in targets}
    assert len(kernels) >= 4 * len(targets)
    spilled = [k for k in kernels if int(k["stores"]) or int(k["loads"])]
    assert not spilled


FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake nvcc, $FAKE_RELEASE"; exit; fi
echo "$@" >> "$0.log"
exit_status=${FAKE_STATUS:-0}
[ "$exit_status" = 0 ] || { echo "ptxas error: Registers are spilled"; exit "$exit_status"; }
echo "ptxas info : Compiling entry function 'kernel' for 'sm_80'"
echo "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
echo "ptxas info : Used 12 registers"
"""


class FakeCompiler:
    """An nvcc that counts its calls, and sources of its own."""

    def __init__(self, folder: Path):
        self.folder, self.nvcc = folder, folder / "nvcc"
        self.nvcc.write_text(FAKE)
        self.nvcc.chmod(0o755)
        self.top = folder / "csrc"
        for name, text in {
            "op/op_cuda.cu": '#include "op/op.h"\n#include <vector>\n',
            "op/op.h": '#pragma once\n#  include "common/deep.h"\n',
            "common/deep.h": "// deep\n",
            "common/other.h": "// of no source here\n",
        }.items():
            (self.top / name).parent.mkdir(parents=True, exist_ok=True)
            (self.top / name).write_text(text)

    def kernels(self, *architectures: int) -> list[dict[str, str]]:
        source = self.top / "op/op_cuda.cu"
        kept = self.folder / "kept"
        return cuda_reports.kernels(source, architectures or (80,), str(self.nvcc), self.top, kept)

    def calls(self) -> int:
        log = Path(f"{self.nvcc}.log")
        return log.read_text().count("\n") if log.exists() else 0


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCompiler:
    monkeypatch.setenv("FAKE_RELEASE", "release 1")
    monkeypatch.setattr(cuda_reports, "versions", cuda_reports.versions.__wrapped__)
    fake = FakeCompiler(tmp_path)
    fake.kernels()
    assert fake.calls() == 1
    return fake


def test_what_has_not_changed_is_not_compiled_again(compiler: FakeCompiler):
    expected = {"name": "kernel", "arch": "sm_80", "stores": "0", "loads": "0", "registers": "12"}
    (compiler.top / "common/other.h").write_text("// changed\n")
    assert compiler.kernels() == compiler.kernels() == [expected]
    assert compiler.calls() == 1


@pytest.mark.parametrize(
    "file",
    ["op/op_cuda.cu", "op/op.h", "common/deep.h"],
    ids=["source", "header", "header of a header"],
)
def test_a_changed_file_is_compiled(compiler: FakeCompiler, file: str):
    with (compiler.top / file).open("a") as end:
        end.write("// changed\n")
    compiler.kernels()
    compiler.kernels()
    assert compiler.calls() == 2


def test_another_flag_compiles(compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch):
    compiler.kernels(80, 90)
    monkeypatch.setattr(cuda_reports, "FLAGS", (*cuda_reports.FLAGS, "-G"))
    compiler.kernels(80, 90)
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-O1")
    compiler.kernels(80, 90)
    assert compiler.calls() == 4


def test_another_compiler_compiles(compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_RELEASE", "release 2")
    compiler.kernels()
    assert compiler.calls() == 2


def test_a_failure_is_not_kept(compiler: FakeCompiler, monkeypatch: pytest.MonkeyPatch):
    (compiler.top / "op/op.h").write_text("// spills\n")
    monkeypatch.setenv("FAKE_STATUS", "1")
    for _ in range(2):
        with pytest.raises(AssertionError, match="Registers are spilled"):
            compiler.kernels()
    assert compiler.calls() == 3


def test_a_damaged_report_is_made_again(compiler: FakeCompiler):
    (report,) = (compiler.folder / "kept").iterdir()
    report.write_text("{")
    assert compiler.kernels()
    assert json.loads(report.read_text())["kernels"] == compiler.kernels()
    assert compiler.calls() == 2


@needs_nvcc
def test_the_stamp_covers_what_nvcc_reads():
    source = ROOT / "csrc/iwlb/iwlb_cuda.cu"
    command = [str(NVCC), "-std=c++20", "-M", f"-I{ROOT / 'csrc'}", str(source)]
    rule = subprocess.run(command, capture_output=True, text=True).stdout
    read = {Path(name).resolve() for name in rule.replace("\\\n", " ").split()[2:]}
    own = {file for file in read if file.is_relative_to(ROOT)}
    assert own and own <= cuda_reports.included(source)


@needs_nvcc
@pytest.mark.slow
def test_the_extension_links_and_loads_with_the_kernels_in_it():
    """Beside a torch without CUDA it loads all the same, and runs on the CPU."""
    (extension,) = (build("_C_cuda") / "linked").glob("_C*.so")
    code = (
        "import torch, fastvi; print(fastvi.ops.iwlb(torch.zeros(3, 2)).tolist(), "
        "fastvi._ext.C.build_info()['cuda_emulated'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTVI_EXTENSION": str(extension)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.0, 0.0] False"
