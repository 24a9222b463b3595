"""Objectives over mixed latents, against enumeration: bits drawn before and after a real number.

The guide draws a bit b, a number c given b, and a bit d given c. The noise of c takes three values
only, so that every expectation is a finite sum and every identity holds to rounding. Identities
that need the density of c, those of doubly reparameterised estimators, are in
``test_objective_paths.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from fastvi import objectives
from fastvi.objectives import Latent, Objective, Term

SAMPLES = 2
NOISE = torch.tensor([-1.1, 0.2, 1.4], dtype=torch.float64)
STATES = torch.tensor(list(itertools.product([0.0, 1.0], range(3), [0.0, 1.0]))).double()
OUTCOMES = torch.tensor(list(itertools.product(range(len(STATES)), repeat=SAMPLES))).T
B, EPS, D = STATES[OUTCOMES, 0], NOISE[STATES[OUTCOMES, 1].long()], STATES[OUTCOMES, 2]


class Mixed:
    """Every outcome of K samples is a column of a batch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        numbers = torch.randn(10, dtype=torch.float64, generator=generator)
        self.parameters = [number.clone().requires_grad_() for number in numbers]
        bit, low, high, spread, slope, *model = self.parameters
        self.q_b = Bernoulli(logits=bit.expand(OUTCOMES.shape[1]))
        self.q_c = Normal(torch.where(B > 0, high, low), (0.4 * spread).exp().expand(B.shape))
        self.c = self.q_c.loc + self.q_c.scale * EPS
        self.q_d = Bernoulli(logits=slope * self.c)
        self.model = model

    def latents(self) -> list[Latent]:
        return [
            Latent(
                "b",
                B,
                self.q_b.log_prob(B),
                reparameterised=False,
                parents=(),
                distribution=self.q_b,
            ),
            Latent(
                "c",
                self.c,
                self.q_c.log_prob(self.c),
                reparameterised=True,
                parents=("b",),
                distribution=self.q_c,
            ),
            Latent(
                "d",
                D,
                self.q_d.log_prob(D),
                reparameterised=False,
                parents=("c",),
                distribution=self.q_d,
            ),
        ]

    def terms(self, z: dict[str, Tensor]) -> dict:
        """The prior of d depends on c, and the data on b and d."""
        p_b, p_c, p_d, on_b, on_d = self.model
        return {
            "b": Term(Bernoulli(logits=p_b), depends_on=("b",)),
            "c": Term(Normal(p_c + z["b"], 1.3), depends_on=("b", "c")),
            "d": Term(Bernoulli(logits=p_d + z["c"]), depends_on=("c", "d")),
            "x": Term(Normal(on_b * z["b"] - z["c"], 0.8).log_prob(torch.tensor(0.7)),
                      depends_on=("b", "c")),
            "y": Term(Bernoulli(logits=on_d * z["d"] - 0.5), torch.ones(()).double(),
                      depends_on=("d",)),
        }  # fmt: skip

    def log_joint(self, z: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, term in self.terms(z).items():
            value = term.value
            if not isinstance(value, Tensor):
                value = value.log_prob(z[name] if term.observed is None else term.observed)
            total = total + value
        return total

    def log_w(self) -> Tensor:
        log_q = sum(latent.log_q for latent in self.latents())
        return self.log_joint({"b": B, "c": self.c, "d": D}) - log_q

    def closed_log_w(self) -> Tensor:
        """The log-weights with the three divergences in closed form, given the samples before."""
        terms = self.terms({"b": B, "c": self.c, "d": D})
        data = terms["x"].value + terms["y"].value.log_prob(torch.ones(()).double())
        for name, q in (("b", self.q_b), ("c", self.q_c), ("d", self.q_d)):
            data = data - kl_divergence(q, terms[name].value)
        return data

    def probability(self) -> Tensor:
        each = self.q_b.log_prob(B) + self.q_d.log_prob(D) - torch.tensor(3.0).double().log()
        return each.sum(0).exp()

    def gradient(self, value: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(value, self.parameters, allow_unused=True, retain_graph=True)
        return [torch.zeros(()).double() if g is None else g for g in grads]

    def exact(self, bounds: Tensor) -> list[Tensor]:
        return self.gradient((self.probability() * bounds).sum())

    def expected(self, bounds: Tensor) -> list[Tensor]:
        return self.gradient((self.probability().detach() * bounds).sum())


def averages() -> nn.Module:
    average = objectives.DecayingAverage()
    average(torch.tensor(-2.0))
    return average


class Predicted(nn.Module):
    """A baseline of the data, here one datum in all columns."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(-1.7, dtype=torch.float64))

    def forward(self, data: Tensor) -> Tensor:
        return self.level.expand(len(data))


SCORES: dict[str, Callable[[], Objective]] = {
    "vimco": lambda: objectives.VIMCO(SAMPLES),
    "vimco in chunks": lambda: objectives.VIMCO(SAMPLES, chunk_size=1),
    "reinforce, no baseline": lambda: objectives.Reinforce(SAMPLES),
    "reinforce, monte carlo": lambda: objectives.Reinforce(SAMPLES, kl="monte_carlo"),
    "reinforce, analytic": lambda: objectives.Reinforce(SAMPLES, "leave_one_out", kl="analytic"),
    "reinforce, network": lambda: objectives.Reinforce(SAMPLES, Predicted()),
    "reinforce, in chunks": lambda: objectives.Reinforce(SAMPLES, kl="monte_carlo", chunk_size=1),
    "reinforce, averages": lambda: objectives.Reinforce(
        SAMPLES, {"b": averages(), "d": averages()}
    ),
}


def bounds_of(mixed: Mixed, name: str) -> tuple[Tensor, Tensor]:
    """Of every outcome: the bound by definition, and that of the objective."""
    objective = SCORES[name]()
    if "vimco" in name:
        bounds = objectives.iwlb(mixed.log_w())
    elif "monte carlo" in name or "chunks" in name:
        bounds = mixed.log_w().mean(0)
    else:
        bounds = mixed.closed_log_w().mean(0)
    data = torch.zeros(OUTCOMES.shape[1])
    return bounds, objective.bound(mixed.latents(), mixed.terms, data=data)


@pytest.mark.parametrize("name", SCORES)
def test_unbiased_and_the_value_is_the_bound(name: str):
    mixed = Mixed()
    bounds, actual = bounds_of(mixed, name)
    torch.testing.assert_close(actual, bounds, rtol=0, atol=1e-12)
    for got, exact in zip(mixed.expected(actual), mixed.exact(bounds), strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["vimco", "reinforce, monte carlo"])
def test_a_plain_tensor_is_as_good_as_terms(name: str):
    """One tensor depends on everything: no less true, and no less noise than it must be."""
    mixed = Mixed()
    bounds, _ = bounds_of(mixed, name)
    actual = SCORES[name]().bound(mixed.latents(), mixed.log_joint)
    for got, exact in zip(mixed.expected(actual), mixed.exact(bounds), strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-10)


def test_a_dependence_left_out_is_a_bias():
    """The control: the data depend on b through d, which is drawn given c, which is given b."""
    mixed = Mixed()
    bounds = mixed.log_w().mean(0)
    latents = mixed.latents()
    blind = [
        latents[0],
        Latent("c", mixed.c, latents[1].log_q, reparameterised=True, parents=()),
        latents[2],
    ]
    objective = objectives.Reinforce(SAMPLES, kl="monte_carlo")
    biased = mixed.expected(objective.bound(blind, mixed.terms))
    exact = mixed.exact(bounds)
    assert max((a - b).abs().item() for a, b in zip(biased, exact, strict=True)) > 1e-3


def test_wake_sleep_is_its_two_gradients():
    """The model's is that of the bound; the guide's climbs the weighted log q at fixed samples."""
    mixed = Mixed()
    weights = mixed.log_w().softmax(0).detach()
    c = mixed.c.detach()
    held = sum(
        q.log_prob(z) for q, z in
        ((mixed.q_b, B), (mixed.q_c, c), (Bernoulli(logits=mixed.parameters[4] * c), D))
    )  # fmt: skip
    log_p = mixed.log_joint({"b": B, "c": c, "d": D})
    p = mixed.probability().detach()
    exact = mixed.gradient((p * (weights * (log_p + held)).sum(0)).sum())
    latents = mixed.latents()
    objective = objectives.IWLB(SAMPLES, "rws")
    with pytest.raises(ValueError, match=r"path to be given for latent 'd'.*\['c'\]"):
        objective.bound(latents, mixed.terms)
    d = latents[2]
    slope = mixed.parameters[4].detach()
    latents[2] = dataclasses.replace(d, path=lambda: Bernoulli(logits=slope * mixed.c).log_prob(D))
    value = objective.bound(latents, mixed.terms)
    torch.testing.assert_close(value, objectives.iwlb(mixed.log_w()), rtol=0, atol=1e-12)
    for got, expected in zip(mixed.expected(value), exact, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def noise(objective: Objective, terms: bool) -> float:
    """The variance of the guide's gradient by enumeration, of b's and d's parameters."""
    mixed = Mixed()
    outcomes = OUTCOMES.shape[1]
    bit, slope = (mixed.parameters[i].detach().expand(outcomes).clone() for i in (0, 4))
    mixed.q_b = Bernoulli(logits=bit.requires_grad_())
    mixed.c = mixed.c.detach()
    mixed.q_d = Bernoulli(logits=slope.requires_grad_() * mixed.c)
    value = objective.bound(mixed.latents(), mixed.terms if terms else mixed.log_joint)
    grad = torch.stack(torch.autograd.grad(value.sum(), (bit, slope)))
    p = mixed.probability().detach()
    return ((p * grad**2).sum(1) - (p * grad).sum(1) ** 2).sum().item()


def test_less_noise_than_plain_reinforce():
    """The numbers of docs/design.md: 3.9, 5.3 and 6.0 times less variance."""
    plain = noise(objectives.Reinforce(SAMPLES, kl="monte_carlo"), terms=False)
    downstream = plain / noise(objectives.Reinforce(SAMPLES, kl="monte_carlo"), terms=True)
    analytic = plain / noise(objectives.Reinforce(SAMPLES), terms=True)
    baseline = plain / noise(objectives.Reinforce(SAMPLES, "leave_one_out"), terms=True)
    assert downstream > 1.1
    assert analytic > downstream
    assert baseline > analytic


def test_a_prior_that_broadcasts_has_its_closed_form():
    """torch's divergence of Bernoullis does not broadcast by itself."""
    logits = torch.randn(5, 3, requires_grad=True)
    q = Independent(Bernoulli(logits=logits), 1)
    p = Independent(Bernoulli(logits=torch.ones(3)), 1)
    latent = Latent.draw("b", q, 2)
    bound = objectives.Reinforce(2, kl="analytic").bound([latent], lambda z: {"b": p})
    whole = Independent(Bernoulli(logits=torch.ones(5, 3)), 1)
    torch.testing.assert_close(bound, -kl_divergence(q, whole))
