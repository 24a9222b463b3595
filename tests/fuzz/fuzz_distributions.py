"""Distributions beside torch's in float64, whatever is checked, masked, expanded or mapped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from distribution_table import FAMILIES, Family
from fuzz_tensors import LAYOUTS, arranged
from hypothesis import strategies as st
from torch import Tensor

from fastvi import distributions as ours

# A log-probability is a few elementary functions, and log-gammas that torch takes in float64.
ROUNDINGS = 64
MODES = ("plain", "unchecked", "no_grad", "inference", "vmap", "func_grad", "independent", "expand")


@dataclass(frozen=True)
class Evaluated:
    family: int
    dtype: torch.dtype
    lead: tuple[int, ...]
    keep: tuple[bool, bool]
    layout: str
    scale: float
    mode: str


evaluations = st.builds(
    Evaluated,
    st.integers(0, len(FAMILIES) - 1),
    st.sampled_from((torch.float32, torch.float64)),
    st.sampled_from(((), (3,), (2, 1), (0,))),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from(LAYOUTS),
    st.sampled_from((1.0, 0.0, 0.125, 3.0)),
    st.sampled_from(MODES),
)


def _parameters(case: Evaluated, family: Family) -> tuple[dict[str, Tensor], Tensor]:
    parameters, value = family.draw(torch.float64, lead=case.lead)
    parameters = {
        # Rounded before either sees them, and smaller where the batch is one.
        name: arranged(x[: 4 if case.keep[0] else 1, : 5 if case.keep[1] else 1].to(case.dtype),
                       case.layout)
        for name, x in parameters.items()
    }  # fmt: skip
    if value.is_floating_point():
        value = (value * case.scale if family.differentiable else value).to(case.dtype)
    return parameters, arranged(value, case.layout if value.is_floating_point() else "contiguous")


def check_distribution(case: Evaluated) -> None:
    family = FAMILIES[case.family]
    parameters, value = _parameters(case, family)
    wide = {name: x.double().detach() for name, x in parameters.items()}
    their_value = value.double() if value.is_floating_point() else value
    reference = family.theirs(**wide, validate_args=False)
    exact = reference.log_prob(their_value)
    names = list(parameters)

    def log_prob(*xs: Tensor) -> Tensor:
        checked = None if case.mode == "plain" else False
        law = family.ours(**dict(zip(names, xs, strict=False)), validate_args=checked)
        if case.mode == "expand":
            law = law.expand((2, 4, 5)[-max(2, len(law.batch_shape)) :])
        if case.mode == "independent":
            return ours.Independent(law, 1).log_prob(value)
        return law.log_prob(value)

    xs = tuple(parameters.values())
    if case.mode == "independent":
        # By hand: torch's own cannot reshape what is empty.
        exact = exact.sum(-1)
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            got = log_prob(*xs).clone()
    elif case.mode == "vmap":
        stacked = tuple(torch.stack([x, x]) for x in xs)
        got = torch.func.vmap(log_prob)(*stacked)[1]
    else:
        got = log_prob(*xs)
    assert got.shape == exact.shape and got.dtype == case.dtype, (got.shape, exact.shape, got.dtype)
    eps = torch.finfo(case.dtype).eps
    inside = exact.abs() + 8 * (1 + their_value.abs().amax() if their_value.numel() else 1)
    far = sum((x.abs().amax() for x in wide.values() if x.numel()), torch.zeros(()))
    allowed = ROUNDINGS * eps * inside * (1 + far)
    assert ((got.double() - exact).abs() <= allowed).all(), (got, exact, allowed)
    if case.mode != "func_grad" or not exact.numel():
        return
    both = []
    for run, args in (
        (lambda *a: log_prob(*a).sum(), xs),
        (
            lambda *a: (
                family.theirs(**dict(zip(names, a, strict=False)), validate_args=False)
                .log_prob(their_value)
                .sum()
            ),
            tuple(wide.values()),
        ),
    ):
        both.append(torch.func.grad(run, argnums=tuple(range(len(names))))(*args))
    for name, a, b in zip(names, *both, strict=False):
        size = 8 * exact.numel() * (1 + b.abs().amax()) * (1 + far)
        assert ((a.double() - b).abs() <= ROUNDINGS * eps * size).all(), (name, a, b)
