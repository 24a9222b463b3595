"""What the pages promise of an installation, done for real in a fresh environment."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import cuda_reports
import pytest
from cuda_build import ROOT, setup_script
from installing import Environment, copy_checkout

from tools import release

pytestmark = pytest.mark.native


def code(page: str, language: str, heading: str) -> str:
    """The first code block of a language beneath a heading."""
    text = (ROOT / page).read_text()
    found = re.search(
        rf"^## {heading}$.*?^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    return found[1]


def install_lines(page: str, heading: str) -> list[str]:
    return re.findall(r"^pip install .*$", code(page, "sh", heading), re.MULTILINE)


# ---- what is said in several places is the same -------------------------------------------------
def test_every_place_asks_for_the_same_tools():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = set(project["project"]["optional-dependencies"]["build"])
    places = {
        "README.md": install_lines("README.md", "Install")[1],
        "CONTRIBUTING.md": install_lines("CONTRIBUTING.md", "Build")[0],
        "Makefile": re.findall(r"pip install (.*ninja.*)", (ROOT / "Makefile").read_text())[0],
    }
    for place, line in places.items():
        named = {word.strip("'") for word in line.split("pip install ")[-1].split()}
        assert named == wanted | {"wheel"}, place
    least = re.search(
        r"cmake_minimum_required\(VERSION (.*)\)", (ROOT / "CMakeLists.txt").read_text()
    )
    assert least is not None and f"cmake>={least[1]}" in wanted


def test_no_page_names_another_cmake():
    _, least = setup_script()["requirement"]("cmake")
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks/gpu.sh"]
    for page in pages:
        for named in re.findall(r"(?i)cmake *(?:>=)? *(\d+\.\d+)", page.read_text()):
            assert setup_script()["numbers"](named) == least, page


# ---- for real -----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("index")
    download = ["download", "-q", "--no-deps", "-d", str(there), "setuptools>=77"]
    done = subprocess.run([sys.executable, "-m", "pip", *download], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no package index within reach")


@pytest.fixture(scope="module")
def fresh(index: None, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def checkout(fresh: Environment) -> Path:
    return copy_checkout(fresh.folder / "checkout")


@pytest.fixture(scope="module")
def installed(fresh: Environment, checkout: Path) -> Environment:
    """After the lines of the README, in their order and as they stand there."""
    torch, tools, fastvi = install_lines("README.md", "Install")
    before = fresh.version("setuptools")
    if before is not None and setup_script()["numbers"](before) < (77,):
        refused = fresh.run(fastvi, checkout)
        assert refused.returncode != 0
        assert f"this environment has {before}: pip install 'setuptools>=77'" in (
            refused.stdout + refused.stderr
        )
    fresh.succeed(torch, checkout)
    fresh.succeed(tools, checkout)
    fresh.reuse_objects()
    fresh.succeed(fastvi, checkout)
    return fresh


def check_use(environment: Environment, where: Path) -> None:
    """The README's ten lines, far from any checkout."""
    said = environment.succeed("python -c 'import fastvi; print(fastvi.__file__)'", where)
    assert Path(said.strip()).is_relative_to(environment.site)
    (where / "ten_lines.py").write_text(code("README.md", "python", "Ten lines"))
    assert re.fullmatch(
        r"L_64 = -\d+\.\d\d nats\n", environment.succeed("python ten_lines.py", where)
    )


@pytest.mark.slow
def test_the_lines_of_the_readme(installed: Environment, tmp_path: Path):
    check_use(installed, tmp_path)


@pytest.mark.slow
def test_the_sdist_builds(installed: Environment, checkout: Path, tmp_path: Path):
    installed.succeed(f"python setup.py -q sdist -d {tmp_path}", checkout)
    (archive,) = tmp_path.glob("fastvi-*.tar.gz")
    release.check_sdist(archive)
    installed.succeed("pip uninstall -q -y fastvi", tmp_path)
    installed.succeed(f"pip install --no-build-isolation {archive}", tmp_path)
    check_use(installed, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(cuda_reports.nvcc() is None, reason="no nvcc on this machine")
def test_the_oldest_cmake_compiles_cuda(index: None, tmp_path: Path):
    wanted, least = setup_script()["requirement"]("cmake")
    venv, build = tmp_path / "venv", tmp_path / "build"
    exact = wanted.replace(">=", "==") + ".*"
    settings = setup_script()["torch_settings"]() | {
        "CMAKE_MAKE_PROGRAM": setup_script()["tool"]("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": setup_script()["pybind11_folder"](),
        "FASTVI_EMULATED": "ON",
    }
    flags = [f"-D{name}={value}" for name, value in settings.items()]
    kernel = "CMakeFiles/fastvi_cuda_linked.dir/csrc/laplace_log_prob/laplace_log_prob_cuda.cu.o"
    for command in (
        [sys.executable, "-m", "venv", venv],
        [venv / "bin/pip", "install", "-q", exact],
        [venv / "bin/cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *flags],
        [
            venv / "bin/cmake",
            "--build",
            build,
            "--target",
            kernel,
        ],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    cache = (build / "CMakeCache.txt").read_text()
    assert f"CMAKE_CACHE_MINOR_VERSION:INTERNAL={least[1]}\n" in cache


# ---- what a user reads when a build fails: the last line names what is missing -------------------
def last_line_of_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """Runs setup.py in a copy of what it needs."""
    copy = tmp_path / "copy"
    if not copy.exists():
        copy.mkdir()
        for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md"):
            (copy / name).write_text((ROOT / name).read_text())
        for name in ("csrc", "fastvi", "fastvi_command.py"):
            (copy / name).symlink_to(ROOT / name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "setup.py", "-q", "build_ext", "-b", str(tmp_path / "lib")]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.rstrip().rpartition("\n")[2]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("TORCH_CUDA_ARCH_LIST", "FASTVI_CUDA", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return lambda **variables: last_line_of_a_build(tmp_path, monkeypatch, **variables)


def hide(tmp_path: Path, module: str, error: str | None = None) -> str:
    """A PYTHONPATH on which a module cannot be imported."""
    missing = f"ModuleNotFoundError(\"No module named '{module}'\", name='{module}')"
    (tmp_path / "hidden").mkdir(exist_ok=True)
    (tmp_path / "hidden" / f"{module}.py").write_text(f"raise {error or missing}\n")
    return str(tmp_path / "hidden")


def test_no_compiler(failing):
    said = failing(CXX="/nowhere/c++")
    assert said.startswith("fastvi is built with GCC 11, Clang 14 or newer, and CXX=/nowhere/c++")


@pytest.mark.parametrize("module", ["torch", "pybind11"], ids=str)
def test_a_missing_module(failing, tmp_path: Path, module: str):
    said = failing(PYTHONPATH=hide(tmp_path, module))
    assert "install torch first" in said if module == "torch" else "pip install 'pybind11>=" in said


@pytest.mark.parametrize(
    "error",
    [
        "ImportError('libcudart.so.13: cannot open\\nshared object file')",
        "OSError('libcudart.so.13: cannot open shared object file')",
        "ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')",
    ],
    ids=["ImportError", "OSError", "what torch needs"],
)
def test_a_torch_that_cannot_be_imported(failing, tmp_path: Path, error: str):
    said = failing(PYTHONPATH=hide(tmp_path, "torch", error))
    assert f"the torch of {sys.executable} cannot be imported ({error.partition('(')[0]}: " in said
    assert said.endswith("install it again, by `pip install --force-reinstall torch`")


@pytest.mark.parametrize("value", ["yes", "2"], ids=str)
def test_an_unknown_choice_of_a_wheel(failing, value: str):
    assert failing(FASTVI_WHEEL=value) == f"FASTVI_WHEEL: expected 0 or 1, got '{value}'"


@pytest.mark.parametrize("asked", ["hopper", "90", "8.0;x"], ids=["a name", "no dot", "a letter"])
def test_an_architecture_that_is_none(failing, asked: str):
    said = failing(TORCH_CUDA_ARCH_LIST=asked)
    assert said.startswith('TORCH_CUDA_ARCH_LIST: expected architectures such as "8.0;9.0+PTX"')


@pytest.mark.slow
def test_cuda_for_a_torch_without(failing):
    if setup_script()["torch_settings"]()["FASTVI_TORCH_CUDA"]:
        pytest.skip("this torch has CUDA")
    said = failing(FASTVI_CUDA="1")
    assert said.startswith("fastvi: configuring failed: FASTVI_CUDA=1, but torch ")
    assert said.endswith("install a torch with CUDA, or set FASTVI_CUDA=0")


def configure_for_cuda(build: Path, cuda: str, **changed: str) -> None:
    """CMake's own step, as for a torch with CUDA."""
    script = setup_script()
    settings = script["torch_settings"]() | {
        "CMAKE_MAKE_PROGRAM": script["tool"]("ninja"),
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": script["pybind11_folder"](),
        "FASTVI_TORCH_CUDA": cuda,
    }
    flags = [f"-D{name}={value}" for name, value in (settings | changed).items()]
    command = [script["tool"]("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", *flags]
    script["run"]("configuring", *command)


def own_cuda() -> str:
    """The version of the machine's nvcc, 13.0."""
    said = subprocess.run([str(cuda_reports.nvcc()), "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+\.\d+)", said.stdout)
    assert found is not None
    return found[1]


with_nvcc = pytest.mark.skipif(cuda_reports.nvcc() is None, reason="no nvcc on this machine")


@pytest.mark.slow
@with_nvcc
def test_an_architecture_that_nvcc_does_not_know(tmp_path: Path):
    with pytest.raises(SystemExit) as failed:
        configure_for_cuda(tmp_path, own_cuda(), FASTVI_CUDA_ARCHITECTURES="81-real")
    assert "does not know architecture 81: expected some of" in str(failed.value)


@pytest.mark.slow
@with_nvcc
def test_an_architecture_without_bfloat16(tmp_path: Path):
    with pytest.raises(SystemExit) as failed:
        configure_for_cuda(tmp_path, own_cuda(), FASTVI_CUDA_ARCHITECTURES="75-real;90-real")
    assert "the kernels need architecture 80 (Ampere) or newer" in str(failed.value)
    assert "got 75: name others, or set FASTVI_CUDA=0" in str(failed.value)


@pytest.mark.slow
@pytest.mark.parametrize("strict", ["0", "1"], ids=["of a user", "of CI"])
def test_a_warning_fails_the_builds_of_ci_alone(tmp_path: Path, strict: str):
    configure_for_cuda(tmp_path, "", FASTVI_STRICT=strict)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    kernels = [one["command"] for one in commands if one["file"].endswith("_cpu.cpp")]
    assert kernels and all(("-Werror" in command) == (strict == "1") for command in kernels)


@pytest.mark.slow
@with_nvcc
def test_the_record_names_the_cuda_of_nvcc(tmp_path: Path):
    """Another minor version of torch's is no matter, and not what is recorded."""
    own = own_cuda()
    major = own.partition(".")[0]
    configure_for_cuda(tmp_path, f"{major}.99", FASTVI_CUDA_ARCHITECTURES="80;90-real")
    record = json.loads((tmp_path / "_build.json").read_text())
    assert (record["cuda"], record["cuda_architectures"]) == (own, "80 90-real")


@pytest.mark.slow
@with_nvcc
@pytest.mark.parametrize("choice", ["auto", "1"], ids=str)
def test_an_nvcc_of_another_major_version(tmp_path: Path, choice: str):
    own = own_cuda()
    other = f"{int(own.partition('.')[0]) + 1}.0"
    with pytest.raises(SystemExit) as failed:
        configure_for_cuda(tmp_path, other, FASTVI_CUDA=choice)
    said = str(failed.value)
    assert f"runs with CUDA {other}, but " in said and f"is of CUDA {own}" in said
    assert said.endswith("by CUDACXX, or set FASTVI_CUDA=0")


@pytest.mark.slow
def test_no_nvcc_for_a_torch_with_cuda(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    configure_for_cuda(tmp_path, "13.0", CMAKE_CUDA_COMPILER="NOTFOUND")
    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and warnings[0].endswith(
        "has CUDA 13.0, but no nvcc was found, so that this build has no CUDA kernels: put nvcc on "
        "the PATH and install again, or set FASTVI_CUDA=0"
    )
    assert json.loads((tmp_path / "_build.json").read_text())["cuda"] == ""
    with pytest.raises(SystemExit, match="FASTVI_CUDA=1, but no CUDA compiler"):
        configure_for_cuda(tmp_path, "13.0", CMAKE_CUDA_COMPILER="NOTFOUND", FASTVI_CUDA="1")


@pytest.mark.slow
def test_a_baseline_that_asks_for_more_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("names of x86-64")
    configure_for_cuda(tmp_path / "plain", "")
    assert json.loads((tmp_path / "plain/_build.json").read_text())["cpu"] == ""
    monkeypatch.setenv("CXXFLAGS", "-march=x86-64-v3")
    configure_for_cuda(tmp_path / "v3", "")
    needed = json.loads((tmp_path / "v3/_build.json").read_text())["cpu"].split()
    assert {"sse4_2", "avx2", "fma", "bmi2"} <= set(needed) and "avx512f" not in needed


@pytest.mark.parametrize("name", ["cmake", "ninja"], ids=str)
def test_a_tool_of_the_environment_goes_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / name).write_text("#!/bin/sh\necho version 1.0\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Path(setup_script()["tool"](name)).parent != tmp_path


def test_a_tool_that_is_too_old_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cmake", None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="cmake, which is missing: pip install 'cmake>="):
        setup_script()["tool"]("cmake")
    (tmp_path / "cmake").write_text("#!/bin/sh\necho cmake version 3.25.1\n")
    (tmp_path / "cmake").chmod(0o755)
    with pytest.raises(SystemExit, match=r"/cmake is 3\.25\.1: pip install 'cmake>="):
        setup_script()["tool"]("cmake")
    # One that is new enough lies behind it.
    (tmp_path / "more").mkdir()
    (tmp_path / "more/cmake").write_text("#!/bin/sh\necho cmake version 3.26.0\n")
    (tmp_path / "more/cmake").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{tmp_path / 'more'}")
    assert setup_script()["tool"]("cmake") == str(tmp_path / "more/cmake")
