"""Scales at both ends of their type, against mpmath: values and every first derivative."""

from __future__ import annotations

import functools
import itertools
import math

import mpmath as mp
import pytest
import torch
from op_table import EMULATED
from quick import quick_in
from torch import Tensor

import fastvi
from fastvi import ops
from fastvi.ops.gaussian_kl import kl_of_scales

F = fastvi.distributions
t = torch.tensor
_exact = mp.mp.clone()
_exact.dps = 50
M, exp, log = _exact.mpf, _exact.exp, _exact.log

DTYPES = quick_in(
    {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    },
    "float32",
    "bfloat16",
)


# ---- what is right -------------------------------------------------------------------------------
# Each: the number and its derivatives, beside the sizes of the terms that they are sums of. Kept,
# because every way of differentiation is asked the same cases.
@functools.cache
def gaussian(x, loc, log_sigma, kind):
    sigma = exp(log_sigma)
    u = (x - loc) / sigma
    by = {"scale": 1 / sigma, "log_scale": M(1), "log_var": M(0.5)}[kind]
    value = -u * u / 2 - log_sigma - log(2 * _exact.pi) / 2
    sizes = [u * u / 2 + abs(log_sigma) + 1, abs(u / sigma), abs(u / sigma), (u * u + 1) * by]
    return [value, -u / sigma, u / sigma, (u * u - 1) * by], sizes


@functools.cache
def laplace(x, loc, log_b, kind):
    b = exp(log_b)
    u = abs(x - loc) / b
    sign = _exact.sign(x - loc)
    by = 1 / b if kind == "scale" else M(1)
    value = -u - log_b - log(2)
    sizes = [u + abs(log_b) + 1, 1 / b, 1 / b, (u + 1) * by]
    return [value, -sign / b, sign / b, (u - 1) * by], sizes


@functools.cache
def kl(loc, log_s, prior_loc, log_p, kind):
    r, u = exp(log_s - log_p), (loc - prior_loc) / exp(log_p)
    gap = log_s - log_p
    excess = r * r - 1 - 2 * gap
    d_loc = u / exp(log_p)
    by, by_prior = (1 / exp(log_s), 1 / exp(log_p)) if kind == "scale" else (M(0.5), M(0.5))
    values = [
        (excess + u * u) / 2,
        d_loc,
        (r * r - 1) * by,
        -d_loc,
        -(r * r - 1 + u * u) * by_prior,
    ]
    # The difference of two logarithms is rounded where they are large, and so is its exponential.
    rounded = 1 + 2 * abs(gap)
    far = 0 if kind == "log_var" else (abs(log_s) + abs(log_p) if abs(gap) > 60 else 0)
    sizes = [
        (u * u + r * r * rounded + 1 + 2 * abs(gap)) / 2 + far,
        abs(d_loc),
        (r * r * rounded + 1) * by,
        abs(d_loc),
        (r * r * rounded + 1 + u * u) * by_prior,
    ]
    return values, sizes


# The roundings of a formula: of u some six, an exponential's two among them, twice in its square.
ROUNDINGS = 16


def assert_right(found: list[Tensor], exact, dtype: torch.dtype, where: object) -> None:
    """Each number within its roundings; what is beyond the type is infinite in it."""
    values, sizes = exact
    for i, (x, true, size) in enumerate(zip(found, values, sizes, strict=True)):
        info = torch.finfo(x.dtype)
        # What is rounded to the type in the end was made in float32.
        eps = max(info.eps, torch.finfo(torch.float32).eps if x.dtype != torch.float64 else 0.0)
        number = x.item()
        if abs(true) > info.max:
            infinite = math.isinf(number) and (number > 0) == (true > 0)
            assert infinite or abs(number) >= info.max * (1 - ROUNDINGS * eps), (where, i, number)
            continue
        if math.isinf(number):
            assert abs(true) >= info.max * (1 - ROUNDINGS * eps), (where, i, number, true)
            continue
        # Near zero numbers are as far apart as the smallest of them.
        least = info.smallest_normal * info.eps * 4
        if i > 0:
            least = least * max(
                1.0, float(min(size / (abs(true) or size), M(2) ** 20)) if size else 1
            )
        assert abs(M(number) - true) <= ROUNDINGS * eps * size + least, (where, i, number, true)


def numbers(dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Places and scales: zero, the smallest, the largest, and some between."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    roots = [info.max**power for power in (0.3, 0.5, 0.7)]
    places = [0.0, 1e-3, 3.0, -1.0, *roots, info.max, -info.max, info.smallest_normal]
    scales = [smallest, 100 * smallest, info.smallest_normal, *(1 / r for r in roots)]
    scales += [0.3, 1.0, 7.0, *roots, info.max / 4, info.max]
    return [t(x, dtype=dtype).item() for x in places], [t(x, dtype=dtype).item() for x in scales]


def logarithms(dtype: torch.dtype) -> list[float]:
    limit = 88.0 if dtype != torch.float64 else 709.0
    factors = (-1.9, -1.2, -1.02, -0.98, -0.5, -0.01, 0.0, 0.01, 0.5, 0.98, 1.005, 1.02, 1.2, 1.9)
    return [t(limit * x, dtype=dtype).item() for x in factors]


def first_derivatives(function, *inputs: Tensor) -> list[Tensor]:
    """The value of a function of vectors, and its derivatives, as numbers in a list."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


def through_func(function, *inputs: Tensor) -> list[Tensor]:
    """The same by ``torch.func``: a vmap of gradients."""

    def one(*parts: Tensor) -> Tensor:
        return function(*(x[None] for x in parts)).sum()

    every = tuple(range(len(inputs)))
    return [
        torch.func.vmap(one)(*inputs),
        *torch.func.vmap(torch.func.grad(one, every))(*inputs),
    ]


def forward_mode(function, *inputs: Tensor) -> list[Tensor]:
    """The same by forward mode."""
    ones, nothing = [torch.ones_like(x) for x in inputs], [torch.zeros_like(x) for x in inputs]
    found = []
    for i in range(len(inputs)):
        tangents = (*nothing[:i], ones[i], *nothing[i + 1 :])
        value, derivative = torch.func.jvp(function, inputs, tangents)
        found.append(derivative)
    return [value, *found]


WAYS = [
    pytest.param(first_derivatives, id="kernel"),
    pytest.param(through_func, id="vmap of grad"),
    pytest.param(forward_mode, id="jvp", marks=pytest.mark.native),
]


def check(function, right, columns: list[tuple[float, ...]], dtype: torch.dtype, way) -> None:
    """All cases in one call, each against its own truth."""
    if EMULATED:
        columns = columns[:: max(1, len(columns) // 60)]
    truth = {case: right(*map(M, case)) for case in columns}
    # Where the number itself is beyond the type, nothing is asked.
    kept = [c for c in columns if abs(truth[c][0][0]) < torch.finfo(dtype).max / 2]
    if way is not first_derivatives:
        # These are products of factors, each of which is a number of the type that it is made in.
        info = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
        ends = M(info.tiny) ** 0.9, M(info.max) ** 0.9
        kept = [c for c in kept if all(x == 0 or ends[0] < abs(x) < ends[1] for x in truth[c][1])]
        if way is forward_mode:
            # Forward mode multiplies the slope of u, which is 1 / sigma, by u, which may be zero.
            limit = 700.0 if dtype == torch.float64 else 87.0
            kept = [c for c in kept if min(c[-1], c[1] if len(c) > 3 else 0.0) > -limit]
    assert len(kept) > len(columns) // 20
    inputs = [t(column, dtype=dtype) for column in zip(*kept, strict=True)]
    found = way(function, *inputs)
    for i, case in enumerate(kept):
        assert_right([x[i] for x in found], truth[case], dtype, case)


def densities(places: list[float], spreads: list[float]) -> list[tuple[float, ...]]:
    return list(itertools.product(places, places, spreads))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["scale", "log_scale", "log_var"])
def test_the_gaussian_density(kind: str, dtype: torch.dtype, way):
    places, scales = numbers(dtype)
    spreads = scales if kind == "scale" else logarithms(dtype)

    def right(x, loc, spread):
        log_sigma = log(spread) if kind == "scale" else spread / (2 if kind == "log_var" else 1)
        return gaussian(x, loc, log_sigma, kind)

    def density(x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        return ops.gaussian_log_prob(x, loc, **{kind: spread}, event_dims=0)

    check(density, right, densities(places, spreads), dtype, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["scale", "log_scale"])
def test_the_laplace_density(kind: str, dtype: torch.dtype, way):
    places, scales = numbers(dtype)
    spreads = scales if kind == "scale" else logarithms(dtype)

    def right(x, loc, spread):
        return laplace(x, loc, log(spread) if kind == "scale" else spread, kind)

    def density(x: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
        return ops.laplace_log_prob(x, loc, **{kind: spread}, event_dims=0)

    check(density, right, densities(places, spreads), dtype, way)


def pairs(places: list[float], spreads: list[float], close: list[float]) -> list[tuple]:
    """Two Gaussians: near each other and far, as wide and not."""
    cases = [
        (x, s, y, p) for x, y in itertools.pairwise(places) for s in spreads for p in spreads[::3]
    ]
    return cases + [(x, s, x, p) for x in places for s, p in zip(spreads, close, strict=True)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_divergence_of_scales(dtype: torch.dtype, way):
    places, scales = numbers(dtype)
    close = [min(t(1.06 * s, dtype=dtype).item(), torch.finfo(dtype).max) for s in scales]

    def right(loc, scale, prior_loc, prior_scale):
        return kl(loc, log(scale), prior_loc, log(prior_scale), "scale")

    def divergence(*operands: Tensor) -> Tensor:
        return kl_of_scales(*(x[:, None] for x in operands))

    check(divergence, right, pairs(places, scales, close), dtype, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_divergence_of_log_variances(dtype: torch.dtype, way):
    places, _ = numbers(dtype)
    logs = logarithms(dtype)
    close = [t(x + 0.1, dtype=dtype).item() for x in logs]

    def right(loc, log_var, prior_loc, prior_log_var):
        return kl(loc, log_var / 2, prior_loc, prior_log_var / 2, "log_var")

    def divergence(loc: Tensor, log_var: Tensor, *prior: Tensor) -> Tensor:
        prior = tuple(x[:, None] for x in prior)
        return ops.gaussian_kl(loc[:, None], log_var[:, None], prior)

    check(divergence, right, pairs(places, logs, close), dtype, way)


# ---- what a shared scale is prepared for ---------------------------------------------------------
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-20, 1e-3, 1e20, 3e38])
def test_a_scale_that_serves_many(scale: float):
    x = scale * torch.linspace(-2, 2, 40).double()
    x = x.clamp(-3e38, 3e38).float().reshape(10, 4).requires_grad_()
    spread = torch.full((4,), scale, requires_grad=True)
    loc = torch.zeros(10, 4)
    log_prob = ops.gaussian_log_prob(x, loc, scale=spread)
    truth = [
        [gaussian(M(v), M(0), log(M(spread[0].item())), "scale")[0] for v in row]
        for row in x.tolist()
    ]
    total = t([float(sum(v[0] for v in row)) for row in truth])
    torch.testing.assert_close(log_prob, total, rtol=1e-6, atol=0)
    by_x, by_scale = torch.autograd.grad(log_prob.sum(), (x, spread))
    exact = t([[float(v[1]) for v in row] for row in truth], dtype=torch.float64).float()
    torch.testing.assert_close(by_x, exact, rtol=2e-6, atol=0)
    sums = [float(sum(row[d][3] for row in truth)) for d in range(4)]
    sizes = [float(sum(abs(row[d][3]) for row in truth)) for d in range(4)]
    for found, exact_sum, size in zip(by_scale.tolist(), sums, sizes, strict=True):
        if size < 3e38:
            assert abs(found - exact_sum) <= 40 * 1.2e-7 * size


ENDS = {
    "scale": (ops.gaussian_log_prob, (1e-45, 1e-39, 3e38)),
    "log_scale": (ops.gaussian_log_prob, (-104.0, -90.0, 89.0, 150.0)),
    "log_var": (ops.gaussian_log_prob, (-200.0, -180.0, 178.0)),
    "laplace scale": (ops.laplace_log_prob, (1e-45, 1e-39, 3e38)),
    "laplace log_scale": (ops.laplace_log_prob, (-104.0, -90.0, 89.0, 150.0)),
}


@pytest.mark.parametrize("features", [3, 100, 20000], ids=["short", "row", "segments"])
@pytest.mark.parametrize("kind", ENDS.keys(), ids=ENDS.keys())
def test_one_scale_at_the_end_in_a_row_of_others(kind: str, features: int):
    """float64 has room for all of them."""
    if EMULATED and features > 1000:
        return
    density, ends = ENDS[kind]
    name = kind.split()[-1]
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(len(ends) + 1, features, generator=generator)
    spread = torch.rand(len(ends) + 1, features, generator=generator) + 0.5
    for row, end in enumerate(ends):
        spread[row, features // 2] = end
    # As far as the scale is wide, and no further than there is a number.
    wide = (
        spread.double() if name == "scale" else (spread.double() / (1 + (name == "log_var"))).exp()
    )
    x = (loc + wide * torch.randn(loc.shape, generator=generator)).clamp(-3e38, 3e38).float()
    loc[:, features // 2] = x[:, features // 2]
    for event_dims in (0, 1):
        found = density(x, loc, **{name: spread}, event_dims=event_dims)
        true = density(x.double(), loc.double(), **{name: spread.double()}, event_dims=event_dims)
        torch.testing.assert_close(found.double(), true, rtol=2e-6, atol=2e-6)


# ---- draws ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("path_only", [False, True], ids=["total", "path"])
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-38, 1e-20, 1.0, 1e20, 1e37])
def test_the_slope_of_a_draw_by_its_scale(scale: float, path_only: bool):
    """d z / d scale is the noise, whatever the scale."""
    key = t([3, 5])
    loc = torch.zeros(2, 3)
    noise = ops.gaussian_rsample(loc, scale=torch.ones(2, 3), num_samples=4, key=key)[0]
    spread = torch.full((2, 3), scale, requires_grad=True)
    z, log_q, _ = ops.gaussian_rsample(
        loc, scale=spread, num_samples=4, key=key, path_only=path_only
    )
    (by_scale,) = torch.autograd.grad(z.sum(), spread)
    torch.testing.assert_close(by_scale, noise.sum(0), rtol=1e-5, atol=1e-6)
    expected = -noise.square().sum(-1) / 2 - 3 * (math.log(spread[0, 0].item()) + 0.9189385332)
    torch.testing.assert_close(log_q, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["log_scale", "log_var"])
@pytest.mark.parametrize("sigma", [-100.0, -88.0, -60.0, 0.0, 80.0])
def test_the_path_of_log_q_at_any_width(sigma: float, kind: str):
    """By log sigma it is minus the squared noise."""
    key, zero = t([3, 5]), torch.zeros(1, 3)
    noise = ops.gaussian_rsample(zero, log_scale=zero, num_samples=4, key=key)[0]
    factor = 2.0 if kind == "log_var" else 1.0
    spread = torch.full((1, 3), factor * sigma, requires_grad=True)

    def log_q(x: Tensor) -> Tensor:
        return ops.gaussian_rsample(zero, **{kind: x}, num_samples=4, key=key, path_only=True)[
            1
        ].sum()

    expected = -noise.square().sum(0) / factor
    torch.testing.assert_close(torch.autograd.grad(log_q(spread), spread)[0], expected)
    torch.testing.assert_close(torch.func.grad(log_q)(spread.detach()), expected)


@pytest.mark.parametrize("log_var", [-170.0, -100.0, 100.0, 170.0])
def test_a_prior_of_any_width(log_var: float):
    key = t([3, 5])
    wide = math.exp(log_var / 2)
    loc = t([[0.5, -2.0]]).double().mul(wide).float()
    prior = (torch.zeros(2), torch.full((2,), log_var, requires_grad=True))

    def log_p(prior_log_var: Tensor) -> Tensor:
        spread = torch.full_like(loc, -1e4)  # no noise
        return ops.gaussian_rsample(
            loc, log_scale=spread, num_samples=2, key=key, prior=(prior[0], prior_log_var)
        )[2].sum()

    found, (slope,) = log_p(prior[1]), torch.autograd.grad(log_p(prior[1]), prior[1])
    u = loc.double() / wide
    expected = 2 * (-u.square() / 2 - log_var / 2 - 0.9189385332).sum()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    by_log_var = (u.square() - 1)[0].float()
    torch.testing.assert_close(slope, by_log_var, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.func.grad(log_p)(prior[1].detach()), slope)


# ---- what was seen -------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [F.DiagNormal, F.Normal], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-20, 1.0, 1e20, 3e38])
def test_the_divergence_of_distributions(scale: float, kind: type):
    """At a distance of one scale it is a half, at none zero; and finite for any two scales."""
    one, zero = kind(t([scale]), t([scale])), kind(t([0.0]), t([scale]))
    assert torch.distributions.kl_divergence(one, zero).item() == 0.5
    assert torch.distributions.kl_divergence(zero, zero).item() == 0.0
    wide = kind(t([0.0]), t([3e38]))
    ratio = math.log(wide.scale.item() / zero.scale.item())
    found = torch.distributions.kl_divergence(zero, wide).item()
    torch.testing.assert_close(found, max(ratio - 0.5, 0.0), rtol=1e-6, atol=0)


def test_the_peak_of_a_narrow_laplace():
    found = ops.laplace_log_prob(t([0.0]), t([0.0]), log_scale=t([-90.0]))
    torch.testing.assert_close(found.item(), 90 - math.log(2), rtol=1e-7, atol=0)


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
def test_the_loss_of_a_narrow_guide_under_transforms(estimator: str):
    """The noise, and not what loc has rounded off of it, is what log q is made of."""
    key, loc, log_var = t([7, 1]), t([[3.0]]), t([[-40.0]])

    def loss(loc: Tensor, log_var: Tensor) -> Tensor:
        def flat(z: Tensor) -> Tensor:
            return 0.0 * z.sum(-1)

        return fastvi.iwlb_loss(loc, log_var, flat, 16, estimator=estimator, key=key)

    noise = ops.gaussian_rsample(
        torch.zeros(1, 1).double(), log_var=torch.zeros(1, 1).double(), num_samples=16, key=key
    )[0]
    z = 3 + math.exp(-20) * noise
    log_w = -z.square() / 2 + noise.square() / 2 - 20
    expected = -(log_w.logsumexp(0) - math.log(16)).item()
    eager = loss(loc, log_var).item()
    torch.testing.assert_close(eager, expected, rtol=1e-6, atol=0)
    mapped = torch.func.vmap(functools.partial(loss, log_var=log_var))(loc[None])
    torch.testing.assert_close(mapped.item(), eager, rtol=1e-6, atol=0)
    leaves = loc.clone().requires_grad_(), log_var.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(
        torch.func.grad(loss, (0, 1))(loc, log_var), gradients, rtol=1e-4, atol=1e-4
    )
