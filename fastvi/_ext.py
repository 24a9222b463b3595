"""Load the compiled extension, once, and refuse one that was built for another torch.

This is the one place that imports ``fastvi._C``. The versions are compared before the shared
library is opened: opened first, a mismatch would show as an undefined C++ symbol.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import torch

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall fastvi (or . in a checkout)"
BUILD_RECORD = "_build.json"


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def check_build(built: dict[str, str], torch_version: str, cuda_version: str | None) -> None:
    """Raise ImportError where the extension was built for another torch or CUDA than runs now."""
    running_cuda = cuda_version or ""
    if _minor(built["torch"]) != _minor(torch_version):
        raise ImportError(
            f"fastvi was built for torch {built['torch']}, but torch {torch_version} is running. "
            f"Rebuild it: {REBUILD}"
        )
    if built["cuda"] and built["cuda"].split(".")[0] != running_cuda.split(".")[0]:
        raise ImportError(
            f"fastvi was built for CUDA {built['cuda']}, but torch runs with CUDA "
            f"{running_cuda or '(none)'}. Rebuild it: {REBUILD}"
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
    """What the extension was built for."""
    try:
        built = json.loads(record.read_bytes())
        return {name: "" + built[name] for name in ("torch", "cuda", "cuda_architectures")}
    except (ValueError, KeyError, TypeError) as error:
        raise ImportError(
            f"expected {record} to say what fastvi was built for, got a damaged file "
            f"({type(error).__name__}: {error}). Rebuild it: {REBUILD}"
        ) from error


def _load() -> ModuleType:
    file = _extension_file()
    record = Path(__file__).parent / BUILD_RECORD
    if record.exists():
        check_build(read_record(record), torch.__version__, torch.version.cuda)
    spec = importlib.util.spec_from_file_location("fastvi._C", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not an extension module")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ImportError(
            f"fastvi's compiled extension does not load with torch {torch.__version__}: {error}. "
            f"Rebuild it: {REBUILD}"
        ) from error
    sys.modules["fastvi._C"] = module
    return module


C = _load()
