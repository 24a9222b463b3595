"""The benchmark of few samples backward on digits: rows that tell all, and ratios that fit."""

from __future__ import annotations

import csv
import math

import pytest
import torch

import fastvi
from benchmarks.few_backward import __main__ as few_backward
from benchmarks.few_backward import training, variance
from benchmarks.few_backward.digits import images, loss_of, new_vae
from benchmarks.few_backward.training import TrainingRow

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.native, pytest.mark.slow]


def test_the_variance_is_a_sum_over_the_numbers_of_a_gradient():
    values = iter([torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])])
    assert variance.variance(lambda: next(values), 2) == 2.0 + 8.0


def test_the_law_is_the_formula():
    """Weights 8, 1, 1, 1, 1: with m = 2 one of the four is chosen beside the first."""
    log_w = torch.tensor([8.0, 1.0, 1.0, 1.0, 1.0]).log()[:, None]
    assert variance.by_law(log_w, 2) == pytest.approx(1 + 4 * (4 - 1) / 68)


def test_auto_tells_how_many_it_took():
    vae, _ = new_vae(images())
    x = images().train[:3].round()
    with variance.Taken() as taken:
        vae.loss(x, fastvi.IWLBLoss(200, "iwae", backward_samples="auto", variance_growth=9.0))
    assert 1 <= taken.mean < 200 and len(taken.numbers) == 1
    with torch.no_grad():
        assert math.isnan(variance.Taken().mean)


def test_seconds_are_those_of_the_training_alone(monkeypatch):
    monkeypatch.setattr(training, "TRAININGS", ((2, None), (2, 1)))
    monkeypatch.setattr(training, "HELD_OUT_SAMPLES", 10)
    rows = list(training.measure(3, 2))
    assert [(row.epoch, row.backward) for row in rows] == [
        (1, "all"), (1, "1"), (2, "all"), (2, "1"), (3, "all"), (3, "1")
    ]  # fmt: skip
    for few in ("all", "1"):
        own = [row for row in rows if row.backward == few]
        assert 0 < own[0].seconds < own[1].seconds < own[2].seconds
        assert own[0].held_out_bound < own[2].held_out_bound < 0 < own[0].standard_error


def test_a_training_does_not_depend_on_those_beside_it():
    alone, again = training.Training(2, 1, 5), training.Training(2, 1, 5)
    other = training.Training(3, None, 5)
    alone.train()
    alone.train()
    for _ in range(2):
        other.train()
        again.train()
        again.row()
    for mine, expected in zip(again.vae.parameters(), alone.vae.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_rows_chart_and_ratios(tmp_path, monkeypatch, capsys):
    image = pytest.importorskip("matplotlib.image")

    def trained(epochs: int, every: int):
        for epoch in (1, epochs):
            for few, seconds in (("all", 10.0), ("50", 5.2)):
                yield TrainingRow(500, few, epoch, seconds * epoch, -23.0 - 1 / epoch, 0.2)

    monkeypatch.setattr(training, "measure", trained)
    monkeypatch.setattr(variance, "STEPS", (0,))
    monkeypatch.setattr(variance, "SAMPLES", 8)
    monkeypatch.setattr(variance, "FEW", (2, "auto"))
    few_backward.main(["--draws", "3", "--epochs", "4", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "K 500, 50 backward over all: 0.52 of the time, +0.00 nats" in printed
    [chart] = tmp_path.glob("*.png")
    assert image.imread(chart).std() > 0
    found = {}
    for path in tmp_path.glob("*.csv"):
        with path.open(newline="") as file:
            found[path.stem.rsplit("-", 1)[1]] = list(csv.DictReader(file))
    assert [row["backward"] for row in found["variance"]] == ["2", "auto", "mini-batches"]
    assert len(found["training"]) == 4
    for rows in found.values():
        assert all(row["commit"] and row["torch"] and row["device"] for row in rows)
    assert loss_of(8, 2).backward_samples == 2
