"""``fastvi diagnose`` as a newcomer meets it: a page to act on, a second time, mistakes."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from command_line import rows
from quick import quick_in

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from fastvi.app.diagnosis_report import FILES, write_report
from fastvi.app.images import load_images
from fastvi.app.networks import load_run
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.app.training import held_out_pixels, train
from fastvi.diagnostics.diagnosis import Diagnosis

pytestmark = pytest.mark.native

SMALL = ["--num-samples", "40", "--batch", "12"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch."""
    folder = RunFolder(tmp_path_factory.mktemp("runs"), "digits")
    folder.create()
    settings = Settings(epochs=1, num_samples=3, hidden=8, latent_features=2, held_out=60)
    train(load_images("digits"), settings, folder)
    return folder.path


@pytest.fixture
def run(trained, tmp_path):
    """A run of one's own: a test may spoil it."""
    return Path(shutil.copytree(trained, tmp_path / "digits"))


@pytest.mark.slow
def test_a_diagnosis_leaves_what_it_promises(command, run):
    status, out, error = command("diagnose", run, *SMALL)
    assert status == 0, error
    folder = run / "diagnosis"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)

    data = rows(folder / "diagnosis.csv")
    assert [int(row["row"]) for row in data] == list(range(12))
    for row in data:
        assert all(math.isfinite(float(value)) for value in row.values())
        assert 1 <= float(row["ess"]) <= 40
        assert 1 <= float(row["backward_samples"]) <= 40
        assert float(row["L_40"]) + float(row["gap"]) == pytest.approx(
            float(row["log_evidence"]), abs=2e-4
        )
    # The numbers are those of the run's model on its held-out images: the bound, drawn anew.
    pixels = held_out_pixels(load_images("digits"), Settings(held_out=60))[:12]
    bound = load_run(run).log_evidence(pixels, 2000).mean().item()
    assert sum(float(row["log_evidence"]) for row in data) / 12 == pytest.approx(bound, abs=0.3)

    # How many have to run backward for each K, and the time that it saves by its formula.
    page = (folder / "diagnosis.md").read_text(encoding="utf-8")
    assert "## Samples that run backward" in page
    mean = sum(float(row["backward_samples"]) for row in data) / 12
    factor = max(1.0, 3 / (1 + 3 * mean / 40))
    row = rf"40 \| {mean:.1f} \| {mean / 40:.0%} \| {1 / factor:.0%} \| {factor:.2f} ×"
    assert re.search(row, page), page
    assert f"{factor:.2f} ×" in out and re.search(r"samples that have to run +", out)

    gradients = rows(folder / "snr.csv")
    assert {(row["estimator"], row["group"]) for row in gradients} == {
        (estimator, group) for estimator in ("iwae", "dreg") for group in ("encoder", "decoder")
    }
    assert {row["num_samples"] for row in gradients} == {"1", "10"}

    assert "12 held-out images of digits" in page and "K: 40" in page
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert sorted(shown) == sorted(name for name in FILES if name.endswith(".png"))
    advice = re.findall(r"^- (.*)$", page, re.MULTILINE)
    printed = " ".join(out.split())
    assert advice and all(" ".join(sentence.split()) in printed for sentence in advice)
    assert "L_40" in out and str(folder / "").rstrip("/") in out.replace("\n", "")

    images = pytest.importorskip("matplotlib.image")
    for name in shown:
        picture = images.imread(folder / name)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.05


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(command, run):
    tables = []
    for seed in (0, 0, 1):
        assert command("diagnose", run, *SMALL, "--overwrite", "--seed", seed)[0] == 0
        tables.append((run / "diagnosis" / "diagnosis.csv").read_text())
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.slow
def test_a_second_diagnosis_is_refused_unless_asked(command, run):
    folder = run / "diagnosis"
    assert command("diagnose", run, *SMALL)[0] == 0
    (folder / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and "holds a diagnosis already" in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    status, _, _ = command("diagnose", run, "--num-samples", 30, "--batch", 2, "--overwrite")
    assert status == 0 and len(rows(folder / "diagnosis.csv")) == 2
    assert (folder / "notes.txt").read_text() == "mine"
    # What train wrote is left alone.
    assert (run / "metrics.csv").exists() and load_run(run).sample(2).shape == (2, 64)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"], ids=str)
def test_a_run_on_data_from_a_path(command, tmp_path, likelihood):
    np = pytest.importorskip("numpy")
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (30, 6, 4), dtype=np.uint8))
    options = ["--epochs", 1, "--hidden", 8, "--latent-features", 2, "--likelihood", likelihood]
    assert command("train", "--runs", tmp_path, "--data", path, *options)[0] == 0
    status, _, error = command("diagnose", tmp_path / "mine", *SMALL, "--data", "digits")
    assert status == 2 and "images of 6 x 4 pixels, as the run's, got 8 x 8" in error
    assert not (tmp_path / "mine" / "diagnosis").exists()
    status, out, error = command("diagnose", tmp_path / "mine", *SMALL)
    assert status == 0, error
    assert len(rows(tmp_path / "mine" / "diagnosis" / "diagnosis.csv")) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-samples", "0"], "expected --num-samples to be at least 1, got 0"),
        (["--batch", "0"], "expected --batch to be at least 1, got 0"),
        (["--seed", "-1"], "expected --seed to be from 0"),
        (["--device", "tpu"], "expected --device to be cpu or cuda, got 'tpu'"),
        (["--data", "nowhere.npz"], "'nowhere.npz', which does not exist"),
        (["--no-such-option"], "No such option"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_leave_nothing(command, run, options, words):
    status, _, error = command("diagnose", run, *options)
    assert status == 2 and words in error and "Traceback" not in error
    assert not (run / "diagnosis").exists()


def spoil_settings(run):
    (run / "settings.json").write_text("{")


def forget_settings(run):
    (run / "settings.json").write_text('{"settings": {}}')


def unknown_setting(run):
    described = json.loads((run / "settings.json").read_text())
    described["settings"]["colour"] = "blue"
    (run / "settings.json").write_text(json.dumps(described))


def cut_weights(run):
    content = (run / "weights.safetensors").read_bytes()
    (run / "weights.safetensors").write_bytes(content[: len(content) // 2])


def other_width(run):
    described = json.loads((run / "settings.json").read_text())
    described["settings"]["hidden"] = 9
    (run / "settings.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "spoil",
    [spoil_settings, forget_settings, unknown_setting, cut_weights, other_width],
    ids=lambda spoil: spoil.__name__,
)
def test_a_damaged_run_is_one_line(command, run, spoil):
    spoil(run)
    status, _, error = command("diagnose", run, *SMALL)
    assert status == 2 and "files that do not fit" in error and str(run) in error
    assert error.count("\n") == 1 and "Traceback" not in error


def test_what_is_no_run_is_named(command, tmp_path):
    status, _, error = command("diagnose", tmp_path / "nowhere")
    assert status == 2 and "nowhere, which is none" in error
    status, _, error = command("diagnose", tmp_path)
    assert status == 2 and "a run of 'fastvi train'" in error and "settings.json" in error
    (tmp_path / "file").write_text("")
    status, _, error = command("diagnose", tmp_path / "file")
    assert status == 2 and "which is none" in error
    status, _, error = command("diagnose")
    assert status == 2 and "Missing argument" in error


def test_a_file_in_the_way_is_named(command, run):
    (run / "diagnosis").write_text("")
    status, _, error = command("diagnose", run, *SMALL, "--overwrite")
    assert status == 2 and "exists and is not a folder" in error


# Breaks when a picture or a table does not bear what may come: no tail to fit, weights that have
# collapsed, a bound of -inf, gradients that were not measured or are lost in the noise.
@pytest.mark.parametrize(
    "case",
    quick_in(["one_sample", "infinite", "undefined", "collapsed", "broken"], "undefined", "broken"),
)
def test_the_report_bears_ugly_numbers(tmp_path, case):
    inf, nan = math.inf, math.nan
    few = case == "one_sample"
    ladder = (1,) if few else (1, 10, 100)
    values = {"infinite": inf, "undefined": nan}.get(case, 1.0)
    ones = torch.ones(4, dtype=torch.float64)
    bounds = -ones.expand(len(ladder), 4).clone()
    if case == "infinite":
        bounds[:, 0] = -inf
    if case == "broken":
        bounds[:] = nan
    found = Diagnosis(
        num_samples=ladder[-1],
        ess=ones * (0.0 if case == "undefined" else 1.0),
        pareto_k=ones * (nan if few else values),
        gap=ones * (nan if few else values),
        max_weight=ones,
        ladder=ladder,
        bounds=bounds,
        snr_samples=() if few else (1, 10),
        snr={}
        if few
        else {
            "iwae": {"encoder": (0.0, 0.0), "decoder": (nan, inf)},
            "dreg": {"encoder": (0.5, 0.0), "decoder": (nan, inf)},
        },
    )
    write_report(tmp_path / "diagnosis", found, {"Run": case}, overwrite=False)
    assert sorted(path.name for path in (tmp_path / "diagnosis").iterdir()) == sorted(FILES)
    assert all(sentence.endswith(".") for sentence in found.advice())


@pytest.mark.parametrize(("bad", "words"), [(1, "row 3;"), (2, "rows 3, 2;")], ids=["one", "two"])
def test_the_advice_names_rows(bad, words):
    ones = torch.ones(4, dtype=torch.float64)
    pareto_k = torch.tensor([0.1, 0.1, 0.8 if bad == 2 else 0.1, 0.9])
    found = Diagnosis(
        num_samples=10,
        ess=ones,
        pareto_k=pareto_k.double(),
        gap=ones,
        max_weight=ones,
        ladder=(1, 10),
        bounds=-ones.expand(2, 4),
        snr_samples=(),
        snr={},
    )
    assert f"Look at {words}" in " ".join(found.advice())
