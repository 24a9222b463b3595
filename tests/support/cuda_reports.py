"""What nvcc says about each kernel, kept in the build folder until something changes.

A report is stamped with a hash of all that it depends on: the source, the headers that it
includes, the flags, and the compilers. A fresh clone has none, and compiles everything.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from cuda_build import ROOT, alone, folder
from left_out import NO_COMPILER

CSRC = ROOT / "csrc"
FLAGS = (
    "-std=c++20",
    "--fmad=false",
    "--expt-relaxed-constexpr",
    "-Werror=all-warnings",
    "-Xptxas=-v,--warn-on-spills,-Werror",
)
# These change what nvcc does without being on its command line.
VARIABLES = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN", "CPATH", "CPLUS_INCLUDE_PATH")
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


NVCC = nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason=NO_COMPILER)


@functools.cache
def versions(compiler: str) -> str:
    """What nvcc and the host compiler beneath it say that they are."""
    commands = [[compiler, "--version"], [os.environ.get("NVCC_CCBIN") or "g++", "--version"]]
    return "".join(subprocess.run(c, capture_output=True, text=True).stdout for c in commands)


def included(source: Path, top: Path = CSRC) -> set[Path]:
    """The file and all of the project's headers beneath it, whatever the preprocessor skips."""
    found, waiting = {source}, [source]
    while waiting:
        file = waiting.pop()
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', file.read_text(), re.MULTILINE):
            here = {p.resolve() for p in (file.parent / name, top / name) if p.exists()} - found
            found |= here
            waiting += here
    return found


def stamp(source: Path, flags: tuple[str, ...], compiler: str, top: Path = CSRC) -> str:
    digest = hashlib.sha256()
    files = [(str(f.relative_to(top)), f.read_text()) for f in sorted(included(source, top))]
    variables = [(name, os.environ.get(name)) for name in VARIABLES]
    digest.update(json.dumps([files, flags, versions(compiler), variables]).encode())
    return digest.hexdigest()


def compile_kernels(source: Path, flags: tuple[str, ...], compiler: str, top: Path) -> str:
    with tempfile.TemporaryDirectory() as there:
        command = [compiler, "--threads", "2", *flags, f"-I{top}", "-c", "-o", f"{there}/kernel.o"]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    report = done.stdout + done.stderr
    assert done.returncode == 0, report[-8000:]
    return report


def kernels(
    source: Path,
    architectures: tuple[int, ...],
    compiler: str,
    top: Path = CSRC,
    kept: Path | None = None,
) -> list[dict[str, str]]:
    """Name, architecture, registers and spilled bytes of each kernel; compiles if it has to."""
    with alone(f"report-{source.stem}"):
        return _kernels(source, architectures, compiler, top, kept)


def _kernels(
    source: Path, architectures: tuple[int, ...], compiler: str, top: Path, kept: Path | None
) -> list[dict[str, str]]:
    code = (f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures)
    flags = (*FLAGS, *code)
    file = (kept or folder() / "cuda_reports") / f"{source.stem}.json"
    now = stamp(source, flags, compiler, top)
    try:
        was = json.loads(file.read_text())
        if was["stamp"] == now:
            return was["kernels"]
    except (OSError, ValueError, KeyError):
        pass
    report = compile_kernels(source, flags, compiler, top)
    seen = [match.groupdict() for match in KERNEL.finditer(report)]
    # A change while nvcc was reading belongs to the next run.
    if stamp(source, flags, compiler, top) == now:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"stamp": now, "kernels": seen}))
        partial.replace(file)
    return seen
