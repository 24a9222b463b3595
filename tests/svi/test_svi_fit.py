"""SVI.fit: data in any form, early stopping, and a run that goes on as if never interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quick import quick_in
from torch import Tensor, nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

import fastvi
from fastvi.objectives import ELBO, IWLB
from fastvi.svi import checkpoint as files

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.native


def setting(num_data: int | None = None, objective=None) -> fastvi.SVI:
    slope = nn.Linear(1, 1).double()

    def guide(x: Tensor) -> Normal:
        return Normal(slope(x[:, None])[:, 0], 0.5)

    def model(z: Tensor, x: Tensor) -> Tensor:
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.5).log_prob(x)

    optimizer = torch.optim.Adam(slope.parameters(), lr=0.05)
    return fastvi.SVI(model, guide, optimizer, objective or IWLB(4), num_data=num_data)


X = torch.linspace(-2, 2, 20, dtype=torch.float64)


# ---- a kill, and what comes after ---------------------------------------------------------------
def process(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, ROOT / "tests/support/svi_run.py", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("whole")
    results = {}
    for data in ("tensor", "loader"):
        done = process(folder / f"{data}.pt", folder / f"{data}_result.pt", 0, data)
        assert done.returncode == 0, done.stderr
        results[data] = torch.load(folder / f"{data}_result.pt")
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "die_at"),
    # A model is called 5 times for the steps of an epoch, and 2 for the held-out data.
    [("tensor", 11), ("tensor", 15), ("loader", 13)],
    ids=["in an epoch", "at the first step of one", "loader, in an epoch"],
)
def test_killed_and_resumed_is_bit_for_bit_the_whole_run(
    tmp_path: Path, whole: dict, data: str, die_at: int
):
    checkpoint, result = tmp_path / "run.pt", tmp_path / "result.pt"
    killed = process(checkpoint, result, die_at, data)
    assert killed.returncode == -signal.SIGKILL and not result.exists()
    assert checkpoint.exists()
    resumed = process(checkpoint, result, 0, data)
    assert resumed.returncode == 0, resumed.stderr
    got, expected = torch.load(result), whole[data]
    assert got["bounds"] == expected["bounds"]
    for a, b in zip(got["parameters"], expected["parameters"], strict=True):
        assert torch.equal(a, b)


def test_an_interrupted_write_leaves_the_file_before(tmp_path: Path, monkeypatch):
    path = tmp_path / "run.pt"
    svi = setting()
    svi.fit(X, epochs=2, checkpoint=path)
    before = path.read_bytes()

    def broken(content, file) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        svi.fit(X, epochs=3, checkpoint=path, resume=True)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_resuming_a_finished_run_takes_no_step(tmp_path: Path):
    path = tmp_path / "run.pt"
    first = setting().fit(X, epochs=3, checkpoint=path)
    other = setting()
    assert other.fit(X, epochs=3, checkpoint=path, resume=True) == first
    assert len(other.fit(X, epochs=4, checkpoint=path, resume=True)) == 4


def test_a_resumed_run_knows_as_much_as_one_that_goes_on(tmp_path: Path):
    """Steps that "auto" takes with all samples, since the last try gained nothing."""

    def run(path: Path, *epochs: int) -> dict:
        for until in epochs:
            svi = setting(objective=IWLB(40, backward_samples="auto"))
            svi.fit(X, epochs=until, batch_size=3, checkpoint=path, resume=path.exists())
        return svi.guide.state_dict()

    whole = run(tmp_path / "whole.pt", 4)
    resumed = run(tmp_path / "parts.pt", 1, 3, 4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_file_in_the_way_is_not_touched(tmp_path: Path):
    path = tmp_path / "run.pt"
    setting().fit(X, epochs=1, checkpoint=path)
    with pytest.raises(FileExistsError, match="resume=True"):
        setting().fit(X, epochs=1, checkpoint=path)
    with pytest.raises(ValueError, match="objective"):
        setting(objective=IWLB(5)).fit(X, epochs=2, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match="batch_size = 5"):
        setting().fit(X, epochs=2, batch_size=5, checkpoint=path, resume=True)
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="to be a checkpoint"):
        files.load(tmp_path / "other.pt")


# ---- data ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "data",
    quick_in(
        {
            "tensor": X,
            "tuple": ((X,),),
            "loader": DataLoader(X, 5),
            "loader of tuples": DataLoader(TensorDataset(X), 5),
            "list of batches": list(X.split(5)),
        },
        "tensor",
        "loader of tuples",
    ),
)
def test_data_in_any_form(data):
    svi = setting(num_data=20)
    size = 5 if isinstance(data, (Tensor, tuple)) else None
    history = svi.fit(data, epochs=30, batch_size=size, held_out=X)
    assert [epoch.number for epoch in history] == list(range(1, 31))
    assert history[-1].bound > history[0].bound
    exact = Normal(0.0, 1.25**0.5).log_prob(X).sum().item()
    assert exact - 2.5 < history[-1].held_out < exact + 1.0


def test_every_datum_once_in_an_epoch():
    seen = []
    svi = setting()
    step, svi.step = svi.step, lambda batch: seen.append(batch) or step(batch)
    svi.fit(X, epochs=2, batch_size=6)
    assert [len(batch) for batch in seen] == [6, 6, 6, 2] * 2
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    torch.testing.assert_close(first.sort().values, X)
    assert not torch.equal(first, second)
    assert svi.num_data is None


def test_without_data():
    guide = fastvi.guides.MeanFieldGaussian({"z": ()})
    svi = fastvi.SVI(
        lambda z: Normal(2.0, 0.5).log_prob(z["z"]), guide,
        torch.optim.Adam(guide.parameters(), lr=0.1), ELBO(8, estimator="stl"),
    )  # fmt: skip
    svi.fit(epochs=300)
    torch.testing.assert_close(guide.median()["z"], torch.tensor(2.0), rtol=0, atol=0.01)
    assert svi.evaluate().item() == pytest.approx(0.0, abs=0.01)


# ---- stopping -----------------------------------------------------------------------------------
def test_early_stopping_takes_back_the_best():
    svi = setting()
    kept = []

    def keep(epoch) -> None:
        kept.append([p.detach().clone() for p in svi.optimized()])

    history = svi.fit(X[:3], epochs=200, held_out=X[10:], patience=5, on_epoch=keep)
    best = max(history, key=lambda epoch: epoch.held_out).number
    assert len(history) == best + 5 < 200
    for parameter, value in zip(svi.optimized(), kept[best - 1], strict=True):
        assert torch.equal(parameter, value)
    assert not torch.equal(svi.optimized()[0], kept[-1][0])


def test_a_bound_that_is_not_finite_stops_the_run():
    svi = setting()
    svi.model = lambda z, x: -z / 0.0
    with pytest.raises(FloatingPointError, match="the bound is (nan|-?inf) after epoch 1"):
        svi.fit(X, epochs=3)


def test_progress_bar(capsys):
    pytest.importorskip("rich")
    calls = []
    setting().fit(X, epochs=3, progress=True, on_epoch=calls.append)
    assert [epoch.number for epoch in calls] == [1, 2, 3]
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        pytest.param({"data": iter([X])}, TypeError, "starts anew", id="an iterator"),
        pytest.param({"data": 3}, TypeError, "got int", id="a number"),
        pytest.param({"data": (X, X[:3])}, ValueError, "one length.*20, 3", id="lengths"),
        pytest.param({"data": X[:0]}, ValueError, "at least 1", id="no data"),
        pytest.param({"data": []}, ValueError, "at least one batch|one length", id="no batch"),
        pytest.param({"data": X, "epochs": 0}, ValueError, "epochs", id="no epochs"),
        pytest.param({"data": X, "batch_size": 0}, ValueError, "batch_size", id="batch_size"),
        pytest.param({"data": X, "patience": 1.5}, TypeError, "patience", id="patience"),
        pytest.param({"data": X, "resume": True}, ValueError, "checkpoint", id="no path"),
        pytest.param(
            {"data": DataLoader(X, 5), "batch_size": 3}, ValueError, "comes in batches", id="both"
        ),
    ],
)
def test_bad_input(arguments: dict, error: type[Exception], says: str):
    with pytest.raises(error, match=says):
        setting().fit(**arguments)
