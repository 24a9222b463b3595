"""`fastvi compare`: what it shows is what the runs have written, and what it refuses, by name."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from made_runs import make

from fastvi.app.comparison import differing, read_runs, table

pytestmark = pytest.mark.native


@pytest.fixture
def runs(tmp_path):
    return [
        make(tmp_path, "worse", num_samples=5),
        make(tmp_path, "better", bounds=(-29.0, -22.0, -21.5), evaluation=(-21.0, 0.25)),
        make(tmp_path, "running", bounds=(-28.0,), evaluation=None),
    ]


def test_the_table_holds_what_the_runs_have_written(runs):
    heads, rows = table(read_runs(runs))
    assert heads == ["", "better", "worse", "running"]
    assert rows == [
        ["num samples", "50", "5", "50"],
        ["epochs", "3 of 3", "2 of 3", "1 of 3"],
        ["steps", "87", "58", "29"],
        ["seconds", "1.5", "1.0", "0.5"],
        ["L_K of training's K", "-21.50", "-25.00", "-28.00"],
        ["L_1", "-22.00 ± 0.25", "-25.50 ± 0.30", "–"],
        ["L_50", "-21.02 ± 0.25", "-24.52 ± 0.30", "–"],
    ]


def test_only_the_settings_that_differ_are_shown(tmp_path):
    paths = [make(tmp_path, "a", estimator="iwae", seed=1), make(tmp_path, "b", seed=2)]
    assert differing(read_runs(paths)) == ["estimator", "seed"]


@pytest.mark.slow
def test_the_command_draws_and_prints(command, runs, tmp_path):
    images = pytest.importorskip("matplotlib.image")
    output = tmp_path / "side_by_side.png"
    status, out, error = command("compare", *runs, "--output", output)
    assert status == 0, error
    assert "better" in out and "-21.02 ± 0.25" in out and str(output) in out.replace("\n", "")
    picture = images.imread(output)[..., :3]
    assert picture.shape[1] > 1500
    # Each run has its colour, in both panels and in the last one if it is over.
    for colour, panels in (("1d6fb8", 3), ("c4541b", 3), ("2b7a4b", 2)):
        rgb = [int(colour[i : i + 2], 16) for i in (0, 2, 4)]
        columns = ((picture * 255).round() == rgb).all(-1).any(0)
        # The legend is below, the panels are thirds of the width.
        thirds = [part.any() for part in (columns[:700], columns[700:1380], columns[1380:])]
        assert sum(thirds) == panels, colour
    status, _, error = command("compare", *runs, "--output", output)
    assert status == 2 and "--overwrite" in error
    assert command("compare", *runs, "--output", output, "--overwrite")[0] == 0


REFUSED = {
    "data": (
        {"data": {"sha256": "f" * 64}},
        "runs of one data.*a: digits .*b: digits .sha256 ffff",
    ),
    "likelihood": ({"likelihood": "gaussian"}, "runs of one likelihood.*a: bernoulli; b: gaussian"),
    "held_out": ({"held_out": 7}, "runs of one number of held-out images.*a: 359; b: 7"),
}


@pytest.mark.parametrize(("other", "words"), REFUSED.values(), ids=REFUSED)
def test_runs_that_cannot_be_compared_are_named(command, tmp_path, other, words):
    import re

    paths = [make(tmp_path, "a"), make(tmp_path, "b", **other)]
    status, _, error = command("compare", *paths, "--output", tmp_path / "c.png")
    assert status == 2 and re.search(words, error) and error.count("\n") == 1
    assert not (tmp_path / "c.png").exists()


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = [make(tmp_path / "x", "a"), make(tmp_path / "y", "a")]
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]


def one(tmp_path):
    return [make(tmp_path, "a")], "two to 10 folders of runs, got 1"


def twice(tmp_path):
    return [make(tmp_path, "a")] * 2, "one twice among"


def nowhere(tmp_path):
    return [make(tmp_path, "a"), tmp_path / "nowhere"], "nowhere, which is none"


def no_epoch(tmp_path):
    path = make(tmp_path, "b")
    (path / "metrics.csv").write_text("epoch,train_bound,held_out_bound,step\n")
    return [make(tmp_path, "a"), path], "b to have finished an epoch"


def other_table(tmp_path):
    path = make(tmp_path, "b")
    (path / "metrics.csv").write_text("a,b\n1,2\n")
    return [make(tmp_path, "a"), path], "metrics.csv to be as CSVLog writes it"


def other_evaluation(tmp_path):
    path = make(tmp_path, "b")
    (path / "evaluation.csv").write_text("num_samples,bound\n1,x\n")
    return [make(tmp_path, "a"), path], "evaluation.csv to be as `fastvi train` writes it"


def other_settings(tmp_path):
    path = make(tmp_path, "b")
    described = json.loads((path / "settings.json").read_text())
    described["settings"]["hidden"] = "wide"
    (path / "settings.json").write_text(json.dumps(described))
    return [make(tmp_path, "a"), path], "hidden to be int"


@pytest.mark.parametrize(
    "case",
    [one, twice, nowhere, no_epoch, other_table, other_evaluation, other_settings],
    ids=lambda case: case.__name__,
)
def test_what_is_no_comparison_is_one_line(command, tmp_path, case):
    paths, words = case(tmp_path)
    status, _, error = command("compare", *paths, "--output", tmp_path / "c.png")
    assert status == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [("c.txt", "--output to end in .png, .svg or .pdf"), ("no/c.png", "in a folder that is there")],
    ids=["ending", "folder"],
)
def test_a_place_for_the_picture_that_is_none(command, runs, tmp_path, output, words):
    status, _, error = command("compare", *runs, "--output", tmp_path / output)
    assert status == 2 and words in error


def test_an_empty_comparison_asks_for_runs(command):
    status, _, error = command("compare")
    assert status == 2 and "Missing argument" in error
