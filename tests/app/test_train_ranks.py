"""`fastvi train` under torchrun: two processes train as one would, and go on as one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import rows

pytest.importorskip("typer")
pytest.importorskip("safetensors")

import numpy as np

from fastvi import IWLBLoss
from fastvi.app.images import binarise, load_images
from fastvi.app.networks import build_vae, load_run
from fastvi.app.ranks import Ranks
from fastvi.app.settings import Settings
from fastvi.app.training import held_out_pixels
from fastvi.ops import new_key

pytestmark = [pytest.mark.native, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/support/torchrun/train_ranks.py"


def torchrun(*arguments, processes=2):
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={processes}", *map(str, arguments),
        ],
        capture_output=True, text=True, timeout=400,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def data(folder):
    """26 images: 21 to train on, so that the last of the batches of 4 is one image."""
    pixels = np.random.default_rng(0).integers(0, 256, (26, 5, 4), dtype=np.uint8)
    np.savez(folder / "mine.npz", images=pixels)
    return folder / "mine.npz"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    data(folder)
    done = torchrun(SCRIPT, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def by_hand(images, settings, processes):
    """The same run in one process, in other words: the parts of each batch, one after the other."""
    torch.manual_seed(settings.seed)
    vae = build_vae(images.train.shape[1], settings, images.train.mean(0))
    criterion = IWLBLoss(settings.num_samples, settings.estimator, reduction="sum")
    optimizer = torch.optim.Adam(vae.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    held_out, bounds = held_out_pixels(images, settings), []
    for _ in range(settings.epochs):
        order = torch.randperm(len(images.train))
        for start in range(0, len(order), settings.batch_size):
            x = binarise(images.train[order[start : start + settings.batch_size]])
            seed, stream = new_key()
            first = -(-len(x) // processes)
            loss = torch.zeros(())
            for rank, part in enumerate((x[:first], x[first:])):
                if len(part):
                    key = torch.stack((seed, stream + rank))
                    loss = loss + vae.loss(part, criterion, key=key) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bounds.append(-loss.item())
        schedule.step()
        for _ in held_out.split(settings.batch_size):
            new_key()
    return vae, bounds


def test_two_processes_train_as_one_would(shared):
    folder, (first, second) = shared
    images = load_images(folder / "mine.npz")
    settings = Settings(epochs=3, num_samples=3, hidden=4, latent_features=2, batch_size=4)
    vae, bounds = by_hand(images, settings, 2)
    for name, value in vae.state_dict().items():
        assert torch.equal(first["whole"][name], second["whole"][name])
        # Adam makes a sign of a gradient near zero, whatever its size.
        torch.testing.assert_close(first["whole"][name], value, rtol=1e-4, atol=1e-5)
    assert [number for number, _ in first["steps"]] == list(range(1, 19)) and not second["steps"]
    np.testing.assert_allclose([bound for _, bound in first["steps"]], bounds, rtol=1e-5)


def test_the_first_rank_writes_what_all_have(shared):
    folder, (first, second) = shared
    assert torch.equal(
        load_run(folder / "whole").decoder[0].weight, second["whole"]["decoder.0.weight"]
    )
    assert len(rows(folder / "whole/metrics.csv")) == 3
    assert json.loads((folder / "whole/settings.json").read_text())["processes"] == 2
    # The bound of all held-out images, each of which one rank has weighed.
    vae, images = load_run(folder / "whole"), load_images(folder / "mine.npz")
    pixels = held_out_pixels(images, Settings())
    assert first["images"] == second["images"] == len(pixels) == 5
    assert first["bound"] == second["bound"]
    bound = vae.log_evidence(pixels, 2000).double().mean().item()
    assert first["bound"] == pytest.approx(bound, abs=0.05)


def test_an_interrupted_run_goes_on_with_the_same_bits(shared):
    folder, ranks = shared
    for rank in ranks:
        for name, value in rank["whole"].items():
            assert torch.equal(rank["parts"][name], value)
    whole, parts = (
        [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in rows(folder / name / "metrics.csv")
        ]
        for name in ("whole", "parts")
    )
    assert whole == parts and len(whole) == 3


def test_ranks_that_differ_say_so(shared):
    _, ranks = shared
    assert [rank["said"] for rank in ranks] == [
        "expected the number to be the same on every rank, got 0 on rank 0 and 1 on rank 1"
    ] * 2


def test_the_command_under_torchrun(tmp_path):
    path = data(tmp_path)
    options = ["--data", path, "--runs", tmp_path, "--epochs", 1, "--hidden", 4, "--batch-size", 7]
    done = torchrun("-m", "fastvi", "train", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    # One process speaks.
    assert done.stdout.count("Training on 21 images") == 1
    assert done.stdout.count("mean of 5 held-out images") == 1 and "processes" in done.stdout
    assert (tmp_path / "mine/samples.png").exists()
    again = torchrun("-m", "fastvi", "train", *options)
    assert again.returncode != 0 and again.stderr.count("holds a run already") == 1
    # The launcher has a traceback of its own.
    assert "fastvi/app/" not in again.stderr


def test_a_batch_of_fewer_images_than_processes_is_refused(tmp_path):
    path = data(tmp_path)
    options = ["--data", path, "--runs", tmp_path, "--epochs", 1, "--hidden", 4, "--batch-size", 1]
    done = torchrun("-m", "fastvi", "train", *options)
    assert done.returncode != 0 and "fastvi/app/" not in done.stderr
    assert "expected batch_size to be at least 2, an image for each process, got 1" in done.stderr


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 7], ids=str)
@pytest.mark.parametrize("size", [1, 2, 3], ids=str)
def test_shares_are_all_the_rows_once(rows, size):
    x = torch.arange(rows)
    shares = [Ranks(number, size).share(x) for number in range(size)]
    assert torch.equal(torch.cat(shares), x)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_device_with_a_number_is_refused_among_ranks():
    with pytest.raises(ValueError, match="expected --device to be cuda under torchrun.*'cuda:1'"):
        Ranks(1, 2, 1).take_device("cuda:1")
    Ranks(1, 2, 1).take_device("cpu")
