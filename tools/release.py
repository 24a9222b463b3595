"""The wheel and the sdist that are published: made, repaired, looked into, and tried.

    python tools/release.py                        # a wheel, all of it, into dist/: `make wheel`
    python tools/release.py repair WHEEL FOLDER    # repair, check and try: what cibuildwheel calls
    python tools/release.py check WHEEL            # what is in it
    python tools/release.py try WHEEL              # run the ten lines where no compiler is
    python tools/release.py sdist [FOLDER]         # make and check the sdist: `make sdist`
    python tools/release.py prepare                # install what a build in a container takes
    python tools/release.py notes v1.2.3           # what CHANGELOG.md says of a release

torch and the tools of the extra `wheel` lie in the environment that runs it.
"""

from __future__ import annotations

import ast
import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1].resolve()
sys.path.insert(0, str(ROOT))

from tools import clean_environment  # noqa: E402

DIST = ROOT / "dist"
# What torch has loaded before fastvi is, or the driver brings. A second OpenMP would be a second
# pool of threads.
OF_TORCH = ("libtorch*", "libc10*", "libgomp*", "libcuda.so*", "libcudart.so*")
OF_THE_SYSTEM = (
    "libstdc++",
    "libm",
    "libgcc_s",
    "libc",
    "libpthread",
    "libdl",
    "librt",
    "ld-linux",
)


class Fault(SystemExit):
    """What is wrong with an archive, as one line."""


def run(*command: str | Path, **variables: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "PATH": path, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise Fault(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def build(folder: Path) -> Path:
    """A wheel of this machine alone."""
    for stale in [*(ROOT / "build").glob("lib*"), *(ROOT / "build").glob("bdist*"), folder]:
        shutil.rmtree(stale, ignore_errors=True)  # a module that was deleted would be in the wheel
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", folder)
    run(*pip, ROOT, FASTVI_WHEEL="1")
    (wheel,) = folder.glob("fastvi-*.whl")
    return wheel


def repair(wheel: Path, folder: Path) -> Path:
    """The same for every Linux machine whose C library is new enough, as its name then says."""
    folder.mkdir(parents=True, exist_ok=True)
    if not sys.platform.startswith("linux"):
        return Path(shutil.copy(wheel, folder))
    excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
    with tempfile.TemporaryDirectory() as fresh:
        run(sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded, "-w", fresh, wheel)
        (repaired,) = Path(fresh).glob("*.whl")
        return Path(shutil.copy(repaired, folder))


# ---- what is inside -----------------------------------------------------------------------------
def modules() -> set[str]:
    found = (ROOT / "fastvi").rglob("*.py")
    return {str(file.relative_to(ROOT)) for file in found if "__pycache__" not in file.parts}


def check_library(content: bytes) -> None:
    """Paths of the machine that built it, and libraries that no other machine has."""
    from elftools.elf.elffile import ELFFile

    known = (*(name.rstrip("*") for name in OF_TORCH), *(f"{name}.so" for name in OF_THE_SYSTEM))
    for tag in ELFFile(BytesIO(content)).get_section_by_name(".dynamic").iter_tags():
        path = getattr(tag, "runpath", None) or getattr(tag, "rpath", None)
        if path and not all(part.startswith("$ORIGIN") for part in path.split(":")):
            raise Fault(f"expected the library to look beside itself alone, got the path {path!r}")
        name = getattr(tag, "needed", None)
        if name and not name.startswith((*known, "ld-linux")):
            raise Fault(f"expected libraries of torch and of the system, got {name}")


def check(wheel: Path) -> None:
    """Raise Fault where the wheel holds too much or too little, or says what it is not."""
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if not name.endswith("/")}
        info = {name for name in names if re.match(r"fastvi-[^/]+\.dist-info/", name)}
        libraries = {name for name in names if re.fullmatch(r"fastvi/_C\.[\w.-]+\.so", name)}
        expected = modules() | {"fastvi_command.py", "fastvi/py.typed", "fastvi/_build.json"}
        if missing := expected - names:
            raise Fault(f"{wheel.name} lacks {', '.join(sorted(missing))}")
        if extra := names - expected - info - libraries:
            raise Fault(f"{wheel.name} holds {', '.join(sorted(extra))}, which is no part of it")
        if len(libraries) != 1:
            raise Fault(f"expected one library in {wheel.name}, got {len(libraries)}")
        record = json.loads(opened.read("fastvi/_build.json"))
        (metadata,) = (name for name in info if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(opened.read(metadata))
        if not any(name.endswith("licenses/LICENSE") for name in info):
            raise Fault(f"{wheel.name} lacks the licence")
        if sys.platform.startswith("linux"):
            check_library(opened.read(libraries.pop()))
    tag = said["Version"].partition("+")[2]
    if not tag or tag != record["wheel"] or f"+{tag}-" not in wheel.name:
        raise Fault(f"{wheel.name} is of version {said['Version']}, its record says {record}")
    if ("cu" in tag.removesuffix("cpu")) is not bool(record["cuda"]):
        raise Fault(f"{wheel.name} was built for CUDA {record['cuda'] or '(none)'}")
    if record["cpu"]:
        raise Fault(f"{wheel.name} runs only on CPUs with {record['cpu']}: build without CXXFLAGS")
    minor = ".".join(record["torch"].split(".")[:2])
    plain = [line for line in said.get_all("Requires-Dist", []) if "extra" not in line]
    if plain != [f"torch=={minor}.*"]:
        raise Fault(f"{wheel.name} requires {plain}, and was built for torch {record['torch']}")
    if sys.platform.startswith("linux") and "manylinux" not in wheel.name:
        raise Fault(f"{wheel.name} is for the machine that built it alone")


def ten_lines() -> str:
    """The first example of the README."""
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    if found is None:
        raise Fault("README.md has no example")
    return found[1]


def attempt(wheel: Path) -> str:
    """Install where there is torch and nothing else, not even a compiler; what the lines say."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        venv, _ = clean_environment.make(where, pip=False)
        kept = ("HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        alone = {name: os.environ[name] for name in kept if name in os.environ}
        alone["PATH"] = str(venv / "bin")
        (where / "ten_lines.py").write_text(ten_lines())
        pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python")]
        started = time.monotonic()
        said = ""
        for line in (
            [*pip, "install", "-q", "--no-index", str(wheel.resolve())],
            [str(venv / "bin/python"), "ten_lines.py"],
            [str(venv / "bin/fastvi"), "info"],
        ):
            done = subprocess.run(line, cwd=where, env=alone, capture_output=True, text=True)
            if done.returncode:
                raise Fault(f"{' '.join(line)} failed with {wheel.name}:\n{done.stderr}")
            said += done.stdout
        if not re.search(r"-?\d+\.\d+ nats", said):
            raise Fault(f"expected the ten lines to print a bound in nats, got {said!r}")
        return f"{said}installed and ran in {time.monotonic() - started:.1f} s"


# ---- the sdist ----------------------------------------------------------------------------------
def sdist(folder: Path) -> Path:
    """An archive that the kernels can be built from."""
    with tempfile.TemporaryDirectory() as fresh:
        run(sys.executable, "setup.py", "-q", "sdist", "-d", fresh)
        (made,) = Path(fresh).glob("fastvi-*.tar.gz")
        check_sdist(made)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made, folder))


def check_sdist(archive: Path) -> None:
    """Raise Fault where a build could not start from it, or where it holds what was built."""
    with tarfile.open(archive) as opened:
        inside = {name.partition("/")[2] for name in opened.getnames()}
    sources = {str(f.relative_to(ROOT)) for f in (ROOT / "csrc").rglob("*") if f.is_file()}
    pages = {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
    if missing := (sources | modules() | pages) - inside:
        raise Fault(f"{archive.name} lacks {', '.join(sorted(missing))}")
    built = [n for n in inside if n.endswith((".so", ".pyc", "_build.json")) or "build/" in n]
    if built:
        raise Fault(f"{archive.name} holds {', '.join(sorted(built))}, which was built here")


# ---- in the workflow ----------------------------------------------------------------------------
def prepare() -> None:
    """Install FASTVI_TORCH, for FASTVI_WITH_CUDA or the CPU, and the extra `wheel`."""
    torch, cuda = os.environ["FASTVI_TORCH"], os.environ.get("FASTVI_WITH_CUDA", "")
    index = f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    pip = (sys.executable, "-m", "pip", "install", "-q")
    run(*pip, f"torch=={torch}", "--index-url", f"https://download.pytorch.org/whl/{index}")
    run(*pip, *tools())


def tools() -> list[str]:
    """The extra `wheel`, with the extra `build` that it names."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = {}
    for extra in ("build", "wheel"):
        found = re.search(rf"^{extra} = (\[.*\])$", text, re.MULTILINE)
        assert found is not None
        listed[extra] = ast.literal_eval(found[1])
    return [*listed["build"], *(name for name in listed["wheel"] if "fastvi" not in name)]


def notes(tag: str) -> str:
    """The part of CHANGELOG.md on this version, where the tag is one of it."""
    version = runpy.run_path(str(ROOT / "fastvi" / "_version.py"))["__version__"]
    if tag != f"v{version}":
        raise Fault(f"expected the tag v{version}, which is fastvi/_version.py's, got {tag}")
    text = (ROOT / "CHANGELOG.md").read_text()
    found = re.search(rf"^## {re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if found is None or not found[1].strip():
        raise Fault(f"CHANGELOG.md has nothing on {version}")
    return found[1].strip()


def main(arguments: list[str]) -> None:
    match arguments:
        case []:
            wheel = repair(build(ROOT / "build" / "wheel"), DIST)
            check(wheel)
            print(attempt(wheel))
        case ["repair", name, folder]:
            wheel = repair(Path(name), Path(folder))
            check(wheel)
            print(attempt(wheel))
        case ["check", name]:
            wheel = Path(name)
            check(wheel)
        case ["try", name]:
            wheel = Path(name)
            print(attempt(wheel))
        case ["sdist", *folder]:
            wheel = sdist(Path(folder[0]) if folder else DIST)
        case ["prepare"]:
            return prepare()
        case ["notes", tag]:
            return print(notes(tag))
        case _:
            raise Fault(__doc__ or "")
    print(f"{wheel}: {wheel.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
