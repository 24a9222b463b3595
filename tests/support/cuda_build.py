"""The CMake targets that only tests build, in the build folder of the extension.

Most of their objects lie there already, if the extension was built from this checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]


def folder() -> Path:
    default = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    return Path(os.environ.get("FASTVI_TEST_BUILD", default))


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """No other process of the tests does what has this name; the lock ends with its process."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def setup_script() -> dict[str, Any]:
    """The names of setup.py, which is not run."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))


def settings() -> dict[str, str]:
    """What setup.py tells CMake about this machine."""
    script = setup_script()
    return script["torch_settings"]() | {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": script["pybind11_folder"](),
    }


def cmake(*arguments: str | Path) -> None:
    command = [setup_script()["tool"]("cmake"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]


@functools.cache
def configure() -> None:
    known = {} if (folder() / "CMakeCache.txt").exists() else settings()
    known |= {"FASTVI_EMULATED": "ON", "CMAKE_MAKE_PROGRAM": setup_script()["tool"]("ninja")}
    flags = [f"-D{name}={value}" for name, value in known.items()]
    with alone("build"):
        cmake("-S", ROOT, "-B", folder(), "-G", "Ninja", *flags)


def build(target: str) -> Path:
    """Build a target; returns the build folder."""
    configure()
    with alone("build"):
        cmake("--build", folder(), "--target", target)
    return folder()
