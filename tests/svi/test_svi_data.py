"""SVI.fit: how many data there are, and all that a checkpoint has to hold and to refuse."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

import fastvi
from fastvi.guides import MeanFieldGaussian
from fastvi.objectives import ELBO, IWLB, Reinforce

X = torch.linspace(-1.0, 1.0, 40, dtype=torch.float64) + 2.0
ROWS = TensorDataset(X)
SGD = functools.partial(torch.optim.SGD, lr=0.05)


class Stream(IterableDataset):
    """Data that nothing tells the number of."""

    def __iter__(self):
        return iter(X)


class Batched(torch.utils.data.Dataset):
    """A data set of batches."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> Tensor:
        return X[10 * number : 10 * number + 10]


def of_all_data(**options) -> fastvi.SVI:
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64)

    def model(z, x: Tensor) -> dict:
        return {"mean": Normal(0.0, 1.0), "x": Normal(z["mean"][:, None], 1.0).log_prob(x)}

    return fastvi.SVI(model, guide, SGD, ELBO(4, estimator="stl"), **options)


def taken(svi: fastvi.SVI) -> list[int | None]:
    """N, as each step sees it."""
    seen: list[int | None] = []
    step = svi.step

    def counting(batch):
        seen.append(svi.num_data)
        return step(batch)

    svi.step = counting
    return seen


def shuffled(sampler, **options) -> DataLoader:
    return DataLoader(ROWS, 8, sampler=sampler, **options)


DATA = [
    pytest.param(lambda: X, 40, id="tensor"),
    pytest.param(lambda: list(X.split(10)), 40, id="list of batches"),
    pytest.param(lambda: [{"x": part, "of": 1} for part in X.split(10)], 40, id="mappings"),
    pytest.param(lambda: DataLoader(Stream(), 8), 40, id="iterable data set"),
    pytest.param(lambda: DataLoader(Batched(), None), 40, id="data set of batches"),
    pytest.param(lambda: shuffled(SubsetRandomSampler(range(12))), 12, id="subset"),
    pytest.param(lambda: shuffled(RandomSampler(ROWS, num_samples=16)), 40, id="part at a time"),
    pytest.param(lambda: DataLoader(ROWS, 12, shuffle=True, drop_last=True), 40,
                 id="shuffled, another last one dropped each time"),
    pytest.param(lambda: DataLoader(ROWS, 12, drop_last=True), 36, id="the same last one dropped"),
    pytest.param(lambda: shuffled(DistributedSampler(ROWS, num_replicas=2, rank=1)), 40,
                 id="share of a rank"),
    pytest.param(lambda: DataLoader(ROWS, batch_sampler=BatchSampler(
        SubsetRandomSampler(range(20)), 6, False)), 20, id="batches of a subset"),
    pytest.param(lambda: DataLoader(ROWS, batch_sampler=BatchSampler(
        SequentialSampler(ROWS), 12, True)), 36, id="batch sampler that drops"),
    pytest.param(lambda: DataLoader(ROWS, batch_sampler=[[0, 1, 2], [3, 4]]), 5,
                 id="batches by hand"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), DATA)
def test_the_number_of_data_is_that_of_what_is_drawn_from(make, expected: int):
    svi = of_all_data()
    model = svi.model
    svi.model = lambda z, x: model(z, x["x"] if isinstance(x, dict) else x)
    seen = taken(svi)
    svi.fit(make(), epochs=2)
    assert seen and set(seen) == {expected}
    assert svi.num_data is None


@pytest.mark.slow
def test_batches_in_a_list_give_the_posterior_of_all_of_them():
    svi = of_all_data()
    svi.optimizer = torch.optim.Adam(svi.guide.parameters(), lr=0.05)
    svi.fit(list(X.split(10)), epochs=150)
    torch.testing.assert_close(
        svi.guide.log_scale.exp().detach(), torch.tensor([41**-0.5]).double(), rtol=0.25, atol=0
    )


def test_counting_does_not_move_the_noise():
    """The order of the data and the samples are those of a number that was given."""

    torch.manual_seed(0)
    svi = of_all_data()
    svi.fit(DataLoader(Stream(), 8), epochs=2)
    counted = svi.guide.loc.detach()
    torch.manual_seed(0)
    svi = of_all_data()
    svi.fit(DataLoader(Stream(), 8), epochs=2, num_data=40)
    assert torch.equal(svi.guide.loc.detach(), counted)


def test_held_out_batches_have_one_prior():
    """Four batches of ten are the bound of forty data, not four times that of ten."""
    svi = of_all_data()
    with torch.no_grad():
        svi.guide.log_scale.fill_(-20.0)
    svi.objective = ELBO(20_000)
    svi.optimizer.param_groups[0]["lr"] = 0.0
    (whole,) = svi.fit(X, held_out=X)
    (parts,) = svi.fit(X, held_out=list(X.split(10)))
    assert parts.held_out == pytest.approx(whole.held_out, abs=0.05)


def test_what_cannot_be_counted_is_asked_for():
    svi = of_all_data()
    model = svi.model
    batches = [(range(0, 20),), (range(20, 40),)]
    svi.model = lambda z, rows: model(z, X[list(rows)])
    with pytest.raises(ValueError, match="num_data, the number of data.*data hold no tensor"):
        svi.fit(batches)
    assert svi.fit(batches, num_data=40)[0].bound < 0
    svi.num_data = 40
    assert svi.fit(batches)[0].bound < 0


def test_an_empty_batch():
    with pytest.raises(ValueError, match="batch of at least one datum"):
        of_all_data().step(X[:0])


# ---- modules that functions work with ------------------------------------------------------------
NET = nn.Linear(2, 2)
LEVEL = nn.Parameter(torch.zeros(2))


class Encoder:
    """No module, but it has one."""

    def __init__(self, net: nn.Module) -> None:
        self.nets = {"first": net}

    def q(self, x: Tensor) -> Independent:
        return Independent(Normal(self.nets["first"](x), 1.0), 1)

    def __call__(self, x: Tensor) -> Independent:
        return self.q(x)


def of_global(x: Tensor) -> Independent:
    return Independent(Normal(NET(x) + LEVEL, 1.0), 1)


def with_default(x: Tensor, *, net: nn.Module = NET) -> Independent:
    return Independent(Normal(net(x), 1.0), 1)


def closing_over(net: nn.Module):
    def inner(x: Tensor) -> Tensor:
        return net(x)

    return lambda x: Independent(Normal(inner(x), 1.0), 1)


def joint(z: Tensor, x: Tensor) -> Tensor:
    return -(z**2).sum(-1)


GUIDES = [
    pytest.param(lambda net: closing_over(net), id="closure of a closure"),
    pytest.param(lambda net: Encoder(net).q, id="bound method"),
    pytest.param(lambda net: Encoder(net), id="callable object"),
    pytest.param(lambda net: functools.partial(with_default, net=net), id="partial"),
    pytest.param(lambda net: fastvi.guides.AmortizedGuide(closing_over(net)), id="in a Guide"),
]


@pytest.mark.parametrize("make", GUIDES)
def test_a_function_brings_its_modules(make):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    svi = fastvi.SVI(joint, make(net), SGD, IWLB(3))
    assert {id(p) for p in net.parameters()} <= {id(p) for p in svi.optimized()}
    running = net[1].running_mean.clone()
    svi.evaluate(torch.randn(5, 2) + 1.0)
    assert torch.equal(net[1].running_mean, running) and net.training
    svi.step(torch.randn(5, 2) + 1.0)
    assert not torch.equal(net[1].running_mean, running)
    assert [part for part in svi.modules().values() if part is net] == [net]


def test_names_of_the_file_are_found_too():
    svi = fastvi.SVI(joint, of_global, SGD, IWLB(3))
    assert {id(p) for p in svi.optimized()} == {id(LEVEL), *map(id, NET.parameters())}


def test_nothing_to_optimise_says_so():
    with pytest.raises(ValueError, match="work with parameters.*got none"):
        fastvi.SVI(joint, lambda x: Independent(Normal(x, 1.0), 1), SGD, IWLB(3))


class Stop(Exception):
    """In place of a kill."""


def test_a_resumed_function_with_batch_normalisation_is_the_whole_run(tmp_path: Path):
    data = torch.randn(40, 2)

    def run(path: Path, stop: int | None = None) -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        svi = fastvi.SVI(joint, closing_over(net), optimizer, IWLB(4))
        seen = taken(svi)
        step = svi.step

        def stopping(batch):
            if len(seen) == stop:
                raise Stop
            return step(batch)

        svi.step = stopping
        try:
            svi.fit(data, 3, batch_size=8, checkpoint=path, checkpoint_every=2, resume=True)
        except Stop:
            pass
        return net

    whole = run(tmp_path / "whole.pt").state_dict()
    run(tmp_path / "parts.pt", stop=7)
    resumed = run(tmp_path / "parts.pt").state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


# ---- checkpoints of something else ---------------------------------------------------------------
def test_other_checkpoints_are_refused(tmp_path: Path):
    path = tmp_path / "run.pt"
    of_all_data().fit(X, checkpoint=path)
    for data in (X[:30], X.flip(0), (X, X)):
        with pytest.raises(ValueError, match="with (data|num_data) = "):
            of_all_data().fit(data, 2, checkpoint=path, resume=True)
    svi = of_all_data()
    svi.optimizer = torch.optim.Adam(svi.guide.parameters())
    with pytest.raises(ValueError, match="with optimizer = Adam, got SGD"):
        svi.fit(X, 2, checkpoint=path, resume=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"run.pt to be a checkpoint.*cannot be read"):
        of_all_data().fit(X, 2, checkpoint=path, resume=True)
    path.write_text("a letter")
    with pytest.raises(ValueError, match=r"run.pt to be a checkpoint.*cannot be read"):
        of_all_data().fit(X, 2, checkpoint=path, resume=True)


def test_a_folder_that_is_not_there_is_noticed_before_the_first_step(tmp_path: Path):
    svi = of_all_data()
    seen = taken(svi)
    with pytest.raises(FileNotFoundError, match="folder that is there"):
        svi.fit(X, checkpoint=tmp_path / "no" / "run.pt")
    assert not seen


def test_baselines_of_latents_with_any_name():
    names = ("z.1", "type", "values", "a_b")
    logits = {name: nn.Parameter(torch.zeros(5)) for name in names}

    def guide(x: Tensor) -> dict:
        return {n: torch.distributions.Bernoulli(logits=p) for n, p in logits.items()}

    objective = Reinforce(4, {name: fastvi.objectives.DecayingAverage() for name in names})
    svi = fastvi.SVI(lambda z, x: -sum(z[name] for name in names), guide,
                     torch.optim.SGD(logits.values(), 0.1), objective)  # fmt: skip
    svi.step(X[:5])
    assert all(p.grad is not None for p in logits.values())
    assert len([b for b in objective.buffers() if b.item() != 0]) == 8
