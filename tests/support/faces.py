"""The table of faces: every way to train, with every bound, estimator and way to cut the samples.

A cell is data. What a cell has to give is said by ``faces_oracle``, or by words that refuse it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import faces_oracle as oracle
import torch
from faces_oracle import GROUPS, LATENT, SAMPLES
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import fastvi
from fastvi import distributions, objectives, ops
from fastvi.bounds.estimators import ELBO_ESTIMATORS, IWLB_ESTIMATORS
from fastvi.bounds.table import BOUNDS

OPTIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"chunk_size": 3},
    "group": {"chunk_size": 2},
}
SEED = 11


# ---- bounds -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Row:
    """A bound: its estimators, the kind of latents, and what makes it a loss and an objective."""

    name: str
    estimators: tuple[str | None, ...]
    loss: Callable[..., nn.Module] | None
    objective: Callable[..., nn.Module]
    kind: str = "gaussian"
    # What the guide's gradient is called by the oracle, where no estimator names it.
    share: str = "total"

    def share_of(self, estimator: str | None) -> str:
        return estimator or self.share


def _of(estimator: str | None, **more: Any) -> dict[str, Any]:
    return more if estimator is None else {"estimator": estimator, **more}


def rows() -> list[Row]:
    def elbo(e: str | None, **o: Any) -> nn.Module:
        return fastvi.ELBOLoss(SAMPLES, kl="monte_carlo", **_of(e, **o))

    each = SAMPLES // GROUPS
    iwlb = tuple(IWLB_ESTIMATORS)
    any_order = tuple(name for name, e in IWLB_ESTIMATORS.items() if e.any_order)
    both = ("dreg", "iwae")
    named = [
        Row(name, weigher.estimators,
            lambda e, name=name, **o: fastvi.NamedBoundLoss(name, SAMPLES, **_of(e, **o)),
            lambda e, name=name, **o: objectives.NamedBound(name, SAMPLES, **_of(e, **o)))
        for name, weigher in BOUNDS.items()
    ]  # fmt: skip
    return [

        Row("ELBO", tuple(ELBO_ESTIMATORS), elbo,
            lambda e, **o: objectives.ELBO(SAMPLES, kl="monte_carlo", **_of(e, **o))),
        Row("IWLB", iwlb, lambda e, **o: fastvi.IWLBLoss(SAMPLES, **_of(e, **o)),
            lambda e, **o: objectives.IWLB(SAMPLES, **_of(e, **o))),
        Row("Renyi", any_order,
            lambda e, **o: fastvi.IWLBLoss(SAMPLES, **_of(e, alpha=oracle.ALPHA, **o)),
            lambda e, **o: objectives.IWLB(SAMPLES, **_of(e, alpha=oracle.ALPHA, **o))),
        Row("MIWAE", both, lambda e, **o: fastvi.MIWAELoss(each, GROUPS, **_of(e, **o)),
            lambda e, **o: objectives.MIWAE(each, GROUPS, **_of(e, **o))),
        Row("PIWAE", both, lambda e, **o: fastvi.PIWAELoss(each, GROUPS, **_of(e, **o)),
            lambda e, **o: objectives.PIWAE(each, GROUPS, **_of(e, **o))),
        Row("CIWAE", both, lambda e, **o: fastvi.CIWAELoss(SAMPLES, oracle.BETA, **_of(e, **o)),
            lambda e, **o: objectives.CIWAE(SAMPLES, oracle.BETA, **_of(e, **o))),
        Row("Jackknife", both, lambda e, **o: fastvi.JackknifeLoss(SAMPLES, **_of(e, **o)),
            lambda e, **o: objectives.Jackknife(SAMPLES, **_of(e, **o))),
        Row("VIMCO", (None,), None, lambda _, **o: objectives.VIMCO(SAMPLES, **o),
            "bernoulli", "credit"),
        Row("Reinforce", (None,), None,
            lambda _, **o: objectives.Reinforce(SAMPLES, "leave_one_out", kl="monte_carlo", **o),
            "bernoulli", "credit"),
        Row("wake-sleep", ("rws",), lambda e, **o: fastvi.IWLBLoss(SAMPLES, e, **o),
            lambda e, **o: objectives.IWLB(SAMPLES, e, **o), "bernoulli", "rws"),
        *named,
    ]  # fmt: skip


# ---- the pair, as each face wants it ------------------------------------------------------------
class Case:
    """Parameters, data and a bound; whichever face computes, it fills ``gradients``."""

    def __init__(
        self, row: Row, estimator: str | None, options: dict[str, Any], kind: str, form: str
    ) -> None:
        self.row, self.estimator, self.options, self.kind = row, estimator, options, kind
        self.form = form
        self.p = oracle.parameters(kind)
        self.x = oracle.data()
        # The samples that the likelihood has seen, call by call.
        self.seen: list[Tensor] = []
        self.forward_only = False

    def finish(self, loss: Tensor) -> Tensor:
        """Give the leaves their gradients; returns the bound."""
        if not self.forward_only:
            loss.backward()
        return -loss.detach()

    def loss(self) -> nn.Module:
        if self.row.loss is None:
            return fastvi.IWLBLoss(SAMPLES, self.row.name.lower(), **self.options)
        return self.row.loss(self.estimator, **self.options)

    def pyro(self) -> Any:
        from fastvi.integrations.pyro import Trace_IWLB

        return Trace_IWLB(objective=self.thing())

    def thing(self) -> nn.Module:
        """The bound as what is asked for: a drop-in loss, or an objective."""
        return self.loss() if self.form == "loss" else self.objective()

    def objective(self) -> nn.Module:
        return self.row.objective(self.estimator, **self.options)

    # ---- parts ----------------------------------------------------------------------------------
    def encode(self, x: Tensor) -> Tensor:
        return x @ self.p["guide"]

    def decode(self, z: Tensor) -> Tensor:
        self.seen.append(z.detach())
        return z @ self.p["decoder"] + self.p["captured"]

    def log_likelihood(self, z: Tensor) -> Tensor:
        return oracle.normal(self.x, self.decode(z), torch.zeros((), dtype=torch.float64))

    def prior(self) -> Any:
        if self.kind == "gaussian":
            return Independent(Normal(self.p["prior loc"], self._scale(self.p["prior log_var"])), 1)
        return distributions.Independent(distributions.Bernoulli(logits=self.p["prior logits"]), 1)

    def q(self, x: Tensor) -> Any:
        out = self.encode(x)
        if self.kind == "gaussian":
            loc, log_var = out.chunk(2, -1)
            return Independent(Normal(loc, self._scale(log_var)), 1)
        return distributions.Independent(distributions.Bernoulli(logits=out), 1)

    @staticmethod
    def _scale(log_var: Tensor) -> Tensor:
        return torch.exp(0.5 * log_var)

    def vae(self) -> fastvi.VAE:
        prior = self.p["prior loc"], self.p["prior log_var"]
        encoder, decoder = Holder(self.encode), Holder(self.decode)
        return fastvi.VAE(encoder, decoder, likelihood="gaussian", prior=prior)

    def deep(self) -> fastvi.HierarchicalVAE:
        names = [name for name in self.p if name.startswith("prior")]
        layer = fastvi.StochasticLayer(self.kind, LATENT, guide=self.encode)
        network = fastvi.HierarchicalVAE([layer], self.decode, likelihood="gaussian")
        for name in names:
            # The leaves themselves, not copies of them.
            parameter = f"prior_{name.removeprefix('prior ')}"
            del layer._parameters[parameter]
            setattr(layer, parameter, self.p[name])
        return network


class Holder(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ---- faces: each returns the mean bound, and leaves its negative gradient in the leaves ---------
def by_loss(case: Case) -> Tensor:
    loc, log_var = case.encode(case.x).chunk(2, -1)
    prior = case.p["prior loc"], case.p["prior log_var"]
    return case.finish(case.loss()(loc, log_var, case.log_likelihood, prior=prior))


def by_objective(case: Case) -> Tensor:
    objective = case.objective()
    latent = objectives.Latent.draw("z", case.q(case.x), SAMPLES, parents=(), path=True)
    return case.finish(-objective.bound([latent], case_joint(case)).mean())


def case_joint(case: Case) -> Callable[[Any], Any]:
    return lambda z: {"z": case.prior(), "x": case.log_likelihood(z["z"])}


def by_svi(case: Case) -> Tensor:
    svi = fastvi.SVI(
        lambda z, x: {"z": case.prior(), "x": case.log_likelihood(z)},
        case.q, torch.optim.SGD(list(case.p.values()), lr=0.0), case.objective(),
    )  # fmt: skip
    bound = svi.evaluate(case.x) if case.forward_only else svi.step(case.x)
    return bound / len(case.x)


def by_vae(case: Case) -> Tensor:
    return case.finish(case.vae().loss(case.x, case.thing()))


def by_deep(case: Case) -> Tensor:
    return case.finish(case.deep().loss(case.x, case.thing()))


def by_pyro(case: Case) -> Tensor:
    elbo, model, guide = case.pyro(), *programs(case)
    # Pyro's losses are sums over the data.
    if case.forward_only:
        return -torch.as_tensor(elbo.loss(model, guide, case.x)) / len(case.x)
    return case.finish(elbo.differentiable_loss(model, guide, case.x) / len(case.x))


def by_module(case: Case) -> Tensor:
    from fastvi.integrations.lightning import BoundModule

    if case.form == "program":
        module = BoundModule(case.pyro()(*programs(case)))
        bound = case.finish(module.training_step(case.x, 0) / len(case.x))
    else:
        module = BoundModule(case.vae(), case.thing())
        bound = case.finish(module.training_step(case.x, 0))
    if not case.forward_only:
        # As Lightning does before its step.
        module.on_before_optimizer_step(torch.optim.SGD(list(case.p.values()), lr=0.0))
    return bound


def programs(case: Case) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """Model and guide of Pyro."""
    import pyro
    import pyro.distributions as dist

    def law(parameters: Tensor) -> Any:
        if case.kind == "gaussian":
            loc, log_var = parameters.chunk(2, -1)
            return dist.Normal(loc, case._scale(log_var)).to_event(1)
        return dist.Bernoulli(logits=parameters).to_event(1)

    def model(x: Tensor) -> None:
        prior = [value for name, value in case.p.items() if name.startswith("prior")]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", law(torch.cat(prior)))
            noise = torch.ones((), dtype=torch.float64)
            pyro.sample("x", dist.Normal(case.decode(z), noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", law(case.encode(x)))

    return model, guide


FACES: dict[str, Callable[[Case], Tensor]] = {
    "loss": by_loss,
    "objective": by_objective,
    "SVI": by_svi,
    "VAE.loss": by_vae,
    "HierarchicalVAE.loss": by_deep,
    "Trace_IWLB": by_pyro,
    "BoundModule": by_module,
}


# ---- cells --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    face: str
    bound: str
    estimator: str | None
    option: str

    @property
    def row(self) -> Row:
        return next(row for row in rows() if row.name == self.bound)

    @property
    def kind(self) -> str:
        """Bits where the bound is for them and the face has them."""
        only_gaussian = self.face in ("loss", "VAE.loss", "BoundModule")
        return "gaussian" if only_gaussian else self.row.kind

    def __str__(self) -> str:
        estimator = "" if self.estimator is None else f" {self.estimator}"
        return f"{self.face}, {self.bound}{estimator}, {self.option}"


def cells() -> Iterator[Cell]:
    for face in FACES:
        for row in rows():
            for estimator in row.estimators:
                yield from (Cell(face, row.name, estimator, option) for option in OPTIONS)


# ---- refusals -----------------------------------------------------------------------------------
def refusal(cell: Cell) -> str | None:
    """A regular expression of the words that a cell is refused with; None where it works.

    They name the face, the bound, the estimator or the option, and what works instead.
    """
    if cell.face == "loss" and cell.row.loss is None:
        name = cell.bound.lower()
        return (
            f"IWLBLoss: expected estimator to be one of .*'dreg'.*, got '{name}'; it is a bound of "
            f"its own, fastvi.objectives.{cell.bound}, for samples without a path: use it with "
            f"SVI, HierarchicalVAE.loss, VAE.loss or Trace_IWLB"
        )
    return None


def forms(cell: Cell) -> tuple[str, ...]:
    """As what a face is handed the bound: a drop-in loss where there is one, and an objective."""
    if cell.face == "loss":
        return ("loss",)
    found = ("objective",)
    if cell.row.loss is not None and cell.face not in ("objective", "SVI"):
        found = ("loss", *found)
    # A bound of a Pyro program, which is a module of its own.
    return (*found, "program") if cell.face == "BoundModule" else found


def run(cell: Cell, group: Any = None) -> None:
    """Check a cell, in every form that the face takes the bound in."""
    words = refusal(cell)
    for form in forms(cell):
        if words is None:
            run_form(cell, form, group)
            continue
        try:
            run_form(cell, form, group)
        except (TypeError, ValueError) as error:
            assert re.search(words, str(error)), f"{cell} is refused in other words: {error}"
        else:
            raise AssertionError(f"{cell} is not refused")


def run_form(cell: Cell, form: str, group: Any = None) -> None:
    """Compare the bound and every gradient of it with the oracle's from all samples."""
    options = dict(OPTIONS[cell.option])
    if cell.option == "group":
        options["group"] = group
    row, face = cell.row, FACES[cell.face]

    def case(forward_only: bool) -> Case:
        torch.manual_seed(SEED)
        made = Case(row, cell.estimator, options, cell.kind, form)
        made.forward_only = forward_only
        return made

    found = case(False)
    value = face(found)
    if cell.option == "group" and cell.face not in SUMS_GRADIENTS:
        fastvi.sum_gradients(list(found.p.values()), group)
    if cell.kind == "gaussian":
        torch.manual_seed(SEED)
        zero = torch.zeros(oracle.BATCH, LATENT, dtype=torch.float64)
        noise, _, _ = ops.gaussian_rsample(zero, log_var=zero, num_samples=SAMPLES)
    else:
        forward = case(True)
        face(forward)
        noise = samples_of(forward, group)
    share = row.share_of(cell.estimator)
    if cell.kind == "gaussian" and share == "credit":
        share = "total"  # Samples with a path need no score.
    pair, p = oracle.Pair(cell.kind, noise), oracle.parameters(cell.kind)
    expected, grads = oracle.answer(pair, oracle.BOUNDS[row.name], share, p, found.x)
    close(f"the bound of {cell}", value, expected)
    for name, grad in grads.items():
        ours = found.p[name].grad
        ours = torch.zeros_like(grad) if ours is None else -ours
        close(f"the gradient of {name!r} of {cell}", ours, grad)


# Each rank's backward pass leaves the share of its samples, which these sum before their step.
SUMS_GRADIENTS = ("SVI", "BoundModule")


def samples_of(case: Case, group: Any) -> Tensor:
    """The samples of the forward pass, [K, B, D], on every rank: the last that were seen."""
    ranks = 1 if group is None else torch.distributed.get_world_size(group)
    parts: list[Tensor] = []
    for z in reversed(case.seen):
        if sum(map(len, parts)) < SAMPLES // ranks:
            parts.insert(0, z.reshape(-1, oracle.BATCH, LATENT))
    mine = torch.cat(parts)
    assert len(mine) == SAMPLES // ranks, f"expected {SAMPLES // ranks} samples, got {len(mine)}"
    if group is None:
        return mine
    everyone = [torch.empty_like(mine) for _ in range(ranks)]
    torch.distributed.all_gather(everyone, mine, group=group)
    return torch.cat(everyone)


def close(what: str, actual: Tensor, expected: Tensor) -> None:
    # Float64: sums of some dozens of terms of order one, of which none cancels by more than 1e4.
    torch.testing.assert_close(
        actual, expected, rtol=1e-10, atol=1e-11, msg=lambda text: f"{what}: {text}"
    )
