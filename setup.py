"""Drives CMakeLists.txt, the one list of sources and flags, for pip and setuptools."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def requirement(name: str) -> tuple[str, tuple[int, ...]]:
    """What pyproject.toml asks of a build tool, "cmake>=3.26", and the version as numbers."""
    found = re.search(rf'"({name}(?:>=([\d.]+))?)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1], numbers(found[2] or "0")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_setuptools() -> None:
    """An older one only says that pyproject.toml is wrong."""
    wanted, least = requirement("setuptools")
    if numbers(setuptools.__version__) < least:
        raise SystemExit(
            f"fastvi is built with {wanted}, this environment has {setuptools.__version__}: "
            f"pip install '{wanted}'"
        )


def torch_settings() -> dict[str, str]:
    """Where torch lies, and what it was built for, as CMake cache entries."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise SystemExit(
            "fastvi is built against the torch that will run it: install torch first, then "
            "`pip install --no-build-isolation .`"
        ) from error
    lib = Path(torch.__file__).parent / "lib"
    # The runtime that torch has loaded already. A second OpenMP would be a second thread pool.
    openmp = sorted([*lib.glob("libgomp*.so*"), *lib.parent.parent.glob("torch.libs/libgomp*.so*")])
    return {
        "FASTVI_TORCH_INCLUDE": ";".join(cpp_extension.include_paths()),
        "FASTVI_TORCH_LIB": str(lib),
        "FASTVI_TORCH_OPENMP": str(openmp[0]) if openmp else "gomp",
        "FASTVI_TORCH_VERSION": torch.__version__,
        "FASTVI_TORCH_CUDA": torch.version.cuda or "",
    }


def tool(name: str) -> str:
    """The path of cmake or ninja: the environment's own, or else the machine's."""
    wanted, least = requirement(name)
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    try:
        module = importlib.import_module(name)
        places.insert(0, getattr(module, "CMAKE_BIN_DIR", "") or getattr(module, "BIN_DIR", ""))
    except ImportError:
        pass  # installed by conda or by the system, not as a wheel
    found = shutil.which(name, path=os.pathsep.join(filter(None, places)))
    if found is None:
        raise SystemExit(f"fastvi is built with {name}, which is missing: pip install '{wanted}'")
    said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"\d+(?:\.\d+)+", said)
    if version is None or numbers(version[0]) < least:
        raise SystemExit(
            f"fastvi is built with {wanted}, {found} is {version[0] if version else 'broken'}: "
            f"pip install '{wanted}'"
        )
    return found


def pybind11_folder() -> str:
    try:
        import pybind11
    except ImportError as error:
        wanted, _ = requirement("pybind11")
        raise SystemExit(
            f"fastvi is built with pybind11, which is missing: pip install '{wanted}'"
        ) from error
    return pybind11.get_cmake_dir()


def check_compiler() -> None:
    named = os.environ.get("CXX", "").split()
    if not any(map(shutil.which, named[:1] or ["c++", "g++", "clang++"])):
        missing = f"CXX={named[0]} is not there" if named else "there is no C++ compiler"
        raise SystemExit(
            f"fastvi is built with GCC 11, Clang 14 or newer, and {missing}: install one "
            "(apt install g++), or name it by CXX"
        )


def architectures() -> str | None:
    """TORCH_CUDA_ARCH_LIST, "8.0;9.0+PTX", in CMake's words: "80-real;90"."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").replace(",", ";")
    names = [name for name in asked.split(";") if name]
    for name in names:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", name):
            raise SystemExit(
                f'TORCH_CUDA_ARCH_LIST: expected architectures such as "8.0;9.0+PTX", got "{name}"'
            )
    with_ptx = [
        name.removesuffix("+PTX").replace(".", "") + ("" if name.endswith("+PTX") else "-real")
        for name in names
    ]
    return ";".join(with_ptx) or None


def run(step: str, *command: str | Path) -> None:
    """Run CMake; its own reason for a failure is the last line, and not a traceback."""
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    sys.stderr.write(done.stderr)
    if done.returncode:
        reasons = re.findall(r"CMake Error at .*\n((?:  .*\n|\n(?=  ))+)", done.stderr)
        reason = " ".join(reasons[0].split()) if reasons else "the lines above say why"
        raise SystemExit(f"fastvi: {step} failed: {reason}")


class CMakeBuild(build_ext):
    """Configure, build with Ninja, and put _C beside the Python sources."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        check_compiler()
        cmake = tool("cmake")
        settings: dict[str, str | None] = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "FASTVI_CUDA": os.environ.get("FASTVI_CUDA") or "auto",
            "FASTVI_CUDA_ARCHITECTURES": architectures(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11_folder(),
        }
        settings |= torch_settings()
        flags = [f"-D{name}={value}" for name, value in settings.items() if value is not None]
        run("configuring", cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *flags)
        run("compiling", cmake, "--build", build, "--target", "_C")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(build / Path(self.get_ext_filename(ext.name)).name, target)
        # Read before the library is opened, see fastvi/_ext.py.
        package = ROOT / "fastvi" if self.editable_mode else target
        shutil.copy(build / "_build.json", package / "_build.json")


check_setuptools()
setup(
    ext_modules=[Extension("fastvi._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
