"""Drives CMakeLists.txt, the one list of sources and flags, for pip and setuptools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


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


def architectures() -> str | None:
    """TORCH_CUDA_ARCH_LIST, "8.0;9.0+PTX", in CMake's words: "80-real;90"."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").replace(",", ";")
    names = [name for name in asked.split(";") if name]
    with_ptx = [
        name.removesuffix("+PTX").replace(".", "") + ("" if name.endswith("+PTX") else "-real")
        for name in names
    ]
    return ";".join(with_ptx) or None


class CMakeBuild(build_ext):
    """Configure, build with Ninja, and put _C beside the Python sources."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        settings = torch_settings() | {
            "FASTVI_CUDA": os.environ.get("FASTVI_CUDA") or "auto",
            "FASTVI_CUDA_ARCHITECTURES": architectures(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        flags = [f"-D{name}={value}" for name, value in settings.items() if value is not None]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *flags], check=True)
        subprocess.run(["cmake", "--build", build, "--target", "_C"], check=True)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(build / Path(self.get_ext_filename(ext.name)).name, target)
        # Read before the library is opened, see fastvi/_ext.py.
        package = ROOT / "fastvi" if self.editable_mode else target
        shutil.copy(build / "_build.json", package / "_build.json")


setup(
    ext_modules=[Extension("fastvi._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
