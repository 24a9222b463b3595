"""What the pages and docstrings show is run, and what they name is there."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_run import example

import fastvi

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md"]


def docstrings():
    """Every docstring of the package that shows an example."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in pkgutil.walk_packages(fastvi.__path__, "fastvi."):
        if module.name.rpartition(".")[2].startswith("_C"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError as error:
            if "optional extra" in str(error):
                continue
            raise
        names = {"fastvi": fastvi, "torch": torch, "math": math}
        yield from (test for test in finder.find(loaded, globs=names) if test.examples)


DOCSTRINGS = list({test.name: test for test in docstrings()}.values())


@pytest.mark.parametrize("test", DOCSTRINGS, ids=lambda test: test.name)
def test_docstring(test):
    report = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert result.failed == 0, "".join(report)


def test_every_public_name_has_an_example():
    modules = {"distributions", "guides", "objectives", "ops"}
    public = [*(set(fastvi.__all__) - modules - {"__version__"})]
    for module in modules:
        public += getattr(fastvi, module).__all__
    shown = {test.name.rpartition(".")[2] for test in DOCSTRINGS}
    assert sorted(set(public) - shown) == []


def code_blocks(page):
    return re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )


@pytest.mark.slow
def test_code_of_the_readme(capsys):
    blocks = code_blocks("README.md")
    assert len(blocks) >= 2
    names = {}
    for index, block in enumerate(blocks):
        exec(compile(block, f"README.md, block {index}", "exec"), names)
    assert re.search(r"L_64 = -\d+\.\d\d nats", capsys.readouterr().out)


def test_the_ten_lines_are_ten_and_the_example():
    ten = code_blocks("README.md")[0]
    assert len([line for line in ten.splitlines() if line.strip()]) == 10
    assert (ROOT / "examples" / "drop_in.py").read_text().endswith("\n\n" + ten)


@pytest.mark.slow
def test_drop_in_example():
    assert re.search(r"L_64 = -\d+\.\d\d nats", example("drop_in.py"))


@pytest.mark.slow
def test_exact_evidence_example():
    out = example("exact_evidence.py")
    bounds = {int(k): float(v) for k, v in re.findall(r"L_(\d+) +(-?[\d.]+)", out)}
    exact = float(re.search(r"log p\(x\) +(-?[\d.]+)", out)[1])
    assert bounds[1] < exact - 0.02
    assert abs(bounds[10_000] - exact) < 0.005
    assert abs(float(re.search(r"noise scale ([\d.]+)", out)[1]) - 0.3) < 0.01


@pytest.mark.slow
def test_large_k_example():
    """The weights collapse as D grows, few samples are enough, and the variance is as promised."""
    out = example("large_k.py")
    rows = re.findall(r"^\| \d+ \| ([\d,]+) \| (\d+) \| (\d+)% \| (\d+\.\d+) \|$", out, re.M)
    assert len(rows) == 5
    sizes, few, times, growths = (
        [float(row[n].replace(",", "")) for row in rows] for n in range(4)
    )
    assert sizes == sorted(sizes, reverse=True) and few == sorted(few, reverse=True)
    assert times[-1] < 40 and 700 < few[0] < 1000
    # 50 draws of 10 gradients of D numbers: the largest error is at D = 1, of 500 squares.
    assert all(1.0 < growth < 1.1 * (1 + 5 * (2 / 500) ** 0.5) for growth in growths)


@pytest.mark.slow
def test_sigmoid_belief_network_example():
    pytest.importorskip("sklearn")
    out = example("sigmoid_belief_network.py", "5")
    bounds = [float(v) for v in re.findall(r"L_200 +(-?[\d.]+) nats", out)]
    assert len(bounds) == 6
    assert bounds[-1] > bounds[0] + 0.5


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_make_targets_are_there(page):
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
    assert named
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.slow
def test_options_of_the_readme_are_there():
    pytest.importorskip("typer")
    lines = re.findall(r"fastvi train [^#\n`]*", (ROOT / "README.md").read_text())
    named = set(re.findall(r"--[a-z-]+", " ".join(lines)))
    assert named
    out = subprocess.run(
        [sys.executable, "-c", "from fastvi.app.cli import main; main()", "train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {option for option in named if option not in out} == set()
