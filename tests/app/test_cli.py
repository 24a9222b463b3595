"""The command line as a newcomer meets it: a whole run, a second, mistakes."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from command_line import rows, start

pytest.importorskip("typer")
pytest.importorskip("sklearn")

import fastvi
from fastvi.app import cli, plots, training
from fastvi.app.images import load_images
from fastvi.app.networks import build_vae, load_run
from fastvi.app.run_folder import FILES, RunFolder
from fastvi.app.settings import Settings, describe
from fastvi.app.training import evaluate, held_out_pixels, train

SMALL = ["--epochs", "2", "--num-samples", "3", "--hidden", "8", "--latent-features", "2"]
SMALL += ["--held-out", "60"]


# ---- a whole run --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--likelihood", "gaussian"], ["--likelihood", "gaussian", "--scale", "0.3"]],
    ids=["bernoulli", "gaussian_learned", "gaussian_fixed"],
)
def test_a_run_leaves_what_it_promises(command, tmp_path, options):
    status, out, _ = command("train", *SMALL, "--runs", tmp_path, *options)
    assert status == 0
    folder = tmp_path / "digits"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)

    metrics = rows(folder / "metrics.csv")
    assert [row["epoch"] for row in metrics] == ["1", "2"]
    assert all(math.isfinite(float(value)) for row in metrics for value in row.values())

    settings = json.loads((folder / "settings.json").read_text())
    assert settings["settings"]["num_samples"] == 3
    assert settings["data"]["train_images"] == 1438
    assert settings["versions"]["torch"] == torch.__version__

    evaluation = rows(folder / "evaluation.csv")
    assert [int(row["num_samples"]) for row in evaluation] == [1, 50, 5000]
    for row in evaluation:
        bound, error = float(row["bound"]), float(row["standard_error"])
        shown = rf"{row['num_samples']} +{bound:.3f} +{error:.3f}"
        assert re.search(shown, out), f"{shown} is not in the table:\n{out}"
    # L_K grows with K, up to the noise of estimating it.
    bounds = [float(row["bound"]) for row in evaluation]
    assert bounds[0] < bounds[1] + 0.5 and bounds[1] < bounds[2] + 0.05

    images = pytest.importorskip("matplotlib.image")
    for name in ("bound.png", "reconstructions.png", "samples.png"):
        picture = images.imread(folder / name)
        assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.05


@pytest.mark.slow
def test_weights_are_those_of_the_run(command, tmp_path):
    command("train", *SMALL, "--runs", tmp_path, "--name", "first")
    vae = load_run(tmp_path / "first")
    pixels = held_out_pixels(load_images("digits"), Settings(held_out=60))
    [again] = evaluate(vae, pixels, [5000])
    written = rows(tmp_path / "first" / "evaluation.csv")[-1]
    assert again.images == int(written["images"])
    torch.testing.assert_close(again.bound, float(written["bound"]), rtol=0.0, atol=0.02)


@pytest.mark.slow
def test_same_seed_same_run_and_another_seed_another(command, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        command("train", *SMALL, "--runs", tmp_path, "--name", name, "--seed", seed)
    a, b, c = (
        [row["train_bound"] for row in rows(tmp_path / name / "metrics.csv")] for name in "abc"
    )
    assert a == b != c


@pytest.mark.slow
def test_training_beats_independent_pixels(tmp_path):
    """The best model without a latent variable is the mean image; the VAE must know more."""
    images = load_images("digits")
    settings = Settings(epochs=12, num_samples=5, hidden=64, latent_features=8)
    folder = RunFolder(tmp_path, "run")
    folder.create()
    vae = train(images, settings, folder)
    pixels = held_out_pixels(images, settings)
    mean = images.train.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(mean).log_prob(pixels).sum(-1).mean().item()
    [evaluation] = evaluate(vae, pixels, [500])
    assert evaluation.bound > independent + 2.0


def test_the_picture_of_one_epoch_shows_a_point(tmp_path):
    images = pytest.importorskip("matplotlib.image")
    path = tmp_path / "bound.png"
    plots.draw_bound(path, [1], [-26.0], [-25.0], num_samples=5, title="")
    line = [int(plots._TRAIN[i : i + 2], 16) for i in (1, 3, 5)]
    picture = (images.imread(path)[..., :3] * 255).round()
    # A disc of 6 points at 160 dots per inch; its label has another colour.
    assert (picture == line).all(-1).sum() > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "floats.npz", "idx", "idx.gz", "folder"], ids=str)
def test_data_from_a_path(command, tmp_path, kind):
    np = pytest.importorskip("numpy")
    images = np.random.default_rng(0).integers(0, 256, (30, 6, 4), dtype=np.uint8)
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    idx = b"\0\0\x08\x03" + sizes + images.tobytes()
    path = tmp_path / f"mine.{kind}"
    if kind == "npz":
        np.savez(path, images=images)
    elif kind == "floats.npz":
        np.savez(path, images=images.astype(np.float64)[..., None])
    elif kind == "folder":
        path.mkdir()
        (path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx))
        (path / "t10k-images-idx3-ubyte").write_bytes(idx)
    else:
        path.write_bytes(gzip.compress(idx) if kind == "idx.gz" else idx)
    options = ["--data", path, "--held-out", "5"]
    status, out, _ = command("train", *SMALL, "--runs", tmp_path / "runs", *options)
    assert status == 0 and "mean of 5 held-out images" in out
    assert (tmp_path / "runs" / "mine" / "samples.png").exists()
    assert f"{30 if kind == 'folder' else 24} for training" in out
    assert ("divided by 255" in out) == (kind == "floats.npz")


# ---- a second run -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_run_is_refused_unless_asked(command, tmp_path):
    assert command("train", *SMALL, "--runs", tmp_path)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "digits").iterdir()}
    status, _, error = command("train", *SMALL, "--runs", tmp_path)
    assert status == 2 and "holds a run already" in error and "--overwrite" in error
    assert {path.name: path.read_bytes() for path in (tmp_path / "digits").iterdir()} == before

    (tmp_path / "digits" / "notes.txt").write_text("mine")
    status, _, _ = command("train", *SMALL, "--runs", tmp_path, "--overwrite", "--epochs", "1")
    assert status == 0
    assert len(rows(tmp_path / "digits" / "metrics.csv")) == 1
    assert (tmp_path / "digits" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["--backward-samples", "1"], (1, None)),
        (["--backward-samples", "auto", "--variance-growth", "1.5"], ("auto", 1.5)),
    ],
    ids=["a number", "auto"],
)
def test_few_samples_run_backward(command, tmp_path, monkeypatch, typed, kept):
    """Breaks when the option is shown but is not what the loss is given."""
    monkeypatch.setattr(cli, "EVALUATED", (1,))
    losses = []

    class Heard(training.IWLBLoss):
        def forward(self, *args, **options):
            losses.append(self)
            return super().forward(*args, **options)

    monkeypatch.setattr(training, "IWLBLoss", Heard)
    status, out, error = command("train", *SMALL, "--runs", tmp_path, *typed)
    assert status == 0, error
    assert {(loss.backward_samples, loss.variance_growth) for loss in losses} == {kept}
    described = json.loads((tmp_path / "digits" / "settings.json").read_text())["settings"]
    assert (described["backward_samples"], described["variance_growth"]) == kept
    assert re.search(rf"backward samples +{kept[0]}\b", out)
    assert ("variance growth" in out) == (kept[1] is not None)


# ---- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "0"], "expected epochs to be at least 1, got 0"),
        (["--num-samples", "0"], "expected num_samples to be at least 1, got 0"),
        (["--estimator", "magic"], "one of iwae, stl, dreg, rws, rws_dreg, got 'magic'"),
        (["--likelihood", "poisson"], "one of bernoulli, gaussian, got 'poisson'"),
        (["--learning-rate", "nan"], "expected learning_rate to be positive, got nan"),
        (["--scale", "0.5"], "expected scale to be unset for bernoulli"),
        (
            ["--backward-samples", "0"],
            "backward_samples to be from 1 to 4294967296, got 0",
        ),
        (["--backward-samples", "few"], "--backward-samples to be a number or 'auto', got 'few'"),
        (
            ["--num-samples", "1", "--backward-samples", "1"],
            "expected backward_samples to be unset for num_samples = 1, got 1",
        ),
        (
            ["--backward-samples", 2**40],
            "backward_samples to be from 1 to 4294967296, got",
        ),
        (
            ["--variance-growth", "1.1"],
            "variance_growth to be given with backward_samples='auto', got 1.1",
        ),
        (
            ["--variance-growth", "1", "--backward-samples", "auto"],
            "expected variance_growth to be above 1 and finite, got 1.0",
        ),
        (["--seed", "-1"], "expected seed to be from 0"),
        (["--threads", "0"], "expected --threads to be at least 1, got 0"),
        (["--device", "tpu"], "expected --device to be cpu or cuda, got 'tpu'"),
        (["--device", "cuda:99"], "CUDA devices, got 'cuda:99'"),
        (["--name", "../elsewhere"], "the name of a folder"),
        (["--name", ""], "the name of a folder, without slashes, got ''"),
        (["--latent-features", 2**40], "expected latent_features to be at most 16777216, got"),
        (["--hidden", 2**40], "expected hidden to be at most 16777216, got"),
        (["--hidden", 2**24], "hidden and latent_features to fit the memory"),
        (["--num-samples", 2**40], "expected num_samples to be at most 4294967296, got"),
        (["--num-samples", 2**32], "214,748,364,800 samples in a step"),
        (["--data", "nowhere.npz"], "'nowhere.npz', which does not exist"),
        (["--no-such-option"], "No such option"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_leave_nothing(command, tmp_path, options, words):
    status, _, error = command("train", "--runs", tmp_path / "runs", *options)
    assert status == 2 and words in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "request_memory",
    [lambda: torch.empty(2**60), lambda: bytearray(2**62)],
    ids=["torch", "python"],
)
def test_memory_that_runs_out_is_one_line(command, tmp_path, monkeypatch, request_memory):
    monkeypatch.setattr(cli, "train", lambda *_: request_memory())
    status, _, error = command("train", *SMALL, "--runs", tmp_path)
    assert status == 2 and error.startswith("fastvi: not enough memory")
    assert error.count("\n") == 1


def test_a_bound_that_is_not_finite_ends_the_run(command, tmp_path):
    options = ["--learning-rate", "1e30"]
    status, _, error = command("train", *SMALL, "--runs", tmp_path, *options)
    assert status == 2 and "try a smaller learning rate" in error


def test_a_bound_that_is_not_finite_leaves_the_weights_before(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, "run")
    folder.create()
    bounds = iter([-20.0, math.nan])
    monkeypatch.setattr(training, "_mean_loss", lambda *_: next(bounds))
    settings = Settings(num_samples=2, hidden=8, latent_features=2)
    with pytest.raises(FloatingPointError, match="after epoch 2"):
        train(load_images("digits"), settings, folder)
    assert len(rows(folder.path / "metrics.csv")) == 1
    assert load_run(folder.path).sample(3).isfinite().all()


def test_folder_of_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="settings.json"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", b"{"),
        ("settings.json", b'{"settings": {"nonsense": 1}}'),
        ("settings.json", b"\xff\xfe"),
        ("settings.json", b"[]"),
        ("settings.json", b'{"settings": {"hidden": "8"}, "data": {"height": 8, "width": 8}}'),
        ("settings.json", b'{"settings": {"hidden": 8.5}, "data": {"height": 8, "width": 8}}'),
        ("settings.json", b'{"settings": {}, "data": {"height": -8, "width": 8}}'),
        ("settings.json", b'{"settings": {}, "data": {"height": 1e9, "width": 8}}'),
        ("settings.json", b'{"settings": {}, "data": {"height": 9223372036854775807, "width": 8}}'),
        ("settings.json", b'{"settings": {"hidden": 16777216}, "data": {"height": 8, "width": 8}}'),
        ("weights.safetensors", b""),
        ("weights.safetensors", b"cut"),
    ],
    ids=[
        "cut settings", "other settings", "no text", "a list", "a word", "a fraction", "negative",
        "a float", "too high", "too wide", "no weights", "cut weights",
    ],
)  # fmt: skip
def test_a_damaged_run_is_named(tmp_path, name: str, content: bytes):
    settings = Settings(epochs=1, num_samples=2, hidden=8, latent_features=2)
    folder = RunFolder(tmp_path, "damaged")
    folder.create()
    folder.write_settings(describe(load_images("digits"), settings))
    folder.save_weights(build_vae(64, settings).state_dict())
    assert load_run(folder.path).sample(3).shape == (3, 64)
    (folder.path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"load_run: expected .*{name}"):
        load_run(folder.path)


def test_names_do_not_leave_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="not a folder"):
        RunFolder(tmp_path, "file")
    for name in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="expected name"):
            RunFolder(tmp_path, name)


# ---- info, optional packages --------------------------------------------------------------------


def test_info_names_versions_devices_and_instruction_set(command):
    status, out, _ = command("info")
    assert status == 0
    shown = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert shown["fastvi"] == fastvi.__version__
    assert shown["torch"] == torch.__version__
    assert shown["built for torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert shown["CPU instruction set"].split()[0] in ("baseline", "avx2", "avx512")
    assert shown["devices"].startswith("cpu")
    assert "CUDA architectures" in shown and "built for CUDA" in shown


@pytest.mark.slow
def test_info_shows_the_forced_instruction_set():
    out, _ = start("info", FASTVI_CPU_ISA="baseline").communicate()
    assert re.search(r"CPU instruction set +baseline", out)


@pytest.mark.slow
def test_an_unknown_instruction_set_is_named():
    process = start("info", FASTVI_CPU_ISA="mmx")
    out, _ = process.communicate()
    assert process.returncode != 0
    assert "FASTVI_CPU_ISA: expected baseline, avx2 or avx512, got mmx" in out


OPTIONAL = ["matplotlib", "rich", "safetensors", "sklearn", "typer"]


def without(packages, code):
    """Runs code in a process that cannot import the packages."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages}))"
    return subprocess.run(
        [sys.executable, "-c", f"{hide}\n{code}"], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_importing_fastvi_needs_torch_alone():
    code = "import fastvi, torch; fastvi.ops.gaussian_kl(torch.zeros(2, 2), torch.zeros(2, 2))"
    done = without([*OPTIONAL, "numpy", "scipy"], code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "code"),
    [
        ("typer", "import fastvi.app.cli"),
        ("sklearn", "from fastvi.app.images import load_images; load_images('digits')"),
        ("numpy", "from fastvi.app.images import read_idx; read_idx(__import__('sys').executable)"),
        (
            "matplotlib",
            "from fastvi.app.plots import draw_bound; "
            "draw_bound('x', [1], [0], [0], num_samples=1, title='')",
        ),
        ("safetensors", "from fastvi.app.networks import load_run; load_run('.')"),
    ],
    ids=["typer", "sklearn", "numpy", "matplotlib", "safetensors"],
)
def test_a_missing_package_names_its_extra(package, code):
    done = without([package], code)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError") and package in last
    assert "'demo'" in last and "pip install 'fastvi[demo]'" in last
