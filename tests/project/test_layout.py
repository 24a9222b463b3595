"""Where things live, and how they look."""

from __future__ import annotations

import doctest
import importlib
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_samples import OPS

import fastvi

ROOT = Path(__file__).parents[2]
MOST_LINES = 450
MOST_LINES_OF_THE_PACKAGE = 400
OWN = ("fastvi", "csrc", "tests", "benchmarks", "examples", "tools")
pytestmark = pytest.mark.native


def sources(*suffixes: str, under: tuple[str, ...] = OWN) -> list[Path]:
    files = [
        file for part in under for suffix in suffixes for file in (ROOT / part).rglob(f"*{suffix}")
    ]
    return sorted(file for file in files if "__pycache__" not in file.parts)


def by_name(files: list[Path]) -> list:
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for file in files]


KERNEL_FILES = [
    file
    for file in sources(".h", ".cuh", ".cu", "_cpu.cpp", under=("csrc",))
    if "torch" not in file.relative_to(ROOT).parts
] + [ROOT / "csrc/simd/cpu_isa.cpp"]


def test_there_is_something_to_look_at():
    names = {file.name for file in KERNEL_FILES}
    assert {"iwlb.h", "iwlb_cpu.cpp", "philox.h", "gaussian_rsample_cpu.cpp"} <= names


@pytest.mark.parametrize("file", by_name(KERNEL_FILES))
def test_kernels_do_not_know_torch(file: Path):
    found = re.findall(r'#\s*include\s*[<"](?:torch|ATen|c10|pybind11)/.*', file.read_text())
    assert not found


@pytest.mark.parametrize("file", by_name(sources(".py", ".h", ".cuh", ".cu", ".cpp")))
def test_files_are_short_and_clean(file: Path):
    text = file.read_text()
    of_package = file.is_relative_to(ROOT / "fastvi")
    assert text.count("\n") <= (MOST_LINES_OF_THE_PACKAGE if of_package else MOST_LINES)
    assert not re.findall(r"\b(?:TO[D]O|FIX[M]E)\b", text)
    assert file.stem not in ("utils", "helpers", "manager")


@pytest.mark.parametrize("file", by_name(sources(".cu", under=("csrc",))))
def test_cuda_kernels_can_be_emulated(file: Path):
    """Launched by cudaLaunchKernelEx, never by <<<>>>: the host compiler must read them too."""
    text = file.read_text()
    assert "<<<" not in text
    cpu = file.with_name(file.name.replace("_cuda.cu", "_cpu.cpp"))
    assert cpu.exists() or not file.name.endswith("_cuda.cu")


@pytest.mark.parametrize("name", fastvi.ops.__all__)
def test_every_op_has_its_places(name: str):
    """A file in fastvi/ops, a folder in csrc, a row in the table, an oracle and an example."""
    assert (ROOT / "fastvi/ops" / f"{name}.py").exists()
    assert (ROOT / "csrc" / name / f"{name}.cpp").exists()
    public = getattr(fastvi.ops, name)
    assert ">>>" in public.__doc__
    if name == "new_key":
        return
    assert name in [op.name for op in OPS], "no row in tests/support/op_samples.py"
    assert public.reference.__module__ == f"fastvi.ops.{name}"
    if name.startswith("linear_"):
        return  # products by torch, and the kernels of the log-density
    for suffix in (".h", "_cpu.cpp", "_cuda.cu"):
        assert (ROOT / "csrc" / name / f"{name}{suffix}").exists()


@pytest.mark.parametrize("name", fastvi.ops.__all__)
def test_examples_in_docstrings(name: str):
    importlib.import_module(f"fastvi.ops.{name}")
    module = sys.modules[f"fastvi.ops.{name}"]
    names = {"fastvi": fastvi, "torch": torch, "math": math}
    public = getattr(fastvi.ops, name)
    tests = doctest.DocTestFinder(recurse=False).find(public, name, module, names, names)
    assert tests and tests[0].examples
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        results.run(test)
    assert results.failures == 0


def test_no_two_modules_of_the_tests_have_one_name():
    """They are imported by their names alone; pytest finds each conftest by its place."""
    names = [file.stem for file in sources(".py", under=("tests",)) if file.stem != "conftest"]
    assert sorted(set(names)) == sorted(names)
    importing = re.compile(r"^(?:import|from) conftest\b", re.MULTILINE)
    assert not [f for f in sources(".py", under=("tests",)) if importing.search(f.read_text())]


def test_one_version_string():
    stated = [
        file.relative_to(ROOT).as_posix()
        for file in [*sources(".py"), ROOT / "pyproject.toml", ROOT / "CMakeLists.txt"]
        if f'"{fastvi.__version__}"' in file.read_text()
    ]
    assert stated == ["fastvi/_version.py"]


def tool(*command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff():
    pytest.importorskip("ruff")
    tool("ruff", "check", *(part for part in OWN if (ROOT / part).exists()), "setup.py")


def test_ruff_format():
    pytest.importorskip("ruff")
    tool("ruff", "format", "--check", *(part for part in OWN if (ROOT / part).exists()), "setup.py")


@pytest.mark.slow
def test_mypy():
    pytest.importorskip("mypy")
    tool("mypy")
