"""PyTorch's own distribution tests, and Pyro's, with fastvi's distributions in place of torch's.

Neither suite is in a wheel. They run where a variable says where their files are; how to get them
is in CONTRIBUTING.md. Each suite is run twice, with and without fastvi: a suite of another version
than the torch that is installed has failures of its own, and with fastvi it may have no other.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH_FILES = [
    "test_distributions.py",
    "test_constraints.py",
    "test_transforms.py",
    "test_utils.py",
]
SECONDS = 3600
pytestmark = [pytest.mark.native, pytest.mark.slow]


@dataclass
class Outcome:
    passed: set[str]
    failed: dict[str, str]  # and why
    skipped: set[str]
    kernels: dict[str, int]
    output: str


def run(folder: Path, targets: list[str], inject: bool, report: Path) -> Outcome:
    """Run a suite in a process of its own, whose torch.distributions is changed or not."""
    path = os.pathsep.join(
        [str(ROOT), str(ROOT / "tests/support"), os.environ.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *targets, "-q", "--tb=line"),
            *("-p", "distribution_injection", "-p", "no:cacheprovider"),
            f"--junitxml={report}",
        ],
        cwd=folder,
        env=os.environ | {"FASTVI_INJECT": str(int(inject)), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr
    outcome = Outcome(set(), {}, set(), {}, done.stdout)
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        found = {child.tag: child for child in case}
        for tag in ("failure", "error"):
            if tag in found:
                outcome.failed[name] = found[tag].get("message") or ""
        if name not in outcome.failed:
            (outcome.skipped if "skipped" in found else outcome.passed).add(name)
    ran = re.search(r"kernels run: (.*)", done.stdout)
    assert ran, done.stdout
    outcome.kernels = {name: int(times) for name, times in re.findall(r"(\w+) (\d+)", ran[1])}
    return outcome


def check_suite(folder: Path, targets: list[str], folder_of_reports: Path) -> Outcome:
    """Fail where a test does otherwise with fastvi than without."""
    plain = run(folder, targets, False, folder_of_reports / "plain.xml")
    ours = run(folder, targets, True, folder_of_reports / "fastvi.xml")
    assert not plain.kernels and plain.passed, plain.output
    new = {name: why for name, why in ours.failed.items() if name not in plain.failed}
    assert not new, f"{len(new)} tests fail with fastvi only: {new}"
    assert plain.passed <= ours.passed
    assert plain.skipped == ours.skipped
    return ours


def folder_of(variable: str, what: str) -> Path:
    if not (given := os.environ.get(variable)):
        pytest.skip(f"{variable} does not say where {what} is; see CONTRIBUTING.md")
    return Path(given)


def test_pytorch_suite(tmp_path: Path):
    folder = folder_of("FASTVI_TORCH_SUITE", "the folder test/distributions of PyTorch")
    files = [name for name in TORCH_FILES if (folder / name).exists()]
    assert TORCH_FILES[0] in files, f"no {TORCH_FILES[0]} in {folder}"
    ours = check_suite(folder, files, tmp_path)
    assert len(ours.passed) > 3000
    for kernel in (
        *("gaussian", "laplace", "bernoulli", "categorical", "poisson", "negative_binomial"),
    ):
        assert ours.kernels.get(f"{kernel}_log_prob", 0) > 0, f"{kernel} was never run"


def test_pyro_suite(tmp_path: Path):
    pytest.importorskip("pyro", reason="Pyro is not installed; see CONTRIBUTING.md")
    folder = folder_of("FASTVI_PYRO_SUITE", "a checkout of Pyro, with its folder tests,")
    ours = check_suite(folder, ["tests/distributions"], tmp_path)
    assert len(ours.passed) > 1000
    assert ours.kernels.get("gaussian_log_prob", 0) > 0


# ---- the harness itself -------------------------------------------------------------------------
SUITE = """
import torch
from torch.distributions import Normal, kl_divergence
from torch.distributions.normal import Normal as Original

def test_density():
    Normal(torch.zeros(3), torch.ones(3)).log_prob(torch.zeros(3))

def test_divergence():
    p = Normal(torch.zeros(3), torch.ones(3))
    assert float(kl_divergence(p, Original(torch.zeros(3), torch.ones(3))).sum()) == 0.0

def test_always_wrong():
    assert False
"""
ONLY_TORCH = """
def test_only_torch_passes():
    assert Normal is Original
"""


def test_a_suite_is_run_with_and_without(tmp_path: Path):
    (tmp_path / "test_small.py").write_text(SUITE)
    ours = check_suite(tmp_path, ["test_small.py"], tmp_path)
    assert len(ours.passed) == 2 and len(ours.failed) == 1
    assert ours.kernels == {"gaussian_log_prob": 1}


def test_a_failure_of_fastvi_is_found(tmp_path: Path):
    (tmp_path / "test_small.py").write_text(SUITE + ONLY_TORCH)
    with pytest.raises(AssertionError, match="1 tests fail with fastvi only.*only_torch"):
        check_suite(tmp_path, ["test_small.py"], tmp_path)
