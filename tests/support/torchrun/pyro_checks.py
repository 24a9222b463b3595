"""Run by torchrun: the samples of a Pyro bound shared among ranks, against one process."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from leaving import leave
from pyro.infer import SVI
from torch import Tensor

import fastvi
from fastvi.integrations.pyro import Trace_IWLB

X = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)


def model(x: Tensor) -> None:
    weight = pyro.param("weight", torch.tensor(0.8, dtype=torch.float64))
    with pyro.plate("data", len(x), subsample_size=4) as index:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 2).double(), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(weight * z.sum(-1), 1.0), obs=x[index])


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor([0.3, 0.1], dtype=torch.float64))
    with pyro.plate("data", len(x), subsample_size=4) as index:
        loc = x[index][:, None] * slope
        pyro.sample("z", dist.Normal(loc, torch.tensor(0.8).double()).to_event(1))


def step(elbo: Trace_IWLB) -> tuple[float, list[Tensor]]:
    pyro.clear_param_store()
    torch.manual_seed(5)
    loss = elbo.loss_and_grads(model, guide, X)
    return loss, [p.grad for p in pyro.get_param_store()._params.values()]


def main() -> None:
    torch.distributed.init_process_group("gloo")
    group = torch.distributed.group.WORLD
    for samples, estimator, chunk_size in (
        (7, "dreg", None), (7, "dreg", 2), (8, "iwae", 3), (5, "rws", 1), (6, "stl", None),
    ):  # fmt: skip
        loss, grads = step(Trace_IWLB(samples, estimator, chunk_size=samples))
        shared, ours = step(Trace_IWLB(samples, estimator, chunk_size=chunk_size, group=group))
        torch.testing.assert_close(shared, loss, rtol=1e-12, atol=0.0)
        for a, b in zip(ours, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    # A loss that the caller differentiates leaves shares, as every loss does; calls add up.
    _, grads = step(Trace_IWLB(7, chunk_size=7))
    step(Trace_IWLB(7, group=group))
    parameters = list(pyro.get_param_store()._params.values())
    torch.manual_seed(5)
    Trace_IWLB(7, group=group).loss_and_grads(model, guide, X)
    for parameter, expected in zip(parameters, grads, strict=True):
        torch.testing.assert_close(parameter.grad, 2.0 * expected, rtol=1e-9, atol=1e-12)
        parameter.grad = None
    torch.manual_seed(5)
    Trace_IWLB(7, group=group).differentiable_loss(model, guide, X).backward()
    for parameter, expected in zip(parameters, grads, strict=True):
        assert not torch.allclose(parameter.grad, expected)
    fastvi.sum_gradients(parameters, group)
    for parameter, expected in zip(parameters, grads, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)

    pyro.clear_param_store()
    # Each rank has noise of its own, but the key is the first one's.
    torch.manual_seed(torch.distributed.get_rank())
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_IWLB(8, group=group))
    for _ in range(5):
        svi.step(X)
    weight = pyro.param("weight").detach().clone()
    everyone = [torch.empty_like(weight) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, weight)
    assert all(torch.equal(weight, other) for other in everyone), everyone
    assert weight != 0.8

    try:
        Trace_IWLB(1, group=group).loss(model, guide, X)
    except ValueError as error:
        assert "at least the size of group" in str(error)
    else:
        raise AssertionError("a rank without samples")

    # What the ranks must have alike is named, with who differs.
    rank = torch.distributed.get_rank()
    for elbo, said in (
        (Trace_IWLB(8 + rank, group=group), "num_samples, but rank(s) 1 differ from rank 0: 8"),
        (Trace_IWLB(8, ("stl", "iwae")[rank], group=group), "estimator, but rank(s) 1"),
        (Trace_IWLB(8, alpha=0.5 * rank, group=group), "alpha, but rank(s) 1"),
    ):
        try:
            elbo.loss(model, guide, X)
        except ValueError as error:
            assert f"Trace_IWLB: expected all ranks of group to have the same {said}" in str(error)
        else:
            raise AssertionError(f"no error of {said}")
    leave()


main()
