"""Run by torchrun: few samples backward, of samples that the ranks share."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.distributed as dist
from choices import mean_over_choices
from few_setting import KEY, LOSSES, K, gradient_of, some_data, vae
from leaving import leave
from torch import Tensor

import fastvi
from fastvi.chunks import SampleGroup


def most(number: int) -> int:
    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def check_mean() -> None:
    """Over each rank's choices: the sum of the ranks' shares is the whole gradient."""
    model, x = vae(), some_data()
    settings = [{"backward_samples": 3}, {"backward_samples": 4, "chunk_size": 1}]
    settings.append({"backward_samples": "auto", "variance_growth": 3.0})
    for name in ("iwae", "dreg", "rws", "piwae", "jackknife"):
        whole = gradient_of(model, model.loss(x, LOSSES[name](), key=KEY))
        for options in settings:

            def run(options=options, name=name) -> tuple[Tensor, ...]:
                criterion = LOSSES[name](group=dist.group.WORLD, **options)
                return gradient_of(model, model.loss(x, criterion, key=KEY))

            with pytest.MonkeyPatch.context() as monkeypatch:
                (value, *shares), _ = mean_over_choices(monkeypatch, run, most)
            torch.testing.assert_close(value, whole[0], rtol=1e-10, atol=1e-12)
            for share, expected in zip(shares, whole[1:], strict=True):
                dist.all_reduce(share)
                torch.testing.assert_close(share, expected, rtol=1e-9, atol=1e-10)


def check_wire() -> None:
    """No more numbers meet than without a choice: two for each datum."""
    met: list[int] = []
    reduced = SampleGroup._reduced

    def counted(self, doing: str, values: Tensor, op):
        met.append(values.numel())
        return reduced(self, doing, values, op)

    model, x = vae(), some_data(5)
    counts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SampleGroup, "_reduced", counted)
        for few in (None, 2):
            met.clear()
            criterion = fastvi.IWLBLoss(60, group=dist.group.WORLD, backward_samples=few)
            model.loss(x, criterion, key=KEY).backward()
            counts.append([number for number in met if number != dist.get_world_size()])
    assert counts[0] == counts[1] == [5, 5], counts


def check_one_choice() -> None:
    """The weights of the chosen of all ranks still sum to one: a shift of all has no noise."""
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loc = torch.zeros(4, 2, dtype=torch.float64)
    criterion = fastvi.IWLBLoss(40, "iwae", group=dist.group.WORLD, backward_samples=4)
    criterion(loc, loc, lambda z: 3 * z.sum(-1) + shift, key=KEY).backward()
    dist.all_reduce(shift.grad)
    torch.testing.assert_close(shift.grad, -torch.ones_like(shift), rtol=1e-13, atol=0.0)
    assert K < 40


def check_ranks_that_differ() -> None:
    """One has no samples at all, or weights that are all alike, and none waits for ever."""
    loc, first = torch.zeros(3, 2, requires_grad=True), dist.get_rank() == 0

    def log_likelihood(z: Tensor) -> Tensor:
        return (0.0 if first else 6.0) * z.sum(-1)

    criterion = fastvi.IWLBLoss(40, backward_samples="auto", group=dist.group.WORLD)
    for _ in range(4):
        criterion(loc, 0 * loc, log_likelihood).backward()
    criterion = fastvi.IWLBLoss(2, backward_samples=1, group=dist.group.WORLD)
    criterion(loc, 0 * loc, lambda z: -z.square().sum(-1)).backward()
    assert loc.grad is not None


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        globals()[f"check_{name}"]()
    leave()
