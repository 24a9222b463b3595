"""Optimisers of every kind in SVI: with a closure, several, schedulers; and their resumption."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal
from torch.optim import lr_scheduler, swa_utils

import fastvi
from fastvi.guides import MeanFieldGaussian
from fastvi.objectives import ELBO, IWLB, Reinforce

DATA = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Lbfgs = functools.partial(torch.optim.LBFGS, lr=1.0, max_iter=6, line_search_fn="strong_wolfe")


def joint(z: Tensor, x: Tensor) -> Tensor:
    return -((z - x) ** 2).sum(-1) - 0.5 * (z**2).sum(-1)


def setting(make, objective=None, dropout: float = 0.0) -> tuple[fastvi.SVI, nn.Module]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(dropout), nn.Linear(4, 3))
    net = net.double()

    def guide(x: Tensor) -> Independent:
        return Independent(Normal(net(x), 0.5), 1)

    objective = objective or ELBO(2, kl="monte_carlo")
    return fastvi.SVI(joint, guide, make(net), objective), net


# ---- a closure ----------------------------------------------------------------------------------
def test_lbfgs_finds_what_is_exact():
    """A conjugate model, whose bound at the posterior is the evidence, without noise."""
    x = 1.5 + 0.8 * torch.randn(12, dtype=torch.float64)
    guide = MeanFieldGaussian({"mean": ()}, dtype=torch.float64)

    def model(z, x: Tensor) -> dict:
        mean = z["mean"][..., None]
        return {"mean": Normal(torch.zeros(()).double(), 2.0), "x": Normal(mean, 0.8).log_prob(x)}

    optimizer = torch.optim.LBFGS(guide.parameters(), line_search_fn="strong_wolfe")
    svi = fastvi.SVI(model, guide, optimizer, ELBO(4096))
    before = svi.evaluate(x)
    assert svi.step(x) == pytest.approx(before.item(), rel=0.05)
    for _ in range(4):
        svi.step(x)
    precision = 2.0**-2 + 12 * 0.8**-2
    # 4096 samples of a standard deviation of 0.23.
    loc = guide.loc.item()
    assert loc == pytest.approx((x.sum().item() * 0.8**-2) / precision, abs=5 * 0.23 / 64)
    covariance = 4.0 * torch.ones(12, 12) + 0.8**2 * torch.eye(12)
    exact = MultivariateNormal(torch.zeros(12), covariance).log_prob(x.float()).item()
    assert svi.evaluate(x).item() == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("chunk_size", [None, 2], ids=["whole", "in chunks"])
def test_every_evaluation_within_a_step_is_of_one_function(chunk_size: int | None):
    """The same noise, masks and buffers; the next step has others."""
    own = torch.Generator().manual_seed(4)
    seen: list[list] = []

    def make(net: nn.Module):
        class Looking(torch.optim.SGD):
            """It moves nothing, so every value within a step has to be the same number."""

            def step(self, closure):
                losses = [closure() for _ in range(4)]
                buffers.append(net[1].running_mean.clone())
                seen.append(losses)
                return losses[0]

        buffers: list[Tensor] = []
        Looking.buffers = buffers
        return Looking(net.parameters(), 0.0)

    svi, net = setting(make, ELBO(4, kl="monte_carlo", chunk_size=chunk_size), dropout=0.5)
    svi.model = lambda z, x: joint(z, x) + torch.randn((), generator=own)
    torch.manual_seed(2)
    bounds = [svi.step(DATA), svi.step(DATA)]
    for losses, bound in zip(seen, bounds, strict=True):
        assert {loss.item() for loss in losses} == {-bound.item() / len(DATA)}
    assert bounds[0] != bounds[1]
    # Averages and generators moved as by one evaluation.
    after, averages = torch.get_rng_state(), svi.optimizer.buffers
    own.manual_seed(4)
    other, _ = setting(
        lambda net: torch.optim.SGD(net.parameters(), 0.0), svi.objective, dropout=0.5
    )
    other.model = svi.model
    torch.manual_seed(2)
    assert [other.step(DATA), other.step(DATA)] == bounds
    assert torch.equal(torch.get_rng_state(), after)
    torch.testing.assert_close(other.modules()["svi.guide.network.net"][1].running_mean,
                               averages[1], rtol=0, atol=0)  # fmt: skip


def test_a_decaying_average_moves_once_in_a_step():
    average = fastvi.objectives.DecayingAverage()
    logits = nn.Parameter(torch.zeros(5))
    svi = fastvi.SVI(
        lambda z, x: -((z - x) ** 2),
        lambda x: torch.distributions.Bernoulli(logits=logits),
        torch.optim.LBFGS([logits], max_iter=3),
        Reinforce(8, average),
    )
    svi.step(torch.ones(5))
    # The sum of the weights: each mean that is added has 1 - decay.
    assert average.weight.item() == pytest.approx(0.1)
    svi.step(torch.ones(5))
    assert average.weight.item() == pytest.approx(0.1 + 0.9 * 0.1)


def test_what_never_evaluates_the_bound_says_so():
    class Lazy(torch.optim.SGD):
        def step(self, closure):
            return None

    svi, _ = setting(lambda net: Lazy(net.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="Lazy to call the closure.*it did not"):
        svi.step(DATA)


# ---- resumption ---------------------------------------------------------------------------------
class Stop(Exception):
    """In place of a kill."""


def mixed(net: nn.Module):
    """LBFGS joins the parameters, and keeps its state in the wider of their types."""
    net[3].float()
    net[2].register_forward_hook(lambda *given: given[-1].float())
    return Lbfgs(net.parameters())


def several(net: nn.Module) -> list:
    return [
        torch.optim.Adam(net[0].parameters(), 0.01, amsgrad=True),
        torch.optim.SGD(net[1:].parameters(), 0.01, momentum=0.9, nesterov=True),
    ]


class Wide(torch.optim.Optimizer):
    """Its state is in another type than the parameter, which torch converts when it loads."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for parameter in self.param_groups[0]["params"]:
            mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter).float())
            mean.mul_(0.9).add_(parameter.grad.float())
            parameter.sub_(0.01 * mean)


OPTIMISERS = {
    "LBFGS": lambda net: Lbfgs(net.parameters()),
    "LBFGS without a line search": lambda net: torch.optim.LBFGS(net.parameters(), 0.05),
    "LBFGS of two types": mixed,
    "several": several,
    "state in another type": lambda net: Wide(net.parameters()),
    "learning rate of NumPy's": lambda net: torch.optim.SGD(net.parameters(), np.float32(0.01)),
} | {
    name: lambda net, name=name: getattr(torch.optim, name)(net.parameters())
    for name in ("ASGD", "Adadelta", "Adagrad", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop",
                 "Rprop")
}  # fmt: skip
SCHEDULERS = {
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
    "steps": lambda o: lr_scheduler.MultiStepLR(o, [1, 2]),
    "function of NumPy": lambda o: lr_scheduler.LambdaLR(o, lambda n: np.float64(0.5) ** n),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [1]
    ),
    "averaging": lambda o: swa_utils.SWALR(o, 0.005, 2),
    "several": lambda o: [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 1)],
}
RUNS = [pytest.param(make, None, id=name) for name, make in OPTIMISERS.items()] + [
    pytest.param(lambda net: torch.optim.Adam(net.parameters(), 0.01), make, id=f"Adam, {name}")
    for name, make in SCHEDULERS.items()
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "schedule"), RUNS)
def test_a_resumed_run_is_the_whole_run(tmp_path: Path, make, schedule):
    def run(path: Path, stop: int = -1) -> tuple[dict, list]:
        svi, net = setting(make, dropout=0.2)
        steps, step = 0, svi.step

        def stopping(batch):
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Stop
            return step(batch)

        svi.step = stopping
        if mixed is make:
            svi.model = lambda z, x: joint(z.double(), x)
        history: list = []
        try:
            scheduler = None if schedule is None else schedule(svi.optimizer)
            history = svi.fit(DATA, 4, batch_size=10, checkpoint=path, checkpoint_every=2,
                              resume=True, scheduler=scheduler)  # fmt: skip
        except Stop:
            pass
        return net.state_dict(), [epoch.bound for epoch in history]

    state, bounds = run(tmp_path / "whole.pt")
    assert all(np.isfinite(bounds))
    for stop in (2, 6, 4):
        run(tmp_path / "parts.pt", stop)
    resumed, again = run(tmp_path / "parts.pt")
    assert again == bounds
    for name, value in state.items():
        assert torch.equal(value, resumed[name]), name


def test_a_sparse_embedding_beside_a_dense_layer():
    table, layer = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 2)
    optimizers = [
        torch.optim.SparseAdam(table.parameters(), 0.1),
        torch.optim.Adam(layer.parameters(), 0.1),
    ]

    def guide(x: Tensor) -> Independent:
        return Independent(Normal(layer(table(x)), 1.0), 1)

    svi = fastvi.SVI(lambda z, x: -((z - x[:, None]) ** 2).sum(-1), guide, optimizers, IWLB(8))
    history = svi.fit(torch.arange(4), epochs=60)
    assert history[-1].bound > history[0].bound + 1.0
    assert table.weight.grad.is_sparse


def test_an_averaged_model_as_torch_s_recipe_has_it():
    svi, net = setting(lambda net: torch.optim.SGD(net.parameters(), 0.05))
    averaged = swa_utils.AveragedModel(net)
    kept = []

    def update(_) -> None:
        averaged.update_parameters(net)
        kept.append(net[0].weight.detach().clone())

    schedule = swa_utils.SWALR(svi.optimizer, 0.01)
    svi.fit(DATA, 3, batch_size=8, scheduler=schedule, on_epoch=update)
    torch.testing.assert_close(averaged.module[0].weight.detach(), torch.stack(kept).mean(0))


# ---- what is refused ----------------------------------------------------------------------------
class Strange(torch.optim.SGD):
    def step(self, closure, labels):
        return None


P, Q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
REFUSED = [
    pytest.param(lambda: [torch.optim.LBFGS([P]), torch.optim.SGD([Q])], ValueError,
                 "LBFGS, which evaluates the bound several times in a step, to be the only",
                 id="LBFGS beside another"),
    pytest.param(lambda: [torch.optim.SGD([P, Q]), torch.optim.Adam([Q])], ValueError,
                 "each parameter to be in one optimizer, got 1 in several", id="one in two"),
    pytest.param(lambda: [], TypeError, "got an empty list", id="none in a list"),
    pytest.param(lambda: [torch.optim.SGD([P]), 3], TypeError, "got int", id="a number in a list"),
    pytest.param(lambda: lr_scheduler.StepLR(torch.optim.SGD([P]), 1), TypeError, "got StepLR",
                 id="a scheduler"),
    pytest.param(lambda: torch.amp.GradScaler("cpu"), TypeError, "got GradScaler", id="a scaler"),
    pytest.param(lambda: swa_utils.AveragedModel(nn.Linear(1, 1)), TypeError, "got AveragedModel",
                 id="an averaged model"),
    pytest.param(lambda: lambda parameters: None, TypeError, "a function that returns NoneType",
                 id="a function of another thing"),
    pytest.param(lambda: Strange([P]), TypeError, "Strange, whose step takes closure, labels",
                 id="another step"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "says"), REFUSED)
def test_optimizers_that_are_refused(make, error: type[Exception], says: str):
    with pytest.raises(error, match=f"SVI: expected .*{says}"):
        fastvi.SVI(joint, lambda x: Independent(Normal(x + P + Q, 1.0), 1), make(), ELBO(2))


def test_schedulers_that_are_refused(tmp_path: Path):
    svi, net = setting(lambda net: torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(TypeError, match="scheduler to be one of torch.optim.lr_scheduler, got int"):
        svi.fit(DATA, scheduler=3)
    other = lr_scheduler.StepLR(torch.optim.Adam(net.parameters()), 1)
    with pytest.raises(ValueError, match="scheduler to be of SVI's optimizer, got a StepLR"):
        svi.fit(DATA, scheduler=other)

    class Odd(lr_scheduler.StepLR):
        def __init__(self, optimizer) -> None:
            self.path = tmp_path
            super().__init__(optimizer, 1)

    with pytest.raises(TypeError, match=r"SVI.fit: expected .*'schedulers'.*\['path'\].*PosixPath"):
        svi.fit(DATA, scheduler=Odd(svi.optimizer), checkpoint=tmp_path / "run.pt")
