"""What CONTRIBUTING says of adding an op, done: the smallest density, with other formulas."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_build
import pytest

ROOT = Path(__file__).parents[2]
SMALLEST, TOY = "laplace_log_prob", "gumbel_log_prob"
# The law of the largest of many: -(u + exp(-u)) - log b, with u = (x - loc) / b.
KERNEL = {
    "return -abs(u) - (log_sigma_of<kind>(scale) + broadcast<V>(scalar_t<V>(kLog2)));": (
        "return -(u + exp(-u)) - log_sigma_of<kind>(scale);"
    ),
    """    d[1] = times(signed_by(broadcast<V>(1), x[0] - x[1]), inverse);
    d[0] = -d[1];
    d[2] = abs(standardised(x[0], x[1], inverse)) - broadcast<V>(1);
""": """    const V u = standardised(x[0], x[1], inverse);
    const V slope = exp(-u) - broadcast<V>(1);
    d[0] = times(slope, inverse);
    d[1] = -d[0];
    d[2] = -(u * slope) - broadcast<V>(1);
""",
    """      const V gap = x[0] - x[1];
      d[1] = signed_by(inverse, gap);
      d[0] = -d[1];
      d[2] = abs(gap * inverse) - broadcast<V>(1);
""": """      const V u = (x[0] - x[1]) * inverse;
      const V slope = exp(-u) - broadcast<V>(1);
      d[0] = slope * inverse;
      d[1] = -d[0];
      d[2] = -(u * slope) - broadcast<V>(1);
""",
}
WRAPPER = {
    """    # The sign is taken from the distance, as u may be rounded to zero but still has a slope.
    depth = u * (value - loc).detach().sign()
    return sum_event(-depth - (log_b + math.log(2.0)), event_dims)""": (
        "    return sum_event(-(u + (-u).exp()) - log_b, event_dims)"
    ),
    "import math\n\n": "",
}
ROW = """
_gumbel = _Density(value="normal", loc="normal", scale="positive")
GUMBEL_LOG_PROB = Op(
    "gumbel_log_prob",
    _named_arguments,
    (
        Sample("odd", _gumbel({"value": (7, 13)})),
        Sample("one", _gumbel({"value": (1, 1)}, (1, 1, 1))),
        Sample("log_scale", _gumbel({"value": (7, 13)}, log=True)),
        Sample("scale per feature", _gumbel({"value": (7, 13), "scale": (13,)})),
        Sample("elementwise", _gumbel({"value": (7, 13)}), {"event_dims": 0}),
        Sample("transposed", _gumbel({}, (7, 13)), {}, "transposed"),
    ),
    terms_apart=True,
    large=Sample("large", _gumbel({"value": (16, 784), "scale": (784,)}, (20, 16, 784))),
)

"""


def renamed(text: str) -> str:
    return text.replace("laplace", "gumbel").replace("Laplace", "Gumbel")


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"{SMALLEST} no longer says {old!r}"
        text = text.replace(old, new)
    return text


def copy_of_the_project(place: Path) -> None:
    for name in ("csrc", "fastvi", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, place / name, ignore=ignored)
    for name in ("CMakeLists.txt", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, place)


def add_the_op(place: Path) -> None:
    """What the list says, step by step."""
    folder = place / "csrc" / TOY
    folder.mkdir()
    files = sorted((place / "csrc" / SMALLEST).iterdir())
    told = re.findall(r"^   - `<op>(\S+)`:", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert {file.name.removeprefix(SMALLEST) for file in files} == set(told)
    for file in files:
        (folder / file.name.replace(SMALLEST, TOY)).write_text(renamed(file.read_text()))
    header = folder / f"{TOY}.h"
    header.write_text(changed(header.read_text(), KERNEL))

    recipe = place / "CMakeLists.txt"
    # The last place: then the sources of the others are compiled in the batches that they were in.
    listed = re.sub(r"(set\(FASTVI_OPS [^)]*)\)", rf"\1 {TOY})", recipe.read_text(), count=1)
    recipe.write_text(listed)

    ops = place / "fastvi/ops"
    wrapper = renamed((ops / f"{SMALLEST}.py").read_text())
    (ops / f"{TOY}.py").write_text(changed(wrapper, WRAPPER))
    with (ops / "__init__.py").open("a") as file:
        file.write(f'\nfrom fastvi.ops.{TOY} import {TOY}\n\n__all__ += ["{TOY}"]\n')

    table = place / "tests/support/op_samples_densities.py"
    text = table.read_text()
    table.write_text(
        text.replace("DENSITIES = (\n", f"{ROW}DENSITIES = (\n    GUMBEL_LOG_PROB,\n", 1)
    )


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def configure(place: Path, build: Path) -> None:
    script = cuda_build.setup_script()
    settings = cuda_build.settings() | {
        "CMAKE_MAKE_PROGRAM": script["tool"]("ninja"),
        "FASTVI_CUDA": "0",
    }
    flags = [f"-D{name}={value}" for name, value in settings.items()]
    run(script["tool"]("cmake"), "-S", place, "-B", build, "-G", "Ninja", *flags, cwd=place)


def objects_of(build: Path) -> list[str]:
    """What the extension is linked from."""
    ninja = cuda_build.setup_script()["tool"]("ninja")
    told = run(ninja, "-t", "query", "_C", cwd=build)
    file = re.search(r"(_C\.\S+\.so)", told)
    assert file is not None
    told = run(ninja, "-t", "query", file[1], cwd=build)
    inputs = told.partition("outputs:")[0]
    return re.findall(r"(\S+\.o)$", inputs, re.MULTILINE)


def sources_of(batch: Path) -> set[str]:
    """Of one batch of sources, those that it takes, within csrc."""
    return set(re.findall(r'#include ".*/csrc/(\S+)"', batch.read_text()))


def build_the_extension(place: Path) -> Path:
    """As CMake does; what the new op does not change is taken from the build of this checkout."""
    build, own = place / "build", cuda_build.folder()
    configure(place, build)
    ninja = cuda_build.setup_script()["tool"]("ninja")
    anew = []
    for name in objects_of(build):
        theirs = own / name
        same = TOY not in name and theirs.exists()
        if same and "/Unity/" in name:
            batch = name.removesuffix(".o")
            same = sources_of(build / batch) == sources_of(own / batch)
        if same:
            (build / name).parent.mkdir(parents=True, exist_ok=True)
            (build / name).symlink_to(theirs)
        else:
            anew.append(name)
    assert sum(f"/{TOY}_cpu.cpp" in name for name in anew) >= 1
    run(ninja, *anew, cwd=build)
    # Ninja does not know the objects that it has not made, and would make all of them.
    link = run(ninja, "-t", "commands", "_C", cwd=build)
    command = next(line for line in link.splitlines()[::-1] if " -o _C." in line)
    run("sh", "-c", command, cwd=build)
    [library] = build.glob("_C.*.so")
    shutil.copy(library, place / "fastvi")
    shutil.copy(build / "_build.json", place / "fastvi")
    return build


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("project")
    copy_of_the_project(place)
    add_the_op(place)
    build_the_extension(place)
    return place


@pytest.mark.slow
@pytest.mark.native
def test_an_op_that_is_added_keeps_the_contract(project: Path):
    bare = {"PYTHONPATH": str(project), "FASTVI_EXTENSION": "", "PYTEST_ADDOPTS": ""}
    contract = ("-m", "pytest", "-p", "no:cacheprovider", "tests/ops/test_op_contract.py")
    said = run(sys.executable, *contract, "-k", TOY, cwd=project, **bare)
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None and int(passed[1]) > 40, said[-2000:]
    assert "failed" not in said


@pytest.mark.slow
@pytest.mark.native
def test_its_cuda_file_is_one(project: Path):
    """As the emulation reads it: nvcc is not everywhere."""
    commands = json.loads((project / "build/compile_commands.json").read_text())
    kernel = next(one for one in commands if one["file"].endswith(f"{TOY}_cpu.cpp"))
    compiler = shlex.split(kernel["command"])
    compiler = compiler[1:2] if "ccache" in compiler[0] else compiler[:1]
    cuda = project / f"csrc/{TOY}/{TOY}_cuda.cu"
    places = ("csrc", "tests/device/cuda_emulation")
    options = ["-std=c++20", "-ffp-contract=off", "-fsyntax-only", "-x", "c++"]
    run(*compiler, *options, *(f"-I{project / part}" for part in places), cuda, cwd=project)
