"""The workflows run what the project has, on what the project says that it serves."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from test_makefile import in_help

from tools import release

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")
pytestmark = pytest.mark.native

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# What a bare machine lacks, and what only a release does; all else is a target or a script.
OTHERS = ("apt-get ", "brew install ", "echo ", "gh release create ", "rm dist/", "python -m pip ")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / name).read_text())


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_steps_are_the_project_s_own(file: Path):
    if not (found := yaml.safe_load(file.read_text())):
        pytest.fail(f"{file} is empty")
    assert found["permissions"] == {"contents": "read"}
    for step in steps(found):
        assert ("uses" in step) is not ("run" in step), step
        for line in step.get("run", "").splitlines():
            if line.startswith("make "):
                assert line.split()[1] in in_help(), line
            elif "tools/release.py" in line:
                assert line.split()[2] in (release.__doc__ or ""), line
            else:
                assert line.startswith((*OTHERS, "python -m cibuildwheel ")), line


def test_every_python_and_torch_is_tested():
    ci, published = read("workflows/ci.yml"), read("workflows/release.yml")
    matrix = ci["jobs"]["tests"]["strategy"]["matrix"]
    classifiers = PROJECT["project"]["classifiers"]
    named = re.findall(r"Python :: (3\.\d+)'", str(classifiers))
    assert matrix["python"] == named
    assert named[0] == PROJECT["project"]["requires-python"].removeprefix(">=")
    pinned = re.search(r"^TORCH \?= torch==(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    oldest = PROJECT["project"]["dependencies"][0].removeprefix("torch>=")
    assert pinned is not None and matrix["torch"] == [pinned[1]]
    tested = {*matrix["torch"], *(row["torch"] for row in matrix["include"])}
    built = published["jobs"]["wheels"]["strategy"]["matrix"]["torch"]
    assert tested == set(built) and built[0] == f"{oldest}.0" and pinned[1] in built
    for workflow in (ci, published):
        lines = [step.get("run", "") for step in steps(workflow)]
        found = {one for line in lines for one in re.findall(r"torch==(\d[\d.]*)", line)}
        assert found == {pinned[1]}


def test_arguments_of_make_are_whole():
    """As the shell of a workflow reads them, once its expressions are filled in."""
    for row in read("workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]:
        line = next(
            step["run"]
            for step in read("workflows/ci.yml")["jobs"]["tests"]["steps"]
            if "run" in step
        )
        for name, value in row.items():
            line = line.replace("${{ matrix." + name + " }}", value)
        words = shlex.split(line)
        assert [word.partition("=")[0] for word in words[2:]] == ["PYTHON", "TORCH", "ARGS"]
        assert words[-1] == f"ARGS={row['arguments']}"


def test_containers_call_scripts_that_are_there():
    linux = PROJECT["tool"]["cibuildwheel"]["linux"]
    for name in ("before-all", "before-build", "repair-wheel-command"):
        script, *arguments = re.findall(r"\{project\}/(\S+)(?: (\w+))?", linux[name])[0]
        assert (ROOT / script).is_file()
        if script.endswith(".py"):
            assert arguments[0] in (release.__doc__ or "")
    passed = set(linux["environment-pass"])
    job = read("workflows/release.yml")["jobs"]["wheels"]
    assert passed == set(job["env"])
    assert linux["environment"]["FASTVI_WHEEL"] == "1"


def test_the_tools_of_a_container_are_those_of_the_extras():
    extras = PROJECT["project"]["optional-dependencies"]
    assert release.tools() == [*extras["build"], *extras["wheel"][1:]]


def test_the_notes_of_a_release_are_those_of_its_version():
    from fastvi import __version__

    said = release.notes(f"v{__version__}")
    assert said.startswith("- ") and "\n## " not in said
    with pytest.raises(release.Fault, match=f"expected the tag v{re.escape(__version__)}"):
        release.notes("v0.0.1")


@pytest.mark.parametrize(
    "name", ["dependabot.yml", *(f"ISSUE_TEMPLATE/{n}.yml" for n in ("bug", "wish", "config"))]
)
def test_other_files_are_read(name: str):
    assert isinstance(read(name), dict)
