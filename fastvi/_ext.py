"""Load the compiled extension once, and refuse one that was built for another torch.

This is the one place that imports ``fastvi._C``. The versions are compared before the shared
library is opened, because a mismatch would show as an undefined C++ symbol.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import sys
from pathlib import Path
from types import ModuleType

import torch

from fastvi._version import WHEELS, __version__, wheel_tag

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall fastvi (or . in a checkout)"
# pip must build it here, and not take a wheel from elsewhere.
BUILD_HERE = (
    "pip install --no-build-isolation --no-deps --force-reinstall --no-binary fastvi fastvi"
)
BUILD_RECORD = "_build.json"
CPU_FLAGS = Path("/proc/cpuinfo")


def wheel_command(torch_version: str, cuda_version: str | None) -> str:
    """Return the command that installs the wheel for a torch."""
    wheel = f"fastvi=={__version__}+{wheel_tag(torch_version, cuda_version or '')}"
    return f"pip install --no-deps --force-reinstall '{wheel}' --find-links {WHEELS}"


def _mend(built: dict[str, str], torch_version: str, cuda_version: str | None) -> str:
    if not built.get("wheel"):
        return f"Rebuild it: {REBUILD}"
    return f"Install the wheel for it: {wheel_command(torch_version, cuda_version)}"


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def check_build(built: dict[str, str], torch_version: str, cuda_version: str | None) -> None:
    """Raise ImportError if the extension was built for another torch or CUDA than runs now."""
    running_cuda = cuda_version or ""
    if _minor(built["torch"]) != _minor(torch_version):
        raise ImportError(
            f"fastvi was built for torch {built['torch']}, but torch {torch_version} is running. "
            f"{_mend(built, torch_version, cuda_version)}"
        )
    if built["cuda"] and built["cuda"].split(".")[0] != running_cuda.split(".")[0]:
        raise ImportError(
            f"fastvi was built for CUDA {built['cuda']}, but torch runs with CUDA "
            f"{running_cuda or '(none)'}. {_mend(built, torch_version, cuda_version)}"
        )


def check_cpu(built: dict[str, str]) -> None:
    """Raise ImportError if this CPU lacks instructions that the compiler was told to use."""
    needed = built.get("cpu", "").split()
    if not needed or not CPU_FLAGS.exists():
        return
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", CPU_FLAGS.read_text(), re.MULTILINE)
    there = flags[1].split() if flags else needed
    if missing := [name for name in needed if name not in there]:
        raise ImportError(
            f"fastvi was built for CPUs with {', '.join(needed)}, but this one has no "
            f"{', '.join(missing)}. Rebuild it here, without CXXFLAGS: {BUILD_HERE}"
        )


def _unopened(error: ImportError, built: dict[str, str]) -> str:
    """Return the reason why a library did not open, and the command that mends it."""
    text = str(error)
    if old := re.search(r"version `(GLIBC|GLIBCXX|CXXABI)_([\d.]+)' not found", text):
        library = "glibc" if old[1] == "GLIBC" else f"a libstdc++ with {old[1]}"
        here = platform.libc_ver()[1] if old[1] == "GLIBC" else "an older one"
        return (
            f"fastvi was built for {library} {old[2]} or newer, but this machine has "
            f"{here or 'an older one'}. Rebuild it here: {BUILD_HERE}"
        )
    return (
        f"fastvi's compiled extension does not load with torch {torch.__version__}, and was built "
        f"for {built['torch']}: {' '.join(text.split())}. "
        f"{_mend(built, torch.__version__, torch.version.cuda)}"
    )


def _extension_file() -> Path:
    # The tests load another build of the extension, with the CUDA kernels running on the host.
    if override := os.environ.get("FASTVI_EXTENSION"):
        return Path(override)
    here = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        if (file := here / f"_C{suffix}").exists():
            return file
    raise ImportError(
        f"fastvi's compiled extension (fastvi/_C) is missing for Python "
        f"{sys.version_info.major}.{sys.version_info.minor}. Build it: {REBUILD}"
    )


def read_record(record: Path) -> dict[str, str]:
    """Return the torch, CUDA and CPU for which the extension was built."""
    try:
        built = json.loads(record.read_bytes())
        found = {name: "" + built[name] for name in ("torch", "cuda", "cuda_architectures")}
        return found | {name: "" + built.get(name, "") for name in ("cpu", "wheel")}
    except FileNotFoundError as error:
        raise ImportError(
            f"expected {record} to say what fastvi was built for, but it is missing. "
            f"Rebuild it: {REBUILD}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImportError(
            f"expected {record} to say what fastvi was built for, got a damaged file "
            f"({type(error).__name__}: {error}). Rebuild it: {REBUILD}"
        ) from error


def build_record() -> dict[str, str]:
    """Return the torch, CUDA and CPU for which this installation was built."""
    return read_record(Path(__file__).parent / BUILD_RECORD)


def _load() -> ModuleType:
    file = _extension_file()
    built = build_record()
    check_build(built, torch.__version__, torch.version.cuda)
    check_cpu(built)
    spec = importlib.util.spec_from_file_location("fastvi._C", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not an extension module")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ImportError(_unopened(error, built)) from error
    sys.modules["fastvi._C"] = module
    return module


C = _load()
