"""nvcc compiles every kernel for every architecture: no warning, no spilled register.

No GPU is needed. The reports name the registers of each kernel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_build import ROOT, build

pytestmark = pytest.mark.native

SOURCES = sorted(ROOT.glob("csrc/*/*_cuda.cu"))
ARCHITECTURES = (80, 90, 100, 120)
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
FLAGS = [
    "-std=c++20",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Werror=all-warnings",
    "-Xptxas=-v,--warn-on-spills,-Werror",
]
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def compiler_version() -> tuple[int, ...]:
    out = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", out)
    return tuple(int(part) for part in found.groups()) if found else (0,)


needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")


def architectures() -> tuple[int, ...]:
    """Those that this compiler knows: Blackwell came with 12.8."""
    return ARCHITECTURES if compiler_version() >= (12, 8) else ARCHITECTURES[:2]


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
@pytest.mark.parametrize("source", SOURCES, ids=[source.parent.name for source in SOURCES])
def test_every_architecture_without_spills(source: Path, tmp_path: Path):
    targets = architectures()
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in targets]
    command = [str(NVCC), "--threads", "2", *FLAGS, *code, f"-I{ROOT / 'csrc'}", "-c"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernel.o"), str(source)], capture_output=True, text=True
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-8000:]
    kernels = [match.groupdict() for match in KERNEL.finditer(report)]
    assert {kernel["arch"] for kernel in kernels} == {f"sm_{a}" for a in targets}
    assert len(kernels) >= 4 * len(targets)
    spilled = [k for k in kernels if int(k["stores"]) or int(k["loads"])]
    assert not spilled


@needs_nvcc
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
