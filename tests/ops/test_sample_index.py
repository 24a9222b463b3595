"""Samples by their numbers: those of the whole draw, to the bit, for every op that has a key."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_samples import KEY
from op_samples_draws import numbers, taken
from op_table import DEVICES
from torch import Tensor

from fastvi import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
rsample = sys.modules["fastvi.ops.gaussian_rsample"].rsample


def key(device: str = "cpu") -> Tensor:
    return torch.tensor(KEY, device=device)


# ---- a draw of each op: parameters, and a function of them --------------------------------------
def _gaussian(loc: Tensor, spread: Tensor, **named: Any):
    return ops.gaussian_rsample(loc, log_var=spread, **named)


def _gaussian_with_prior(loc: Tensor, spread: Tensor, **named: Any):
    return ops.gaussian_rsample(loc, log_scale=spread, prior=(0.5 * loc, spread), **named)


def _path(loc: Tensor, spread: Tensor, **named: Any):
    return ops.gaussian_rsample(loc, log_scale=spread, path_only=True, **named)


def _gaussian_each(loc: Tensor, spread: Tensor, **named: Any):
    return ops.gaussian_rsample(loc, scale=spread.exp(), event_dims=0, **named)[:2]


def _laplace(loc: Tensor, spread: Tensor, **named: Any):
    return ops.laplace_rsample(loc, log_scale=spread, **named)


def _laplace_each(loc: Tensor, spread: Tensor, **named: Any):
    return ops.laplace_rsample(loc, scale=spread.exp(), event_dims=0, **named)


def _bernoulli(logits: Tensor, spread: Tensor, **named: Any):
    return ops.bernoulli_sample(logits + spread, **named)


def _bernoulli_each(logits: Tensor, spread: Tensor, **named: Any):
    return ops.bernoulli_sample(logits + spread, event_dims=0, **named)


def _categorical(logits: Tensor, spread: Tensor, **named: Any):
    return ops.categorical_sample(logits + spread, **named)


Draw = Callable[..., tuple[Tensor, ...]]
DRAWS = {
    "gaussian": _gaussian,
    "gaussian, prior": _gaussian_with_prior,
    "gaussian, path": _path,
    "gaussian, of each": _gaussian_each,
    "laplace": _laplace,
    "laplace, of each": _laplace_each,
    "bernoulli": _bernoulli,
    "bernoulli, of each": _bernoulli_each,
    "categorical": _categorical,
}
draws = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


def parameters(*shape: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    made = torch.Generator().manual_seed(5)
    normal = [torch.randn(shape, generator=made, dtype=torch.float64) for _ in range(2)]
    return [(x * width).to(device, dtype) for x, width in zip(normal, (1.0, 0.5), strict=True)]


SHAPES = [
    pytest.param((7, 13), id="odd"),
    pytest.param((65, 2), id="two features"),
    pytest.param((9, 1), id="one feature"),
    pytest.param((3, 8), id="whole quads"),
    pytest.param((1, 4099), id="wide"),
    pytest.param((2, 3, 5), id="batch of two dimensions"),
    pytest.param((13,), id="no batch"),
    pytest.param((0, 5), id="empty batch"),
    pytest.param((300, 50), id="several tiles", marks=pytest.mark.native),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@on_devices
@draws
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_samples_are_those_of_the_whole_draw(
    shape: tuple[int, ...], dtype: torch.dtype, draw: Draw, device: str
):
    given = parameters(*shape, dtype=dtype, device=device)
    whole = draw(*given, num_samples=9, key=key(device), sample_offset=2**33)
    index = numbers(5, *shape[:-1]).to(device)
    part = draw(*given, num_samples=5, key=key(device), sample_offset=2**33, sample_index=index)
    torch.testing.assert_close(list(part), taken(whole, index), rtol=0, atol=0)


@on_devices
@draws
def test_more_samples_than_the_whole_draw_has(draw: Draw, device: str):
    """As often as one likes: so many that they fill several runs of noise and splits of K."""
    given = parameters(2, 3, dtype=torch.float32, device=device)
    whole = draw(*given, num_samples=3, key=key(device))
    index = numbers(1031, 2, up_to=3).to(device)
    part = draw(*given, num_samples=1031, key=key(device), sample_index=index)
    torch.testing.assert_close(list(part), taken(whole, index), rtol=0, atol=0)


@on_devices
@draws
def test_a_range_of_numbers_is_a_range(draw: Draw, device: str):
    """Forward and backward, to the bit; of any strides."""
    shape = (7, 13)
    runs = []
    for index in (
        None,
        torch.arange(20, device=device)[:, None].expand(20, 7),
        torch.arange(20, device=device).repeat(7, 1).T,
        torch.arange(20, device=device)[:, None].repeat(1, 15)[:, 1::2],
    ):
        given = [x.requires_grad_() for x in parameters(*shape, dtype=torch.float32, device=device)]
        offset = 3
        out = draw(
            *given, num_samples=20, key=key(device), sample_offset=offset, sample_index=index
        )
        loss = sum((x.double().sin()).sum() for x in out if x.is_floating_point())
        runs.append([*(x.detach() for x in out), *torch.autograd.grad(loss, given)])
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=0, atol=0)


def test_large_numbers_are_as_large_offsets():
    loc = torch.zeros(3, 6)
    for number in (2**31, 2**32 - 1, 2**40 + 3, 2**60):
        index = torch.full((1, 3), number)
        z = [
            ops.gaussian_rsample(loc, log_var=loc, key=key(), num_samples=1, **named)[0]
            for named in ({"sample_index": index}, {"sample_offset": number})
        ]
        torch.testing.assert_close(*z, rtol=0, atol=0)


# ---- gradients ----------------------------------------------------------------------------------
@on_devices
@draws
@pytest.mark.parametrize("shape", [(7, 13), (1, 4099), (13,)], ids=["odd", "wide", "no batch"])
def test_gradients_are_those_of_the_rows_that_are_taken(
    shape: tuple[int, ...], draw: Draw, device: str
):
    """Autograd through plain indexing into the whole draw adds up rows that come more than once."""
    index = numbers(40, *shape[:-1]).to(device)
    gradients = []
    sent = None
    for is_whole in (True, False):
        given = [x.requires_grad_() for x in parameters(*shape, dtype=torch.float64, device=device)]
        if is_whole:
            out = taken(draw(*given, num_samples=9, key=key(device)), index)
        else:
            out = draw(*given, num_samples=40, key=key(device), sample_index=index)
        out = [x for x in out if x.requires_grad]
        sent = sent or [torch.randn_like(x) for x in out]
        gradients.append(torch.autograd.grad(out, given, sent))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


@on_devices
@pytest.mark.parametrize("gradient", ["path", "path_weighted", "total"])
def test_the_backward_by_itself(gradient: str, device: str):
    """The op that a streamed bound calls: given weights, and those of the gradients of log q."""
    loc, log_var, p_loc, p_log_var = (
        x.requires_grad_()
        for _ in range(2)
        for x in parameters(7, 13, dtype=torch.float64, device=device)
    )
    index = numbers(5, 7).to(device)
    out = rsample(
        loc, log_var, "log_var", 5, key(device), 2, (p_loc, p_log_var), gradient, 1, index
    )
    sent = [torch.randn_like(x) for x in out]
    expected = torch.autograd.grad(out, (loc, log_var, p_loc, p_log_var), sent)
    weight = sent[1] / sent[1].sum(0) if gradient == "path_weighted" else None
    for given in (weight, None):
        got = torch.ops.fastvi._gaussian_rsample_backward(
            *sent, given, *(x.detach() for x in (loc, log_var)), "log_var", key(device), 5, 2,
            p_loc.detach(), p_log_var.detach(), gradient, 1, index,
        )  # fmt: skip
        torch.testing.assert_close(got, expected)
    # In closed form, from the samples that the numbers stand for.
    whole = ops.gaussian_rsample(
        torch.zeros_like(loc), log_var=torch.zeros_like(loc), num_samples=9, key=key(device),
        sample_offset=2,
    )  # fmt: skip
    (eps,) = taken(whole[:1], index)
    z = loc.detach() + (0.5 * log_var.detach()).exp() * eps
    torch.testing.assert_close(out[0], z)
    by_prior = sent[2][..., None] * (z - p_loc.detach()) * (-p_log_var.detach()).exp()
    torch.testing.assert_close(expected[2], by_prior.sum(0))


@pytest.mark.slow
@pytest.mark.native
def test_compile(fresh_compiler):
    def step(loc, log_var, index):
        z, log_q, log_p = ops.gaussian_rsample(
            loc, log_var=log_var, key=key(), sample_index=index.sort(0).values
        )
        return (z.sum(-1) * (log_q - log_p)).sum()

    inputs = [x.requires_grad_() for x in parameters(7, 13, dtype=torch.float32, device="cpu")]
    for count in (5, 6):
        index = numbers(count, 7)
        expected = torch.autograd.grad(step(*inputs, index), inputs)
        compiled = torch.compile(step, fullgraph=True)
        got = torch.autograd.grad(compiled(*inputs, index), inputs)
        torch.testing.assert_close(got, expected)


@pytest.mark.native
def test_vmap_over_the_numbers():
    loc, log_var = parameters(7, 13, dtype=torch.float64, device="cpu")
    many = numbers(3, 5, 7)

    def draw(index: Tensor) -> tuple[Tensor, ...]:
        return ops.gaussian_rsample(loc, log_var=log_var, key=key(), sample_index=index)

    expected = [torch.stack(x) for x in zip(*map(draw, many), strict=True)]
    torch.testing.assert_close(list(torch.func.vmap(draw)(many)), expected)


@pytest.mark.native
@draws
def test_number_of_threads(draw: Draw, threads):
    given = parameters(64, 20, dtype=torch.float32, device="cpu")
    index = numbers(100, 64)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(draw(*given, num_samples=100, key=key(), sample_index=index))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=0, atol=0)


# ---- what is refused ----------------------------------------------------------------------------
INDEX = numbers(5, 4)
BAD = [
    pytest.param([[0] * 4] * 5, TypeError, "to be a tensor, got list", id="a list"),
    pytest.param(INDEX.int(), TypeError, "to be an int64 tensor, got Int", id="int32"),
    pytest.param(INDEX.float(), TypeError, "to be an int64 tensor, got Float", id="floats"),
    pytest.param(INDEX > 3, TypeError, "to be an int64 tensor, got Bool", id="a mask"),
    pytest.param(INDEX[0], ValueError, r"to have shape \[5, 4\], got \[4\]", id="one sample"),
    pytest.param(INDEX[:, :1], ValueError, r"to have shape \[5, 4\], got \[5, 1\]", id="one datum"),
    pytest.param(INDEX[:3], ValueError, r"to have shape \[5, 4\], got \[3, 4\]", id="another K"),
    pytest.param(
        INDEX[:, :, None], ValueError, r"have shape \[5, 4\], got \[5, 4, 1\]", id="a feature"
    ),
    pytest.param(INDEX - 1, ValueError, "to be at least 0, got -1", id="negative"),
    pytest.param(INDEX + 2**62, ValueError, f"to be at most {2**61 - 2} ", id="rows beyond 2^63"),
    pytest.param(
        INDEX.to("meta"), ValueError, "to be on the device of .*, cpu, got meta", id="meta"
    ),
    pytest.param(
        INDEX.to_sparse(), TypeError, "to be a dense tensor, got torch.sparse", id="sparse"
    ),
]
OPS = {
    "gaussian_rsample": _gaussian,
    "laplace_rsample": _laplace,
    "bernoulli_sample": _bernoulli,
    "categorical_sample": _categorical,
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("index", "error", "words"), BAD)
def test_bad_input(index: Any, error: type[Exception], words: str, op: str):
    given = parameters(4, 3, dtype=torch.float32, device="cpu")
    with pytest.raises(error, match=f"^{op}: expected sample_index .*{words}"):
        OPS[op](*given, num_samples=5, key=key(), sample_index=index)


@pytest.mark.parametrize("op", [name for name in OPS if name.endswith("rsample")])
def test_the_number_of_samples_may_be_that_of_the_numbers(op: str):
    given = parameters(4, 3, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(
        OPS[op](*given, key=key(), sample_index=INDEX),
        OPS[op](*given, key=key(), sample_index=INDEX, num_samples=5),
    )
    for index, words in (
        (INDEX[0, 0], r"sample_index to have shape \(K, \*batch\), got \[\]"),
        (INDEX[:0], r"sample_index.shape\[0\] to be from 1 to .*, got 0"),
    ):
        with pytest.raises(ValueError, match=f"{op}: expected {words}"):
            OPS[op](*given, key=key(), sample_index=index)
    with pytest.raises(TypeError, match=f"{op}: expected num_samples to be an int, got NoneType"):
        OPS[op](*given, key=key())


@pytest.mark.native
@pytest.mark.parametrize("op", OPS)
def test_validate_args_looks_at_the_numbers(op: str):
    """Where no kernel of a CPU does: on a GPU, or in plain PyTorch as here."""
    loc, spread = parameters(4, 3, dtype=torch.float32, device="cpu")

    def log_density(loc: Tensor) -> Tensor:
        named = {"num_samples": 5, "sample_index": INDEX - 1, "validate_args": True}
        return OPS[op](loc, spread, key=key(), **named)[1].sum()

    with pytest.raises(ValueError, match=f"{op}: expected sample_index to be at least 0, got -1"):
        torch.func.grad(log_density)(loc)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        pytest.param({"prior": (torch.zeros(3), torch.zeros(3))}, "with a prior", id="prior"),
        pytest.param({"path_only": True}, "with a prior or path_only", id="path"),
    ],
)
def test_densities_of_each_have_no_prior(named: dict[str, Any], words: str):
    loc = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=f"gaussian_rsample: expected event_dims to be 1 {words}"):
        ops.gaussian_rsample(loc, log_var=loc, num_samples=5, event_dims=0, **named)
    with pytest.raises(ValueError, match="gaussian_rsample: expected event_dims to be 0 or 1"):
        ops.gaussian_rsample(loc, log_var=loc, num_samples=5, event_dims=2)
