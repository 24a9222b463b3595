"""``benchmarks/gpu.sh`` from end to end, without a card: with none, and with a stand-in for one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rows import read

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(BASH is None or not shutil.which("timeout"), reason="needs bash, timeout"),
]
# Nobody has installed these on the machine of the script.
ABSENT = ("arviz_stats", "expecttest", "hypothesis", "lightning", "matplotlib")
ABSENT += ("numpyro", "pyro", "rich", "scipy", "sklearn", "typer", "xdist", "yaml", "zuko")
BLOCKER = """
import sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {absent!r}
        return None if absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Present
"""
QUICK = ["--quick", "--only", "iwlb", "--rounds", "2", "--providers", "fastvi", "eager"]
# What asks for a card is answered, or told that the CPU is one; a build is written down.
INTERPRETER = """#!/bin/bash
if [[ "$1" == -c && "$2" == *get_device_capability* ]]; then echo 9.0; exit; fi
if [[ "$1" == -c && "$2" == *'device="cuda"'* ]]; then exit; fi
if [[ "$1" == setup.py ]]; then
  echo "$* for $TORCH_CUDA_ARCH_LIST, FASTVI_CUDA=$FASTVI_CUDA" | tee "$BUILT"
  exit
fi
arguments=()
for argument in "$@"; do
  [[ "$argument" == cuda ]] && argument=cpu
  arguments+=("$argument")
done
if [[ "$2" == benchmarks.gpu_checks ]]; then arguments+=(--device cpu); fi
exec {python} "${{arguments[@]}}"
"""
# compute-sanitizer --tool NAME --error-exitcode N COMMAND...
SANITIZER = '#!/bin/bash\nshift 4\nexec "$@"\n'


def program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def script(tmp_path: Path, *arguments: str, absent: tuple[str, ...], **variables: str):
    """Run it; its exit status, and what the summary says of each phase."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent/sitecustomize.py").write_text(BLOCKER.format(absent=absent))
    environment = os.environ | {
        "OUT": str(tmp_path / "out"),
        "PYTHONPATH": str(tmp_path / "absent"),
        "PYTHON": sys.executable,
        "MOST": "1",
        "TOTAL": "900",
        "OMP_NUM_THREADS": "1",
        # Those of packages that are hidden would be looked for.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    for name in ("TORCH_CUDA_ARCH_LIST", "ARCH", "FASTVI_CUDA"):
        environment.pop(name, None)
    done = subprocess.run(
        [str(BASH), "benchmarks/gpu.sh", *arguments, *QUICK],
        cwd=ROOT, capture_output=True, text=True, env=environment | variables,
    )  # fmt: skip
    summary = (tmp_path / "out/summary.txt").read_text()
    outcomes = dict(re.findall(r"^(\S+) +(\S+) ", summary, re.MULTILINE))
    return done, outcomes, summary


def times_are_written(out: Path) -> None:
    [file] = [file for file in out.glob("*.csv") if "large-k" not in file.name]
    assert {row.provider for row in read(file)} >= {"fastvi", "eager"}
    assert not list(out.glob("*.png"))


@pytest.mark.slow
def test_every_phase_without_what_is_not_needed(tmp_path: Path):
    done, outcomes, summary = script(tmp_path, "--cpu", absent=(*ABSENT, "pytest"))
    assert done.returncode == 0, summary + done.stdout[-3000:] + done.stderr[-3000:]
    assert outcomes == {
        "device": "skipped", "suite": "skipped", "benchmark": "ok", "large-k": "ok", "checks": "ok"
    }  # fmt: skip
    assert summary.count("pytest is not in this environment") == 2
    assert "no chart: matplotlib is not in this environment" in done.stdout
    times_are_written(tmp_path / "out")


@pytest.mark.slow
def test_every_phase_with_a_stand_in_for_the_card(tmp_path: Path):
    """A preset list of architectures is not asked, tests whose packages are absent are skipped."""
    program(tmp_path / "python", INTERPRETER.format(python=sys.executable))
    program(tmp_path / "compute-sanitizer", SANITIZER)
    program(tmp_path / "nvidia-smi", "#!/bin/bash\necho a stand-in\n")
    done, outcomes, summary = script(
        tmp_path,
        absent=ABSENT,
        PYTHON=str(tmp_path / "python"),
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        BUILT=str(tmp_path / "built"),
        TORCH_CUDA_ARCH_LIST="5.2 7.5 9.0+PTX",
        TESTS="tests/distributions/test_distribution_counts.py",
    )
    phases = ("build", "device", "benchmark", "large-k", "memcheck", "racecheck")
    assert {name: outcomes[name] for name in phases} == dict.fromkeys(phases, "ok"), (
        summary + done.stdout[-3000:] + done.stderr[-3000:]
    )
    built = (tmp_path / "built").read_text()
    assert built == "setup.py -q build_ext --inplace for 9.0, FASTVI_CUDA=1\n"
    suite = (tmp_path / "out/suite.log").read_text()
    assert "scipy is not in this environment" in suite and "rror" not in suite
    times_are_written(tmp_path / "out")


def test_a_phase_that_fails_is_told_and_the_others_run(tmp_path: Path):
    """An interpreter that can do nothing but import fastvi."""
    program(tmp_path / "python", '#!/bin/bash\n[[ "$1" == -c && "$2" != *xdist* ]]\n')
    done, outcomes, _ = script(tmp_path, "--cpu", absent=(), PYTHON=str(tmp_path / "python"))
    phases = ("device", "suite", "benchmark", "large-k", "checks")
    assert done.returncode == 1 and outcomes == dict.fromkeys(phases, "FAILED")
