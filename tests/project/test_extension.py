"""Loading the extension: what is missing, of another build, or forced to what is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvi
from fastvi._ext import BUILD_RECORD, C, check_build, read_record

PACKAGE = Path(fastvi.__file__).parent
ROOT = Path(__file__).parents[2]


# ---- the versions -------------------------------------------------------------------------------
def built(torch_version: str = "2.11.0+cu128", cuda: str = "12.8") -> dict[str, str]:
    return {"torch": torch_version, "cuda": cuda}


@pytest.mark.parametrize(
    ("build", "torch_version", "cuda"),
    [
        pytest.param(built(), "2.11.0+cu128", "12.8", id="same"),
        pytest.param(built(), "2.11.1", "12.9", id="patch and minor of CUDA"),
        pytest.param(built(cuda=""), "2.11.0+cpu", None, id="cpu only"),
        pytest.param(built(cuda=""), "2.11.0", "13.0", id="no kernels for CUDA"),
    ],
)
def test_a_build_that_fits(build: dict[str, str], torch_version: str, cuda: str | None):
    check_build(build, torch_version, cuda)


@pytest.mark.parametrize(
    ("build", "torch_version", "cuda", "versions"),
    [
        pytest.param(built(), "2.12.0", "12.8", ("2.11.0+cu128", "2.12.0"), id="torch newer"),
        pytest.param(built("2.110.0"), "2.11.0", "12.8", ("2.110.0", "2.11.0"), id="two digits"),
        pytest.param(built("3.11.0"), "2.11.0", "12.8", ("3.11.0", "2.11.0"), id="torch major"),
        pytest.param(built(), "2.11.0", "13.0", ("12.8", "13.0"), id="CUDA newer"),
        pytest.param(built(), "2.11.0+cpu", None, ("12.8", "(none)"), id="no CUDA"),
    ],
)
def test_a_build_that_does_not_fit(build, torch_version, cuda, versions):
    with pytest.raises(ImportError, match="Rebuild it: pip install") as caught:
        check_build(build, torch_version, cuda)
    for version in versions:
        assert version in str(caught.value)


# ---- in a process of its own --------------------------------------------------------------------
def run(code: str, package: Path | None = None, **environment: str):
    path = {} if package is None else {"PYTHONPATH": str(package.parent)}
    clean = {k: v for k, v in os.environ.items() if k not in ("FASTVI_EXTENSION", "FASTVI_CPU_ISA")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env=clean | {"OMP_NUM_THREADS": "1"} | path | environment,
    )


def last_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 1, result
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture
def without_extension(tmp_path: Path) -> Path:
    """A copy of the Python sources."""
    copy = tmp_path / "fastvi"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", BUILD_RECORD))
    return copy


# The copy must be what is imported, whatever finders an editable install has set up.
IMPORT_COPY = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import fastvi
print(fastvi.__file__)
"""


@pytest.mark.slow
@pytest.mark.native
def test_no_extension(without_extension: Path):
    error = last_line(run(IMPORT_COPY, without_extension))
    assert error.startswith("ImportError: fastvi's compiled extension (fastvi/_C) is missing")
    assert "Build it: pip install --no-build-isolation" in error


@pytest.mark.slow
@pytest.mark.native
def test_an_extension_for_another_torch(without_extension: Path):
    """The record is read before the library is opened: this one could not be."""
    suffix = next(PACKAGE.glob("_C*.so")).name
    (without_extension / suffix).write_bytes(b"not a library")
    record = {"torch": "1.13.1", "cuda": "", "cuda_architectures": ""}
    (without_extension / BUILD_RECORD).write_text(json.dumps(record))
    error = last_line(run(IMPORT_COPY, without_extension))
    assert error.startswith("ImportError: fastvi was built for torch 1.13.1, but torch ")
    assert torch.__version__ in error
    assert "Rebuild it: pip install" in error


@pytest.mark.slow
@pytest.mark.native
def test_an_extension_that_does_not_open(without_extension: Path):
    shutil.copy(PACKAGE / BUILD_RECORD, without_extension)
    suffix = next(PACKAGE.glob("_C*.so")).name
    (without_extension / suffix).write_bytes(b"not a library")
    error = last_line(run(IMPORT_COPY, without_extension))
    assert error.startswith("ImportError: fastvi's compiled extension does not load with torch")
    assert "Rebuild it: pip install" in error


@pytest.mark.native
@pytest.mark.parametrize(
    "content",
    [b"", b'{"torch": ', b"\xff\xfe", b"[]", b'{"torch": "2.13.0"}', b'{"torch": 2, "cuda": ""}'],
    ids=["empty", "cut", "not text", "a list", "no cuda", "a number"],
)
def test_a_damaged_record(without_extension: Path, content: bytes):
    (without_extension / next(PACKAGE.glob("_C*.so")).name).write_bytes(b"not a library")
    record = without_extension / BUILD_RECORD
    record.write_bytes(content)
    with pytest.raises(ImportError, match="Rebuild it: pip install") as caught:
        read_record(record)
    assert str(record) in str(caught.value)


RUN_COMMAND = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.argv = ["fastvi", "info"]
from fastvi_command import main
main()
"""


@pytest.mark.slow
@pytest.mark.native
def test_the_command_says_what_is_wrong_in_one_line(without_extension: Path):
    shutil.copy(ROOT / "fastvi_command.py", without_extension.parent)
    result = run(RUN_COMMAND, without_extension)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("fastvi: fastvi's compiled extension (fastvi/_C) is missing")
    assert "Build it: pip install" in lines[-1] and "Traceback" not in result.stderr

    (without_extension / next(PACKAGE.glob("_C*.so")).name).write_bytes(b"not a library")
    (without_extension / BUILD_RECORD).write_text("{")
    result = run(RUN_COMMAND, without_extension)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "a damaged file" in result.stderr and "Rebuild it: pip install" in result.stderr


# ---- the build ----------------------------------------------------------------------------------
@pytest.mark.native
@pytest.mark.parametrize(
    "value", ["yes", "2", "ON", "Auto", ""], ids=["yes", "2", "ON", "Auto", "empty"]
)
def test_an_unknown_choice_of_cuda(tmp_path: Path, value: str):
    """Before any compiler is asked for."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if (cmake := shutil.which("cmake", path=paths)) is None:
        pytest.skip("no cmake on this machine")
    command = [cmake, "-S", ROOT, "-B", tmp_path, f"-DFASTVI_CUDA={value}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"FASTVI_CUDA: expected auto, 0 or 1, got '{value}'" in " ".join(result.stderr.split())


def test_an_isolated_build_gets_what_the_build_takes():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    isolated = set(project["build-system"]["requires"])
    assert isolated == {
        *project["project"]["optional-dependencies"]["build"],
        *project["project"]["dependencies"],
    }


@pytest.mark.slow
@pytest.mark.native
def test_the_environment_names_an_extension_that_is_not_there():
    error = last_line(run("import fastvi", FASTVI_EXTENSION="/nowhere/_C.so"))
    assert error.startswith("ImportError: ")
    assert "/nowhere/_C.so" in error


RUN_OP = "import torch, fastvi; fastvi.ops.iwlb(torch.zeros(3, 2)); print('ran')"


@pytest.mark.slow
@pytest.mark.native
def test_an_unknown_instruction_set():
    error = last_line(run(RUN_OP, FASTVI_CPU_ISA="sse9"))
    expected = "ValueError: FASTVI_CPU_ISA: expected baseline, avx2 or avx512, got sse9"
    assert error == expected


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("isa", ["", "baseline"], ids=["empty", "baseline"])
def test_a_known_instruction_set(isa: str):
    result = run(RUN_OP + "; print(fastvi._ext.C.build_info()['cpu_isa'])", FASTVI_CPU_ISA=isa)
    assert result.returncode == 0, result.stderr
    ran, chosen = result.stdout.split()
    assert ran == "ran"
    assert chosen == isa or (not isa and chosen in ("baseline", "avx2", "avx512"))


@pytest.mark.slow
@pytest.mark.native
def test_importing_needs_torch_only():
    code = (
        "import sys, fastvi;"
        "optional = 'matplotlib rich typer safetensors sklearn scipy pyro'.split();"
        "print([name for name in optional if name in sys.modules])"
    )
    result = run(code)
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stderr


def test_build_info():
    info = C.build_info()
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["cpu_isa"] in ("baseline", "avx2", "avx512")
    assert isinstance(info["cuda_emulated"], bool)


@pytest.mark.native
@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without CUDA")
def test_the_cpu_answers_without_cuda():
    assert fastvi.ops.iwlb(torch.zeros(3, 2)).device.type == "cpu"
