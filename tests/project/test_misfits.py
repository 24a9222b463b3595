"""An installation that does not fit the machine: one line that says what to type."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from test_extension import IMPORT_COPY, PACKAGE, RUN_COMMAND, last_line, run

from fastvi import _ext
from fastvi._ext import BUILD_RECORD, check_build, check_cpu, read_record
from fastvi._optional import need
from fastvi._version import REPOSITORY, WHEELS, __version__, wheel_tag

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.native


def record(**changed: str) -> dict[str, str]:
    plain = {"torch": torch.__version__, "cuda": "", "cuda_architectures": "", "cpu": ""}
    return {**plain, "wheel": "", **changed}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with its extension, without the record of its build."""
    there = tmp_path / "fastvi"
    shutil.copytree(PACKAGE, there, ignore=shutil.ignore_patterns(BUILD_RECORD))
    return there


# ---- wheels -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("torch_version", "cuda", "tag"),
    [
        ("2.13.0+cpu", "", "pt213cpu"),
        ("2.11.1+cu130", "13.0", "pt211cu130"),
        ("2.15.0.dev20261101", "12.8", "pt215cu128"),
        ("3.0.0a0+git1234", "", "pt30cpu"),
    ],
    ids=["cpu", "cuda", "nightly", "own build"],
)
def test_a_wheel_is_named_after_its_torch(torch_version: str, cuda: str, tag: str):
    assert wheel_tag(torch_version, cuda) == tag


@pytest.mark.parametrize(
    ("changed", "running", "tag"),
    [
        ({"torch": "2.11.0"}, ("2.13.0+cpu", None), "pt213cpu"),
        ({"cuda": "13.0"}, (torch.__version__, None), wheel_tag(torch.__version__, "")),
        ({"cuda": "12.8"}, ("2.13.0+cu130", "13.0"), "pt213cu130"),
    ],
    ids=["torch", "no CUDA", "CUDA"],
)
def test_a_wheel_that_does_not_fit_names_the_one_that_does(changed, running, tag: str):
    built = record(torch=changed.pop("torch", running[0]), wheel="pt211cu128", **changed)
    with pytest.raises(ImportError) as caught:
        check_build(built, *running)
    said = str(caught.value)
    assert said.startswith("fastvi was built for ") and "Rebuild" not in said
    assert said.endswith(
        f"Install the wheel for it: pip install --no-deps --force-reinstall "
        f"'fastvi=={__version__}+{tag}' --find-links {WHEELS}"
    )


def test_the_repository_is_named_once():
    tomllib = pytest.importorskip("tomllib")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert urls["Source"] == REPOSITORY
    assert all(url.startswith((REPOSITORY, "https://fastvi.github.io")) for url in urls.values())


# ---- the record ---------------------------------------------------------------------------------
def missing(record: Path) -> str:
    return (
        f"expected {record} to say what fastvi was built for, but it is missing. "
        f"Rebuild it: {_ext.REBUILD}"
    )


OLDER = {name: record()[name] for name in ("torch", "cuda", "cuda_architectures")}


def test_a_missing_record(tmp_path: Path):
    with pytest.raises(ImportError, match=re.escape(missing(tmp_path / "none"))):
        read_record(tmp_path / "none")


def test_a_record_of_an_older_build(tmp_path: Path):
    (tmp_path / "older").write_text(json.dumps(OLDER))
    assert read_record(tmp_path / "older") == record()


@pytest.mark.slow
def test_a_missing_record_is_refused(copy: Path):
    error = last_line(run(IMPORT_COPY, copy))
    assert error == f"ImportError: {missing(copy / BUILD_RECORD)}"


@pytest.mark.slow
def test_a_record_of_an_older_build_is_read(copy: Path):
    (copy / BUILD_RECORD).write_text(json.dumps(OLDER))
    done = run(IMPORT_COPY, copy)
    assert done.stdout.strip() == str(copy / "__init__.py"), done.stderr


# ---- the machine --------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="flags are read on Linux")
def test_a_cpu_without_the_instructions(copy: Path):
    (copy / BUILD_RECORD).write_text(json.dumps(record(cpu="tsc imagined")))
    if "tsc" not in _ext.CPU_FLAGS.read_text():
        pytest.skip("a CPU of another kind")
    error = last_line(run(IMPORT_COPY, copy))
    assert error.startswith(
        "ImportError: fastvi was built for CPUs with tsc, imagined, but this one has no imagined. "
        "Rebuild it here, without CXXFLAGS: pip install "
    )


@pytest.mark.parametrize(
    "flags",
    ["flags\t\t: fpu avx2 fma\n", "Features\t: fma avx2\n", "no such line\n"],
    ids=["x86", "arm", "unknown"],
)
def test_a_cpu_with_the_instructions(tmp_path: Path, monkeypatch, flags: str):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(_ext, "CPU_FLAGS", tmp_path / "cpuinfo")
    check_cpu(record(cpu="avx2 fma"))
    monkeypatch.setattr(_ext, "CPU_FLAGS", tmp_path / "none")
    check_cpu(record(cpu="avx2 fma"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"\0GLIBC_2.", b"\0GLIBC_9.", "fastvi was built for glibc 9."),
        pytest.param(
            b"\0GLIBCXX_3.",
            b"\0GLIBCXX_9.",
            "fastvi was built for a libstdc++ with GLIBCXX 9.",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["glibc", "libstdc++"],
)
def test_an_older_c_library(copy: Path, old: bytes, new: bytes, said: str):
    """The loader's own refusal: the library asks for a version that no machine has yet."""
    (library,) = copy.glob("_C*.so")
    content = library.read_bytes()
    if old not in content:
        pytest.skip("built against another C library")
    library.write_bytes(content.replace(old, new))
    (copy / BUILD_RECORD).write_text(json.dumps(record()))
    error = last_line(run(IMPORT_COPY, copy))
    assert error.startswith(f"ImportError: {said}"), error
    assert " or newer, but this machine has " in error
    assert "Rebuild it here: pip install" in error


# ---- optional packages --------------------------------------------------------------------------
@pytest.mark.slow
def test_info_takes_torch_alone(copy: Path):
    shutil.copy(ROOT / "fastvi_command.py", copy.parent)
    (copy / BUILD_RECORD).write_text(json.dumps(record(wheel="pt213cpu")))
    for name in ("typer", "rich", "numpy", "matplotlib"):
        (copy.parent / f"{name}.py").write_text(
            f"raise ModuleNotFoundError('missing', name='{name}')\n"
        )
    done = run(RUN_COMMAND, copy)
    assert done.returncode == 0, done.stderr
    assert f"{__version__}+pt213cpu" in done.stdout and "better build" in done.stdout
    refused = run(RUN_COMMAND.replace('"info"', '"train"'), copy)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1] == (
        "fastvi: the command line needs typer, which is part of the optional extra 'demo': "
        "pip install 'fastvi[demo]'"
    )


def calls_of_need() -> list[tuple[str, str, str]]:
    """(file and line, package, extra) of every import of an optional package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "need"):
                continue
            module, extra = node.args[0], node.args[2] if len(node.args) > 2 else None
            name = module.value if isinstance(module, ast.Constant) else ""
            if extra is None:
                in_extra = "demo"
            else:
                in_extra = extra.value if isinstance(extra, ast.Constant) else constants[extra.id]
            found.append((f"{path.name}:{node.lineno}", name.partition(".")[0], in_extra))
    return found


def test_the_extra_that_is_named_brings_the_package():
    """Itself, or as what one of its packages asks for."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    imported_as = {"scikit-learn": "sklearn", "pyro-ppl": "pyro", "scvi-tools": "scvi"}

    def names(requirements: list[str] | None) -> set[str]:
        plain = [x for x in requirements or [] if "extra ==" not in x]
        return {re.split(r"[^\w.-]", x.strip())[0].lower() for x in plain}

    calls = [call for call in calls_of_need() if call[1] not in ("", "torch", "IPython")]
    assert len(calls) > 20
    for where, package, extra in calls:
        brought = names(extras[extra])
        for name in list(brought):
            with contextlib.suppress(metadata.PackageNotFoundError):
                brought |= names(metadata.requires(name))
        assert package in {imported_as.get(name, name) for name in brought}, (where, brought)


def test_a_package_that_is_there_and_broken(tmp_path: Path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as caught:
        need("broken_one", "drawing pictures")
    assert "broken_one, which is there but cannot be imported (ModuleNotFoundError" in str(
        caught.value
    )
    with pytest.raises(ImportError, match="needs not_there_at_all, which is part of the optional"):
        need("not_there_at_all.inner", "drawing pictures")
