"""The examples of SVI: what they print is near what is exact, or what a long run says."""

from __future__ import annotations

import re

import pytest
from example_run import example

pytestmark = pytest.mark.native
NUMBER = r"(-?\d+\.\d+)"


def numbers(line: str) -> list[float]:
    return [float(x) for x in re.findall(NUMBER, line)]


@pytest.mark.slow
def test_bayesian_regression():
    lines = example("bayesian_regression.py").splitlines()
    rows = {line[:12].strip(): numbers(line[12:]) for line in lines[1:]}
    *exact, correlation, evidence = rows["exact"]
    for name in ("mean field", "low rank"):
        *weights, _, bound = rows[name]
        # A posterior standard deviation is 0.03 to 0.08.
        assert weights == pytest.approx(exact, abs=0.02)
        assert bound < evidence + 0.05
    assert rows["low rank"][-2] == pytest.approx(correlation, abs=0.1)
    assert abs(rows["mean field"][-2]) < 0.05
    assert evidence - 0.2 < rows["low rank"][-1]
    # What independence costs, in nats: half the log of one less the squared correlation.
    assert evidence - 1.2 < rows["mean field"][-1] < evidence - 0.6


@pytest.mark.slow
def test_mixture():
    lines = example("mixture.py").splitlines()
    assert [line.split()[0] for line in lines] == ["VIMCO", "Reinforce", "wake-sleep"]
    for line in lines:
        bound, evidence, off, places = numbers(line)
        assert evidence - 0.02 < bound < evidence + 0.005
        assert off < 0.03
        # The standard error of a class of 60 data is 0.1 in each direction.
        assert places < 0.35


@pytest.mark.slow
def test_bayesian_network():
    out = example("bayesian_network.py")
    accepted, r_hat = re.search(r"(\d+)% accepted, R-hat at most ([\d.]+)", out).groups()
    assert int(accepted) > 40
    assert float(r_hat) < 1.1
    rows = {line[:12].strip(): numbers(line[12:]) for line in out.splitlines()[2:]}
    assert rows["low rank"][0] > rows["mean field"][0]
    for _, spread, in_gap, off, off_in_gap in rows.values():
        assert 0.7 < spread < 1.7
        assert 0.7 < in_gap < 1.3
        assert off < 0.8
        assert off_in_gap < 0.5


@pytest.mark.slow
def test_two_layer_iwae():
    pytest.importorskip("sklearn")
    out = example("two_layer_iwae.py", "6")
    found = [float(v) for v in re.findall(r"held-out digits +(-?[\d.]+) nats", out)]
    # A pixel by itself is worth 0.5 nats: independent pixels have -28.
    assert len(found) == 2 and min(found) > -28.0


@pytest.mark.slow
def test_digit_mixture():
    pytest.importorskip("sklearn")
    out = example("digit_mixture.py", "20")
    before, after = map(float, re.search(r"digit +(-?[\d.]+) -> (-?[\d.]+)", out).groups())
    classes, right = map(int, re.search(r"in use +(\d+).* (\d+)%", out).groups())
    assert after > before + 20.0
    assert classes >= 8
    # One class for all would have 10 %.
    assert right > 50
