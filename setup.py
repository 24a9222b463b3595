"""Drives CMakeLists.txt, the one list of sources and flags, for pip and setuptools."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
VERSION = runpy.run_path(str(ROOT / "fastvi" / "_version.py"))


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
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise SystemExit(
                "fastvi is built against the torch that will run it: install torch first, then "
                "`pip install --no-build-isolation .`"
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SystemExit(
            f"fastvi is built against the torch that will run it, and the torch of "
            f"{sys.executable} cannot be imported ({reason}): install it again, by "
            f"`pip install --force-reinstall torch`"
        ) from error
    lib = Path(torch.__file__).parent / "lib"
    # The runtime that torch has loaded already. A second OpenMP would be a second thread pool.
    name = "omp" if sys.platform == "darwin" else "gomp"
    places = [lib, lib.parent.parent / "torch.libs"]
    openmp = sorted(file for place in places for file in place.glob(f"lib{name}*.[sd][oy]*"))
    return {
        "FASTVI_TORCH_INCLUDE": ";".join(cpp_extension.include_paths()),
        "FASTVI_TORCH_LIB": str(lib),
        "FASTVI_TORCH_OPENMP": str(openmp[0]) if openmp else name,
        "FASTVI_TORCH_VERSION": torch.__version__,
        "FASTVI_TORCH_CUDA": torch.version.cuda or "",
    }


def tool(name: str) -> str:
    """The path of cmake or ninja: the environment's own, or else the first that is new enough."""
    wanted, least = requirement(name)
    places = [sysconfig.get_path("scripts"), *os.get_exec_path()]
    try:
        module = importlib.import_module(name)
        places.insert(0, getattr(module, "CMAKE_BIN_DIR", "") or getattr(module, "BIN_DIR", ""))
    except ImportError:
        pass  # installed by conda or by the system, not as a wheel
    refused = ""
    for place in filter(None, places):
        if (found := shutil.which(name, path=place)) is None:
            continue
        said = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"\d+(?:\.\d+)+", said)
        if version is not None and numbers(version[0]) >= least:
            return found
        refused = refused or f"{wanted}, {found} is {version[0] if version else 'broken'}"
    why = refused or f"{name}, which is missing"
    raise SystemExit(f"fastvi is built with {why}: pip install '{wanted}'")


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


def published() -> tuple[str, str] | None:
    """The tag of a wheel that is published, "pt213cu130", and the torch that it is for."""
    asked = os.environ.get("FASTVI_WHEEL") or "0"
    if asked not in ("0", "1"):
        raise SystemExit(f"FASTVI_WHEEL: expected 0 or 1, got '{asked}'")
    if asked == "0":
        return None
    settings = torch_settings()
    cuda = "" if os.environ.get("FASTVI_CUDA") == "0" else settings["FASTVI_TORCH_CUDA"]
    if cuda:
        os.environ["FASTVI_CUDA"] = "1"  # never a wheel that says CUDA and has none
    torch_version = settings["FASTVI_TORCH_VERSION"]
    minor = ".".join(torch_version.split(".")[:2])
    return VERSION["wheel_tag"](torch_version, cuda), f"torch=={minor}.*"


class Distribution(setuptools.Distribution):
    """A wheel that is published has its torch in its version, and asks for that torch."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        super().parse_config_files(*args, **kwargs)
        if (wheel := published()) is not None:
            self.metadata.version = f"{VERSION['__version__']}+{wheel[0]}"
            self.install_requires = self.metadata.install_requires = [wheel[1]]


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
            "FASTVI_STRICT": os.environ.get("FASTVI_STRICT") or "0",
            "FASTVI_WHEEL": (published() or ("",))[0],
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
        shutil.copy(build / "_build.json", target)
        self.record = target / "_build.json"

    def copy_extensions_to_source(self) -> None:
        """Of an editable install, and of one in place."""
        super().copy_extensions_to_source()
        shutil.copy(self.record, ROOT / "fastvi")


check_setuptools()
setup(
    distclass=Distribution,
    ext_modules=[Extension("fastvi._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
