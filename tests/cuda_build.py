"""The CMake targets that only tests build, in the build folder of the extension.

Most of their objects lie there already, if the extension was built from this checkout.
"""

from __future__ import annotations

import functools
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]


def folder() -> Path:
    default = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    return Path(os.environ.get("FASTVI_TEST_BUILD", default))


def settings() -> dict[str, str]:
    """What setup.py tells CMake about this machine."""
    import pybind11

    with mock.patch("setuptools.setup"):
        torch_settings = runpy.run_path(str(ROOT / "setup.py"))["torch_settings"]
    return torch_settings() | {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }


def cmake(*arguments: str | Path) -> None:
    command = ["cmake", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


@functools.cache
def configure() -> None:
    known = {} if (folder() / "CMakeCache.txt").exists() else settings()
    flags = [f"-D{name}={value}" for name, value in (known | {"FASTVI_EMULATED": "ON"}).items()]
    cmake("-S", ROOT, "-B", folder(), "-G", "Ninja", *flags)


def build(target: str) -> Path:
    """Build a target; returns the build folder."""
    configure()
    cmake("--build", folder(), "--target", target)
    return folder()
