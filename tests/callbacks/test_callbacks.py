"""One protocol of callbacks in SVI.fit and `fastvi train`: who is called, when, and with what."""

from __future__ import annotations

import csv
import logging
import math

import pytest
import torch
from both_loops import Everything, X, fit, svi, train

from fastvi.callbacks import Callback, CSVLog, ScalarLog

pytestmark = pytest.mark.native


def expected(per_epoch: int, epochs: int = 3) -> list:
    heard: list = [("begin", epochs, 0)]
    for epoch in range(epochs):
        heard += [("step", epoch * per_epoch + step + 1) for step in range(per_epoch)]
        heard.append(("epoch", epoch + 1, (epoch + 1) * per_epoch))
    return [*heard, ("end", type(None))]


@pytest.fixture(params=["SVI.fit", "train"])
def loop(request, tmp_path):
    """Either loop, and how many steps an epoch of it has."""
    if request.param == "SVI.fit":
        return fit, 4
    return lambda on_epoch, **options: train(tmp_path / "runs", on_epoch, **options), 3


def test_everything_is_heard_in_order(loop):
    run, per_epoch = loop
    callback = Everything()
    run(callback)
    assert callback.heard == expected(per_epoch)
    assert callback.settings["batch_size"] in (6, 500)
    assert all(not isinstance(value, torch.Tensor) for value in callback.settings.values())


def test_several_of_any_kind(loop):
    run, per_epoch = loop
    callback, epochs, scalars = Everything(), [], []

    class Writer:  # as TensorBoard's
        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

    class Lightning:
        def log_metrics(self, metrics, step):
            scalars.extend((name, value, step) for name, value in metrics.items())

    class Wandb:
        def log(self, metrics, step=None):
            scalars.extend((name, value, step) for name, value in metrics.items())

    run([callback, epochs.append, Writer(), Lightning(), Wandb()])
    assert callback.heard == expected(per_epoch)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    for epoch in epochs:
        assert epoch.seconds > 0 and epoch.steps == epoch.number * per_epoch
        for name, value in (
            ("train_bound", epoch.bound), ("held_out_bound", epoch.held_out),
            ("learning_rate", epoch.learning_rate), ("epoch", epoch.number),
        ):  # fmt: skip
            assert scalars.count((name, value, epoch.steps)) == 3
    assert len(scalars) == 3 * 3 * 5


def test_a_step_s_bound_every_so_many(loop):
    run, per_epoch = loop
    written = []

    class Log(ScalarLog):
        def write(self, scalars, step):
            written.append((step, *scalars))

    run(Log(every_steps=2))
    of_steps = [step for step, *names in written if names == ["step_bound"]]
    assert of_steps == list(range(2, 3 * per_epoch + 1, 2))
    assert [step for step, *names in written if "train_bound" in names] == [
        per_epoch * n for n in (1, 2, 3)
    ]


def test_all_are_ended_when_one_fails(loop):
    run, _ = loop
    first, last = Everything(), Everything()

    def fail(epoch):
        if epoch.number == 2:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        run([first, fail, last])
    for callback in (first, last):
        assert callback.heard[-1] == ("end", LookupError)
    assert [said[1] for said in first.heard if said[0] == "epoch"] == [1, 2]
    assert [said[1] for said in last.heard if said[0] == "epoch"] == [1]


def test_one_that_does_not_begin_has_the_others_ended(loop):
    run, _ = loop
    first, last = Everything(), Everything()

    class Fails(Callback):
        def on_begin(self, run):
            raise LookupError

        def on_end(self, error):
            raise AssertionError("it has not begun")

    with pytest.raises(LookupError):
        run([first, Fails(), last])
    assert [said[0] for said in first.heard] == ["begin", "end"] and last.heard == []


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt], ids=lambda e: e.__name__)
def test_a_callback_stops_the_run(loop, error):
    run, _ = loop
    heard = Everything()

    def stop(epoch):
        raise error

    with pytest.raises(error):
        run([heard, stop])
    assert heard.heard[-1] == ("end", error)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (3, "got int"),
        ("wandb", "got str"),
        ([print, 3], "got int"),
        (CSVLog, "got the class CSVLog"),
        ({"a": print}, "got dict"),
        (logging.getLogger("mine"), "got Logger"),
    ],
    ids=["a number", "a word", "a number in a list", "a class", "a mapping", "Python's logger"],
)
def test_what_cannot_be_called_is_refused(loop, given, says):
    with pytest.raises(TypeError, match=f"expected on_epoch to be a function of an Epoch.*{says}"):
        loop[0](given)


# ---- a run that goes on -------------------------------------------------------------------------
def test_a_run_that_goes_on_says_what_was_before(tmp_path):
    path = tmp_path / "run.pt"
    before, after, new = [], Everything(), []
    fit(before.append, epochs=2, checkpoint=path)
    fit([after, new.append], epochs=3, checkpoint=path, resume=True)
    assert after.heard[0] == ("begin", 3, 2)
    assert after.heard[1] == ("step", 9) and [epoch.number for epoch in new] == [3]
    assert after.heard[-2] == ("epoch", 3, 12)


def test_a_run_that_goes_on_within_an_epoch_counts_its_steps(tmp_path):
    path, counts = tmp_path / "run.pt", []

    class Steps(Callback):
        def __init__(self, end=None):
            self.end = end

        def on_step(self, number, bound):
            counts.append(number)
            if number == self.end:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Steps(6), checkpoint=path, checkpoint_every=1)
    history = fit(Steps(), checkpoint=path, resume=True)
    assert counts == list(range(1, 13)) and [epoch.steps for epoch in history] == [4, 8, 12]


# ---- CSV ----------------------------------------------------------------------------------------
def lines(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_is_what_fit_returns(tmp_path):
    path = tmp_path / "fit.csv"
    seen = []
    history = fit([CSVLog(path), lambda epoch: seen.append(len(lines(path)))])
    assert seen == [1, 2, 3]
    for row, epoch in zip(lines(path), history, strict=True):
        assert float(row["train_bound"]) == epoch.bound
        assert float(row["held_out_bound"]) == epoch.held_out
        assert (int(row["epoch"]), int(row["step"])) == (epoch.number, epoch.steps)
        assert float(row["learning_rate"]) == 0.05 == epoch.learning_rate
        assert float(row["seconds"]) == pytest.approx(epoch.seconds, abs=0.0051)
    svi().fit(X, 1, on_epoch=CSVLog(path, overwrite=True))
    [row] = lines(path)
    assert row["held_out_bound"] == "" and math.isfinite(float(row["train_bound"]))


def test_csv_of_a_run_that_goes_on(tmp_path):
    path, table = tmp_path / "run.pt", tmp_path / "fit.csv"
    fit(CSVLog(table), epochs=3, checkpoint=path)
    whole = lines(table)
    # A line that a kill kept from being written, and one that nobody wrote.
    table.write_text(table.read_text().partition("\n")[0] + "\n7,7,7,7,7,7\n")
    fit(CSVLog(table), epochs=4, checkpoint=path, resume=True)
    assert lines(table)[:3] == whole and len(lines(table)) == 4


def test_csv_overwrites_nothing_unless_asked(tmp_path):
    path = tmp_path / "fit.csv"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fit(CSVLog(path))
    assert path.read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="in a folder that is there"):
        fit(CSVLog(tmp_path / "nowhere" / "fit.csv"))


def test_metrics_are_a_csv_log(tmp_path):
    other = tmp_path / "other.csv"
    train(tmp_path / "runs", CSVLog(other))
    assert (tmp_path / "runs/run/metrics.csv").read_text() == other.read_text()


@pytest.mark.parametrize("every", [0, 1.5], ids=["zero", "a fraction"])
def test_every_steps_is_checked(every):
    with pytest.raises((TypeError, ValueError), match="every_steps"):
        ScalarLog(every_steps=every)
