"""A fresh environment to install into, and objects that need not be compiled once more for it.

The environment has pip and setuptools as this Python's venv gives them, and sees torch with what
torch needs, and nothing else. A compile command that is the same as in the build folder of this
checkout, but for the places, gets the object from there: what is tested is the way to it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from cuda_build import ROOT, build

from tools import clean_environment

LAUNCHER = '''#!{python} -S
"""compiler arguments...: copies the object if there is one for the same command."""
import json, os, shutil, sys
command = sys.argv[1:]
known = json.load(open({record!r}))
source = command[-1]
same, skip = [], False
for word in command:
    if not skip and word not in ("-MD", "-MT", "-MF"):
        same.append(word)
    skip = word in ("-MT", "-MF")
key = " ".join(same).replace(source.rpartition("/csrc/")[0] + "/csrc", known["csrc"])
for place in known["places"]:
    key = key.replace(place, known["site"])
found = known["objects"].get(key)
if found is None:
    os.execvp(command[0], command)
target = command[command.index("-o") + 1]
shutil.copy(found, target)
open(command[command.index("-MF") + 1], "w").write(target + ":\\n")
'''
OWN_BUILD = ("build", "*.so", "_build.json", "*.egg-info", "__pycache__", ".*_cache", "runs")


def copy_checkout(to: Path) -> Path:
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*OWN_BUILD, ".git", ".venv"))
    return to


class Environment:
    def __init__(self, folder: Path):
        self.folder = folder
        self.venv, self.site = clean_environment.make(folder, pip=True)
        self.variables: dict[str, str] = {}

    def run(self, line: str, where: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A line of a page, as a shell with the environment activated would run it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTVI_"))}
        path = f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        own = {"PATH": path, "VIRTUAL_ENV": str(self.venv), "PIP_NO_INPUT": "1"}
        return subprocess.run(
            ["bash", "-c", line],
            cwd=where,
            env=kept | own | self.variables | variables,
            capture_output=True,
            text=True,
        )

    def succeed(self, line: str, where: Path, **variables: str) -> str:
        done = self.run(line, where, **variables)
        assert done.returncode == 0, line + "\n" + (done.stdout + done.stderr)[-8000:]
        return done.stdout

    def version(self, name: str) -> str | None:
        """What is installed in the environment itself; None if it has none."""
        found = list(self.site.glob(f"{name}-*.dist-info"))
        return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else None

    def reuse_objects(self) -> None:
        """Needs the environment's pybind11: another version's headers are compiled."""
        made = build("_C")
        places = [str(self.folder / "links")]
        if self.version("pybind11") == importlib.metadata.version("pybind11"):
            places.append(str(self.site))
        objects = {}
        for entry in json.loads((made / "compile_commands.json").read_text()):
            words = entry["command"].split()
            # A launcher of this build is no part of the command.
            compiler = next(i for i, w in enumerate(words) if w.startswith("-")) - 1
            objects[" ".join(words[compiler:])] = str(made / words[words.index("-o") + 1])
        record = self.folder / "objects.json"
        known = {
            "csrc": str(ROOT / "csrc"),
            "places": places,
            "site": sysconfig.get_path("purelib"),
            "objects": objects,
        }
        record.write_text(json.dumps(known))
        launcher = self.folder / "launcher"
        launcher.write_text(LAUNCHER.format(python=sys.executable, record=str(record)))
        launcher.chmod(0o755)
        for language in ("CXX", "CUDA"):
            self.variables[f"CMAKE_{language}_COMPILER_LAUNCHER"] = str(launcher)
