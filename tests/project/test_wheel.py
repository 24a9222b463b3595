"""The wheel that is published: made, looked into, and tried where there is no compiler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastvi import _ext
from fastvi._version import __version__, wheel_tag
from tools import release

pytest.importorskip("auditwheel")
pytestmark = [
    pytest.mark.native,
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="wheels are tried on Linux"),
]

# With the CUDA kernels if they are built already: their objects are there then.
CUDA = (torch.version.cuda or "") if _ext.build_record()["cuda"] else ""
TAG = wheel_tag(torch.__version__, CUDA)
INFO = f"fastvi-{__version__}+{TAG}.dist-info"
Change = Callable[[dict[str, bytes]], None]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVI_CUDA", "1" if CUDA else "0")
        made = release.build(tmp_path_factory.mktemp("made") / "wheel")
    assert made.name.startswith(f"fastvi-{__version__}+{TAG}-")
    return release.repair(made, tmp_path_factory.mktemp("repaired"))


def test_it_installs_and_runs_without_a_compiler(wheel: Path):
    assert "manylinux" in wheel.name
    release.check(wheel)
    said = release.attempt(wheel)
    assert re.search(r"^L_64 = -\d+\.\d\d nats$", said, re.MULTILINE)
    assert re.search(rf"^fastvi +{re.escape(__version__)}\+{TAG}$", said, re.MULTILINE)


def put(name: str, content: bytes) -> Change:
    return lambda files: files.update({name: content})


def without(name: str) -> Change:
    return lambda files: files.pop(name) and None


def in_record(**changed: str) -> Change:
    def change(files: dict[str, bytes]) -> None:
        record = json.loads(files["fastvi/_build.json"])
        files["fastvi/_build.json"] = json.dumps(record | changed).encode()

    return change


def another_requirement(files: dict[str, bytes]) -> None:
    pinned = f"Requires-Dist: torch=={'.'.join(torch.__version__.split('.')[:2])}.*".encode()
    assert pinned in files[f"{INFO}/METADATA"]
    files[f"{INFO}/METADATA"] = files[f"{INFO}/METADATA"].replace(
        pinned, b"Requires-Dist: torch>=2.11"
    )


def patched(*arguments: str) -> Change:
    """Run patchelf on the library."""

    def change(files: dict[str, bytes]) -> None:
        (name,) = (name for name in files if name.endswith(".so"))
        patchelf = Path(sys.executable).with_name("patchelf")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "_C.so"
            file.write_bytes(files[name])
            subprocess.run([patchelf, *arguments, file], check=True)
            files[name] = file.read_bytes()

    return change


FAULTS: dict[str, tuple[Change, str]] = {
    "a test": (put("tests/test_one.py", b""), "holds tests/test_one.py, which is no part of it"),
    "a second OpenMP": (
        put("fastvi.libs/libgomp-a34b3233.so.1", b""),
        "holds fastvi.libs/libgomp-a34b3233.so.1",
    ),
    "a stale module": (put("fastvi/objectives/old.py", b""), "holds fastvi/objectives/old.py"),
    "a missing module": (without("fastvi/svi/__init__.py"), "lacks fastvi/svi/__init__.py"),
    "no types": (without("fastvi/py.typed"), "lacks fastvi/py.typed"),
    "no licence": (without(f"{INFO}/licenses/LICENSE"), "lacks the licence"),
    "two libraries": (
        put("fastvi/_C.cpython-310-x86_64-linux-gnu.so", b""),
        "expected one library",
    ),
    "another torch": (in_record(wheel="pt211cpu"), "its record says"),
    "CXXFLAGS": (in_record(cpu="avx2 fma"), "runs only on CPUs with avx2 fma"),
    "any torch": (another_requirement, r"requires \['torch>=2.11'\], and was built for torch"),
    "a path of this machine": (
        patched("--set-rpath", "$ORIGIN/../torch/lib:/opt/torch/lib"),
        "to look beside itself alone, got the path '.*:/opt/torch/lib'",
    ),
    "the working folder": (
        patched("--set-rpath", "$ORIGIN/../torch/lib:"),
        "to look beside itself alone",
    ),
    "an unknown library": (patched("--add-needed", "libmkl_rt.so.2"), "got libmkl_rt.so.2"),
}


@pytest.mark.parametrize(("change", "said"), list(FAULTS.values()), ids=list(FAULTS))
def test_a_fault_is_found(wheel: Path, tmp_path: Path, change: Change, said: str):
    with zipfile.ZipFile(wheel) as opened:
        files = {name: opened.read(name) for name in opened.namelist()}
    change(files)
    with zipfile.ZipFile(tmp_path / wheel.name, "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    with pytest.raises(release.Fault, match=said):
        release.check(tmp_path / wheel.name)


def test_a_wheel_for_one_machine_is_found(wheel: Path, tmp_path: Path):
    own = tmp_path / re.sub(r"manylinux\w+(\.manylinux\w+)*", "linux_x86_64", wheel.name)
    shutil.copy(wheel, own)
    with pytest.raises(release.Fault, match="for the machine that built it alone"):
        release.check(own)
