"""The densities of counts from the smallest numbers of a type to 1e12, against mpmath.

The budget is in units in the last place of the larger of the number and 1: see "Counts" in
docs/design.md for the roundings that it counts. Where a logarithm of a rate is exponentiated, and
no wider type is at hand or the count is below 16, two more of what the rate is multiplied by are
allowed: those of the exponential.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from fastvi import ops

mpmath = pytest.importorskip("mpmath")

ULPS = 12.0
EMULATED = "emulated" in os.environ.get("FASTVI_EXTENSION", "")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
on_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda x: str(x)[6:])
on_wide_dtypes = pytest.mark.parametrize("dtype", DTYPES[:2], ids=lambda x: str(x)[6:])

Point = tuple[float, ...]
Numbers = tuple[float, ...]


# ---- what is right ------------------------------------------------------------------------------
# digamma(y) = digamma(1 + y) - 1 / y: with the reciprocals apart nothing below cancels by more than
# a few dozen digits, even at the smallest numbers.
DIGITS = 100


def exact_negative_binomial(x: float, mean: float, theta, log: bool) -> Numbers:
    """The density and its derivatives by count, mean and dispersion, or log-dispersion."""
    mp = mpmath
    with mp.workdps(DIGITS):
        x, mean, theta = mp.mpf(x), mp.mpf(mean), mp.mpf(theta)
        q, some = mean / (theta + mean), x > 0
        value = -theta * mp.log1p(mean / theta)
        by_theta = -mp.log1p(mean / theta) + (mean - x) / (theta + mean)
        if some:
            value += mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1)
            value += x * mp.log(q)
            by_theta += mp.digamma(1 + x + theta) - mp.digamma(1 + theta)
            by_theta += x / (theta * (x + theta))
        by_x = mp.digamma(x + theta) - mp.digamma(x + 1) + mp.log(q)
        by_mean = (x / mean - 1) * theta / (theta + mean)
        return value, by_x, by_mean, by_theta * theta if log else by_theta


def exact_poisson(x: float, rate, log: bool) -> Numbers:
    mp = mpmath
    with mp.workdps(DIGITS):
        x, rate = mp.mpf(x), mp.mpf(rate)
        value = (x * mp.log(rate) if x > 0 else 0) - rate - mp.loggamma(x + 1)
        by_x = mp.log(rate) - mp.digamma(x + 1)
        return value, by_x, x - rate if log else x / rate - 1


@cache
def exact(name: str, log: bool, point: Point) -> Numbers:
    given = mpmath.exp(mpmath.mpf(point[-1])) if log else point[-1]
    if name == "poisson":
        return exact_poisson(point[0], given, log)
    return exact_negative_binomial(*point[:2], given, log)


# ---- where --------------------------------------------------------------------------------------
def grid(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    small = [info.smallest_normal * info.eps, info.smallest_normal, info.smallest_normal**0.5]
    middle = [1e-12, 1e-6, 1e-3, 0.03, 0.4, 0.9, 1, 1.1, 2, 3.7, 10, 77, 1e3, 1e4, 1e5, 1e7, 1e9]
    numbers = torch.tensor([*small, *middle, 1e12], dtype=torch.float64).to(dtype).double()
    return sorted({x for x in numbers.tolist() if 0 < x < math.inf})


@cache
def points(dtype: torch.dtype, operands: int, count: int) -> tuple[Point, ...]:
    """The corners of the grid, all over it, and where count and mean are close."""
    generator = random.Random(7)
    numbers = grid(dtype)
    every = list(itertools.product([0.0, *numbers], *[numbers] * (operands - 1)))
    found = generator.sample(every, count)
    extreme = (numbers[0], numbers[1], 1.0, numbers[-1])
    found += itertools.product([0.0, *extreme], *[extreme] * (operands - 1))
    for _ in range(count // 2):
        x = math.floor(10 ** generator.uniform(0, math.log10(numbers[-1]) - 0.1))
        gap = generator.choice([-1, 1]) * 10 ** generator.uniform(-7, -0.1)
        others = [10 ** generator.uniform(-3, math.log10(numbers[-1])) for _ in range(operands - 2)]
        row = torch.tensor([x, x * (1 + gap), *others], dtype=torch.float64).to(dtype).double()
        found.append(tuple(row.tolist()))
    return tuple(found)


CASES = {
    "negative_binomial": ("negative_binomial", "dispersion", 3),
    "negative_binomial, log": ("negative_binomial", "log_dispersion", 3),
    "poisson": ("poisson", "rate", 2),
    "poisson, log": ("poisson", "log_rate", 2),
}
on_cases = pytest.mark.parametrize(("name", "kind", "operands"), CASES.values(), ids=CASES.keys())


def columns(dtype: torch.dtype, kind: str, operands: int, count: int = 150) -> list[Tensor]:
    made = torch.tensor(points(dtype, operands, count), dtype=torch.float64)
    if kind.startswith("log_"):
        made[:, -1] = made[:, -1].log()
        # Beside a fraction below the normal numbers, such a dispersion would have to be known to
        # more digits than its type has there.
        made[made[:, 0] < torch.finfo(dtype).smallest_normal, 0] = 0
    return [x.contiguous().requires_grad_() for x in made.to(dtype).unbind(1)]


def assert_exact(
    name: str, kind: str, inputs: Sequence[Tensor], found: Sequence[Tensor], is_twin: bool = False
) -> None:
    """Every number of ``found``: the values, and the derivatives by each input or None."""
    log = kind.startswith("log_")
    working = torch.finfo(found[0].dtype).eps
    rows = list(zip(*(x.detach().double().tolist() for x in inputs), strict=True))
    for column, numbers in enumerate(found):
        if numbers is None:
            continue
        info = torch.finfo(numbers.dtype)
        for row, ours in zip(rows, numbers.detach().double().tolist(), strict=True):
            true = exact(name, log, row)[column]
            where = f"{name} {kind} at {row}, column {column}: {ours}, right is {true}"
            if abs(true) >= info.max * (1 - 16 * info.eps):
                assert abs(ours) >= info.max * (1 - 32 * info.eps), where
                assert (ours > 0) == (true > 0), where
                continue
            allowed = ULPS * working * max(1, abs(true)) + info.eps * abs(true)
            allowed += info.smallest_normal * info.eps
            widened = working > 1e-10 and (is_twin or row[0] >= 16)
            if name == "poisson" and log and not widened:
                rate = mpmath.exp(row[1])
                allowed += 2 * working * (abs(row[0] - rate), 1, rate)[column]
            assert abs(ours - true) <= allowed, where


def evaluate(op: Callable, kind: str, inputs: Sequence[Tensor]) -> Tensor:
    return op(*inputs[:-1], **{kind: inputs[-1]}, event_dims=0)


def with_gradients(op: Callable, kind: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    value = evaluate(op, kind, inputs)
    return [value, *torch.autograd.grad(value.sum(), inputs)]


# ---- the kernels --------------------------------------------------------------------------------
@on_dtypes
@on_cases
def test_the_kernel_is_exact(name: str, kind: str, operands: int, dtype: torch.dtype):
    inputs = columns(dtype, kind, operands)
    op = getattr(ops, f"{name}_log_prob")
    assert_exact(name, kind, inputs, with_gradients(op, kind, inputs))


@on_wide_dtypes
@pytest.mark.parametrize("event_dims", [0, 1], ids=["elements", "rows of one"])
@pytest.mark.parametrize("kind", ["dispersion", "log_dispersion"])
def test_the_kernel_of_shared_counts_is_exact(kind: str, event_dims: int, dtype: torch.dtype):
    """Many means for one count and dispersion: what does not depend on them is computed once."""
    x, mean, theta = (y.detach() for y in columns(dtype, kind, 3))
    repeats = 2 + 4096 // len(x)
    means = torch.stack([mean] + [mean.roll(i) for i in range(1, repeats)]).requires_grad_()
    theta = theta.clone().requires_grad_()
    operands = [y.unflatten(-1, (-1,) + (1,) * event_dims) for y in (x, means, theta)]
    given = {kind: operands.pop()}
    value = ops.negative_binomial_log_prob(*operands, **given, event_dims=event_dims)
    (by_mean,) = torch.autograd.grad(value.sum(), means, retain_graph=True)
    # Of the first means alone, and the others weigh nothing.
    weight = pad(torch.ones_like(value[:1]), (0, 0, 0, repeats - 1))
    (by_theta,) = torch.autograd.grad(torch.where(weight > 0, value, 0.0).sum(), theta)
    if not torch.isfinite(by_theta).all():
        by_theta = None  # an infinite slope beside a weight of zero
    found = [value[0], None, by_mean[0], by_theta]
    assert_exact("negative_binomial", kind, (x, mean, theta), found)


@on_wide_dtypes
def test_the_zero_inflated_kernel_is_exact(dtype: torch.dtype):
    x, mean, theta = columns(dtype, "dispersion", 3, 60)
    gate = torch.linspace(-30, 30, len(x), dtype=dtype).requires_grad_()
    inputs = (x, mean, theta, gate)
    value = ops.zero_inflated_negative_binomial_log_prob(*inputs, event_dims=0)
    by_gate = torch.autograd.grad(value.sum(), gate)[0]
    eps, mp = torch.finfo(dtype).eps, mpmath
    for i, row in enumerate(zip(*(y.tolist() for y in inputs), strict=True)):
        count = exact("negative_binomial", False, row[:3])[0]
        with mp.workdps(80):
            odds = mp.exp(mp.mpf(row[3]))
            true = mp.log((odds * (row[0] == 0) + mp.exp(count)) / (1 + odds))
            slope = odds / (odds + mp.exp(count)) if row[0] == 0 else mp.mpf(0)
            slope -= odds / (1 + odds)
        assert abs(value[i].item() - true) <= ULPS * eps * max(1, abs(true)), row
        assert abs(by_gate[i].item() - slope) <= ULPS * eps, row


# ---- beyond the grid ----------------------------------------------------------------------------
def beyond(count: int = 100) -> tuple[Point, ...]:
    """Means of any size under dispersions that leave a Poisson density."""
    generator = random.Random(11)
    found: list[Point] = [
        (8.0, 2.6e-38, 4.5e38 / 2),
        (8.0, 1.4e-45, 3e38),
        (0.0, 1.4e-45, 3e38),
        (1e15, 1e15, 3e38),
    ]
    for _ in range(count):
        mean = 10 ** generator.uniform(-44, 19)
        near = mean * (1 + generator.choice([-1, 1]) * 10 ** generator.uniform(-7, -0.1))
        x = generator.choice([0.0, float(math.floor(near)), 10.0 ** generator.randint(0, 12)])
        found.append((x, mean, 10 ** generator.uniform(28, 38.4)))
    return tuple(found)


@pytest.mark.parametrize("way", ["kernel", "twin"])
@pytest.mark.parametrize("kind", ["dispersion", "log_dispersion"])
def test_hardly_dispersed_numbers_are_exact(kind: str, way: str):
    made = torch.tensor(beyond(), dtype=torch.float64).float()
    if kind == "log_dispersion":
        made[:, -1] = made[:, -1].log()
        made[-1, -1] = 89.0  # beyond the largest number
    inputs = [x.contiguous().requires_grad_() for x in made.unbind(1)]
    op = ops.negative_binomial_log_prob
    found = with_gradients(op if way == "kernel" else op.reference, kind, inputs)
    assert_exact("negative_binomial", kind, inputs, found, is_twin=way == "twin")


SMALL_SLOPES = {
    "a slope that is left of a tiny dispersion": (1e9, 4.0, 1.4e-45),
    "a larger one": (1e12, 0.5, 1e-43),
    "below the count": (3.0, 1e-3, 1e-40),
    "a tiny mean": (1e-3, 1e-38, 1e30),
}


@pytest.mark.parametrize("way", ["kernel", "twin"])
@pytest.mark.parametrize("point", SMALL_SLOPES.values(), ids=SMALL_SLOPES.keys())
def test_a_small_slope_keeps_its_digits(point: Point, way: str):
    inputs = [torch.tensor([x]).requires_grad_() for x in point]
    op = ops.negative_binomial_log_prob
    slope = with_gradients(op if way == "kernel" else op.reference, "dispersion", inputs)[2]
    right = exact("negative_binomial", False, tuple(x.item() for x in inputs))[2]
    info = torch.finfo(torch.float32)
    allowed = ULPS * info.eps * abs(right) + info.smallest_normal * info.eps
    assert abs(slope.item() - right) <= allowed


# ---- the twins ----------------------------------------------------------------------------------
def _by_vmap(op: Callable, kind: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    one = tuple(x.detach()[:, None] for x in inputs)
    every = tuple(range(len(inputs)))

    def value(*row: Tensor) -> Tensor:
        return evaluate(op, kind, row).sum()

    slopes = torch.func.vmap(torch.func.grad(value, argnums=every))(*one)
    return [torch.func.vmap(value)(*one), *(x[:, 0] for x in slopes)]


def _by_jvp(op: Callable, kind: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    found: list[Tensor] = []
    for i, x in enumerate(inputs):

        def value(moved: Tensor, i: int = i) -> Tensor:
            rest = [y.detach() for y in inputs]
            return evaluate(op, kind, [*rest[:i], moved, *rest[i + 1 :]])

        out, slope = torch.func.jvp(value, (x.detach(),), (torch.ones_like(x),))
        found = [*(found or [out]), slope]
    return found


def _by_create_graph(op: Callable, kind: str, inputs: Sequence[Tensor]) -> list[Tensor]:
    value = evaluate(op.reference, kind, inputs)
    return [value, *torch.autograd.grad(value.sum(), inputs, create_graph=True)]


WAYS = {"vmap": _by_vmap, "jvp": _by_jvp, "create_graph": _by_create_graph}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@on_wide_dtypes
@on_cases
def test_the_twin_is_exact(
    name: str, kind: str, operands: int, dtype: torch.dtype, way: Callable[..., list[Tensor]]
):
    inputs = columns(dtype, kind, operands)
    if kind == "log_dispersion" and dtype == torch.float64:
        # The twin has no wider type here: below the normal numbers t itself has fewer digits.
        normal = inputs[-1] > math.log(torch.finfo(dtype).smallest_normal)
        inputs = [x.detach()[normal].requires_grad_() for x in inputs]
    op = getattr(ops, f"{name}_log_prob")
    assert_exact(name, kind, inputs, way(op, kind, inputs), is_twin=True)


@on_cases
def test_the_second_derivatives(name: str, kind: str, operands: int):
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.rand(12, generator=generator).double().mul(8).sub(4).exp() for _ in range(3)]
    inputs = inputs[:operands]
    if kind.startswith("log_"):
        inputs[-1] = inputs[-1].log()
    reference = getattr(ops, f"{name}_log_prob").reference
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *x: evaluate(reference, kind, x), inputs)


def test_nothing_is_expected_of_a_rate_of_zero():
    """A count of zero is certain, and a rate has a slope of -1, in all ways."""
    zero = torch.zeros(1)

    def density(rate: Tensor) -> Tensor:
        return ops.poisson_log_prob(zero, rate)

    assert density(zero).item() == 0
    assert torch.func.grad(density)(zero).item() == -1
    assert torch.func.jvp(density, (zero,), (zero + 1,))[1].item() == -1
    leaf = torch.zeros(1, requires_grad=True)
    out = ops.poisson_log_prob.reference(zero, leaf)
    (slope,) = torch.autograd.grad(out, leaf, create_graph=True)
    assert slope.item() == -1
    assert torch.autograd.grad(slope, leaf)[0].item() == 0


# ---- named cases --------------------------------------------------------------------------------
NAMED = {
    "many, dispersed": (1e7, 1e7, 1.0, -17.118096),
    "many, hardly a dispersion": (1e8, 1e8, 1e-8, -36.84136),
    "a thousand million": (1e9, 1e9, 1.0, -21.723266),
    "five of three, nearly Poisson": (5.0, 3.0, 1e7, -2.2944306),
}


@pytest.mark.parametrize(("x", "mean", "theta", "right"), NAMED.values(), ids=NAMED.keys())
@pytest.mark.parametrize("way", ["kernel", "twin"])
def test_named_numbers(way: str, x: float, mean: float, theta: float, right: float):
    def density(value: Tensor) -> Tensor:
        return ops.negative_binomial_log_prob(value, torch.tensor([mean]), torch.tensor([theta]))

    value = torch.tensor([[x]])
    ours = density(value) if way == "kernel" else torch.func.vmap(density)(value)
    assert ours.item() == pytest.approx(right, rel=4e-7)
