"""Gradients of broadcast operands, summed over rows on the way, and what count densities share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from error_budget import as_leaves, assert_within_budget
from op_samples_densities import NEGATIVE_BINOMIAL_LOG_PROB, dispersion_sizes
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastvi import ops

# The sums are a CPU's.
pytestmark = pytest.mark.native

Shape = tuple[int, ...]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def output_of(function: Callable[..., Tensor]):
    return lambda tensors: {"output": function(**tensors)}


def run_of(function: Callable[..., Tensor], upstream: Tensor):
    """Value and gradients of the tensors that require one."""

    def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        out = function(**tensors)
        wanted = {name: x for name, x in tensors.items() if x.requires_grad}
        gradients = torch.autograd.grad(out, list(wanted.values()), upstream.to(out.dtype))
        return {"output": out} | dict(zip(wanted, gradients, strict=True))

    return run


# ---- sums over rows -----------------------------------------------------------------------------
# value, loc, log_var. A task takes 65 536 elements, rows are summed by 64, vectors of one row by 64
# too, 16 384 elements of what repeats are kept in cache, and a segment has 16 384 features.
SHAPES: dict[str, tuple[Shape, Shape, Shape]] = {
    "one row serves very many": ((8000, 28), (8000, 28), (28,)),
    "two of three are shared": ((8000, 28), (28,), (28,)),
    "few data, many repeats": ((2100, 3, 28), (3, 28), (3, 28)),
    "many data, few repeats": ((5, 3000, 28), (3000, 28), (3000, 28)),
    "data and a shared row": ((3, 700, 33), (700, 33), (33,)),
    "a number for each datum": ((5, 3000, 28), (3000, 1), (3000, 1)),
    "a number for each row": ((40, 1100), (40, 1), (40, 1)),
    "one number": ((300, 300), (), ()),
    "segments": ((3, 2, 16390), (2, 16390), (16390,)),
    "segments, a number for each": ((3, 2, 33_000), (2, 1), ()),
    "a period between": ((4, 2, 3, 28), (2, 3, 28), (3, 28)),
    "a gap": ((4, 3, 28), (4, 1, 28), (3, 28)),
    "one row": ((28,), (28,), ()),
    "no rows": ((0, 28), (28,), (28,)),
}


def gaussian(value: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    return ops.gaussian_log_prob(value, loc, log_var=log_var)


def gaussian_reference(value: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    return ops.gaussian_log_prob.reference(value, loc, log_var=log_var)


def operands(shapes: tuple[Shape, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    names = ("value", "loc", "log_var")
    return {
        name: draw(*shape, dtype=dtype).requires_grad_()
        for name, shape in zip(names, shapes, strict=True)
    }


def shapes_and_dtypes() -> list:
    """The largest are slow: the smaller ones are read by the same code."""
    return [
        pytest.param(
            shapes,
            dtype,
            id=f"{name}-{str(dtype)[6:]}",
            marks=pytest.mark.slow if large(shapes) else (),
        )
        for name, shapes in SHAPES.items()
        for dtype in (torch.float32, torch.bfloat16)
    ]


def large(shapes: tuple[Shape, ...]) -> bool:
    return torch.broadcast_shapes(*shapes).numel() > 150_000


@pytest.mark.parametrize(("shapes", "dtype"), shapes_and_dtypes())
def test_sums_are_within_the_budget(shapes: tuple[Shape, ...], dtype: torch.dtype):
    upstream = draw(*torch.broadcast_shapes(*shapes)[:-1]).bfloat16()
    assert_within_budget(
        output_of(gaussian),
        output_of(gaussian_reference),
        operands(shapes, dtype),
        dtype,
        {"output": upstream},
        terms_apart=True,
    )


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_sums_element_by_element(shapes: tuple[Shape, ...]):
    tensors = operands(shapes, torch.float64)
    upstream = draw(*torch.broadcast_shapes(*shapes), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(function(**tensors, event_dims=0), list(tensors.values()), upstream)
        for function in (ops.gaussian_log_prob, ops.gaussian_log_prob.reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


# Breaks when what is added to what depends on who works, or on what else is asked for.
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
def test_sums_have_one_order(shapes: tuple[Shape, ...], threads):
    tensors = operands(shapes, torch.float32)
    upstream = draw(*torch.broadcast_shapes(*shapes)[:-1])
    threads(1)
    expected = run_of(gaussian, upstream)(tensors)
    threads(2)
    torch.testing.assert_close(run_of(gaussian, upstream)(tensors), expected, rtol=0, atol=0)
    for name in tensors:
        alone = {other: x.detach() for other, x in tensors.items()}
        alone[name].requires_grad_()
        found = run_of(gaussian, upstream)(alone)[name]
        torch.testing.assert_close(found, expected[name], rtol=0, atol=0)


def allocated(run: Callable[[], object]) -> int:
    """The bytes of the largest tensor that is made on the way."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    return max(event.cpu_memory_usage for event in record.events())


# Breaks when the gradient of a shared parameter is written at every element again.
@pytest.mark.parametrize("shared", [(50,), (64, 50), (64, 1), ()], ids=str)
def test_the_gradient_of_a_shared_parameter_is_never_that_of_all_rows(shared: Shape):
    value, loc = draw(200, 64, 50), draw(200, 64, 50)
    log_var = draw(*shared).requires_grad_()
    log_prob = gaussian(value, loc, log_var)
    upstream = torch.ones_like(log_prob)
    most = allocated(lambda: torch.autograd.grad(log_prob, log_var, upstream, retain_graph=True))
    assert 0 < most < 0.1 * value.nbytes
    # The measure sees such a tensor where there is one.
    loc.requires_grad_()
    log_prob = gaussian(value, loc, log_var.detach())
    assert allocated(lambda: torch.autograd.grad(log_prob, loc, upstream)) >= value.nbytes


# ---- what the means share -----------------------------------------------------------------------
def negative_binomial(**tensors: Tensor) -> Tensor:
    return ops.negative_binomial_log_prob(**tensors)


def zero_inflated(**tensors: Tensor) -> Tensor:
    return ops.zero_inflated_negative_binomial_log_prob(**tensors)


K, B, F = 7, 11, 67
HOLDS: dict[str, tuple[Tensor, Tensor, Tensor]] = {
    # Counts [B, F], means [K, B, F], logarithms of dispersions [F].
    "counts": ((3 * draw(B, F).abs()).floor(), draw(K, B, F).exp(), draw(F)),
    "many counts": ((3000 * draw(B, F).abs()).floor(), (2000 * draw(K, B, F).abs()), draw(F)),
    "fractions": (draw(B, F).exp(), draw(K, B, F).exp(), draw(F)),
    "means far apart": ((3 * draw(B, F).abs()).floor(), (4 * draw(K, B, F)).exp(), draw(F)),
    "large dispersions": ((9 * draw(B, F).abs()).floor(), draw(K, B, F).exp(), 12 + draw(F)),
    "small dispersions": ((9 * draw(B, F).abs()).floor(), draw(K, B, F).exp(), draw(F) - 8),
    "many counts, small dispersions": (
        (3000 * draw(B, F).abs()).floor(),
        (2000 * draw(K, B, F).abs()),
        draw(F) - 8,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("log", [False, True], ids=["dispersion", "log_dispersion"])
@pytest.mark.parametrize("density", [negative_binomial, zero_inflated], ids=["plain", "inflated"])
@pytest.mark.parametrize("holds", HOLDS.values(), ids=HOLDS.keys())
def test_sharing_costs_no_accuracy(
    holds: tuple[Tensor, ...], density: Callable[..., Tensor], log: bool, dtype: torch.dtype
):
    """The oracle is the same kernel for whom nothing is shared, since all is written out."""
    value, mean, log_dispersion = (x.to(dtype) for x in holds)
    tensors = {"mean": mean}
    if density is zero_inflated:
        tensors["gate_logits"] = draw(K, B, F, dtype=dtype)
    given = {"log_dispersion": log_dispersion} if log else {"dispersion": log_dispersion.exp()}
    tensors = as_leaves({name: x.requires_grad_() for name, x in (tensors | given).items()})

    def shared(**tensors: Tensor) -> Tensor:
        return density(value=value.to(tensors["mean"].dtype), **tensors)

    def alone(**tensors: Tensor) -> Tensor:
        rows = [x.expand(K, B, F).contiguous() for x in (value, *tensors.values())]
        rows[0] = rows[0].to(rows[1].dtype)
        return density(**dict(zip(("value", *tensors), rows, strict=True)))

    upstream = draw(K, B).bfloat16()
    # Both are kernels, and each has its own roundings.
    assert_within_budget(
        output_of(shared),
        output_of(alone),
        tensors,
        dtype,
        {"output": upstream},
        terms_apart=True,
        roundings=NEGATIVE_BINOMIAL_LOG_PROB.roundings,
        sizes=dispersion_sizes(value, tensors, upstream[..., None]),
    )


@pytest.mark.parametrize("shape", [(F,), (B, F), (B, 1), (), (K, B, F)], ids=str)
@pytest.mark.parametrize("density", [negative_binomial, zero_inflated], ids=["plain", "inflated"])
def test_every_shape_of_a_dispersion(density: Callable[..., Tensor], shape: Shape):
    value, mean, _ = (x.double() for x in HOLDS["counts"])
    tensors = {"mean": mean, "log_dispersion": draw(*shape, dtype=torch.float64)}
    if density is zero_inflated:
        tensors["gate_logits"] = draw(F, dtype=torch.float64)
    tensors = as_leaves({name: x.requires_grad_() for name, x in tensors.items()})
    upstream = draw(K, B, dtype=torch.float64)
    found = run_of(lambda **x: density(value=value, **x), upstream)(tensors)
    reference = ops.negative_binomial_log_prob.reference
    if density is zero_inflated:
        reference = ops.zero_inflated_negative_binomial_log_prob.reference
    expected = run_of(lambda **x: reference(value=value, **x), upstream)(tensors)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_certain_count_among_many_means(dtype: torch.dtype):
    """No count under a mean of zero: density 1 exactly, and a slope of -1."""
    mean = torch.zeros(2, 64, 64, dtype=dtype, requires_grad=True)
    dispersion = torch.ones(64, dtype=dtype, requires_grad=True)
    zero = torch.zeros(64, 64, dtype=dtype)
    log_prob = ops.negative_binomial_log_prob(zero, mean, dispersion)
    assert (log_prob == 0).all()
    by_mean, by_dispersion = torch.autograd.grad(log_prob.sum(), (mean, dispersion))
    assert (by_mean == -1).all()
    assert (by_dispersion == 0).all()


def test_a_negative_mean_or_count_shows_among_many():
    value, mean = torch.ones(64, 64), torch.ones(2, 64, 64)
    mean[1, 3, 5], value[7, 9] = -1.0, -2.5
    log_prob = ops.negative_binomial_log_prob(value, mean, torch.ones(64))
    assert log_prob[:, 7].isnan().all() and log_prob[1, 3].isnan()
    assert log_prob[0, 3].isfinite() and log_prob[:, 8].isfinite().all()
