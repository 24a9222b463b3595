"""laplace_rsample: the noise. Values and gradients are a row of the op table."""

from __future__ import annotations

import math

import pytest
import torch
from op_samples import KEY
from op_table import DEVICES, EMULATED

import fastvi
from fastvi.ops import laplace_log_prob, laplace_rsample
from fastvi.ops._noise import standard_laplace

on_devices = pytest.mark.parametrize("device", DEVICES)
SHAPES = [
    pytest.param((5, 7, 13), id="odd"),
    pytest.param((1, 1, 1), id="one"),
    pytest.param((3, 2, 8), id="whole quads"),
    pytest.param((2, 1, 4099), id="wide"),
]


def key(device: str = "cpu") -> torch.Tensor:
    return torch.tensor(KEY, device=device)


def noise(num_samples: int, batch: int, features: int, dtype=torch.float32, device="cpu"):
    zero = torch.zeros(batch, features, dtype=dtype, device=device)
    return laplace_rsample(zero, log_scale=zero, num_samples=num_samples, key=key(device))[0]


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_noise_is_that_of_the_reference(shape, dtype: torch.dtype, device: str):
    if EMULATED and math.prod(shape) > 600:
        return
    found = noise(*shape, dtype, device)
    exact = standard_laplace(key(device), *shape)
    # A word near the middle is rounded before its logarithm is taken.
    atol = 2.0**-24 if dtype == torch.float32 else 2.0**-52
    torch.testing.assert_close(found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=atol)


@pytest.mark.native
def test_the_noise_is_laplace_in_both_tails():
    stats = pytest.importorskip("scipy.stats")
    x = noise(1, 2**10, 2**10).flatten().double()
    assert stats.kstest(x.numpy(), "laplace").pvalue > 1e-3
    # Below -t and above t lie e^-t / 2 each; five standard errors.
    for t in (2.0, 5.0, 8.0):
        share = 0.5 * math.exp(-t)
        for side in (x, -x):
            found = (side > t).double().mean().item()
            assert abs(found - share) < 5 * math.sqrt(share / len(x))
    assert x.abs().max() > 11


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_density_is_that_of_the_samples(shape, dtype: torch.dtype, device: str):
    if EMULATED and math.prod(shape) > 600:
        return
    samples, batch, features = shape
    loc = torch.randn(batch, features, dtype=dtype, device=device)
    scale = torch.rand(batch, features, dtype=dtype, device=device) + 0.5
    for event_dims in (0, 1):
        z, log_q = laplace_rsample(
            loc, scale=scale, num_samples=samples, key=key(device), event_dims=event_dims
        )
        exact = laplace_log_prob(z.double(), loc.double(), scale=scale.double(), event_dims=1)
        total = log_q.double().sum(-1) if event_dims == 0 else log_q.double()
        torch.testing.assert_close(total, exact, rtol=1e-5, atol=1e-5)


@on_devices
def test_a_sample_depends_on_its_place_alone(device: str):
    loc, scale = torch.randn(7, 13, device=device), torch.rand(7, 13, device=device) + 0.5
    for event_dims in (0, 1):

        def draw(num_samples: int, start: int, event_dims: int = event_dims):
            return laplace_rsample(
                loc,
                scale=scale,
                num_samples=num_samples,
                key=key(device),
                sample_offset=start,
                event_dims=event_dims,
            )

        parts = [draw(size, start) for start, size in ((0, 4), (4, 1), (5, 4))]
        for all_at_once, pieces in zip(draw(9, 0), zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(torch.cat(pieces), all_at_once, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.native
def test_compile(fresh_compiler):
    def step(loc, log_scale):
        z, log_q = laplace_rsample(loc, log_scale=log_scale, num_samples=5, key=key())
        return (z.sum(-1) * log_q).sum()

    inputs = [torch.randn(7, 13, requires_grad=True) for _ in range(2)]
    expected = torch.autograd.grad(step(*inputs), inputs)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(*inputs), inputs)
    torch.testing.assert_close(got, expected)


def _bad(error, words: str, id: str, **named):
    return pytest.param(named, error, words, id=id)


BAD = [
    _bad(TypeError, "loc to be a tensor, got float", "no tensor", loc=3.0),
    _bad(TypeError, "float32", "integers", loc=torch.zeros(3).long()),
    _bad(TypeError, "dtype of loc", "two types", scale=torch.ones(3).double()),
    _bad(ValueError, "num_samples to be from 1", "K=0", num_samples=0),
    _bad(ValueError, "at least 1 dimension", "no features", loc=torch.zeros(())),
    _bad(
        ValueError, "exactly one of scale and log_scale, got both", "two", log_scale=torch.ones(3)
    ),
    _bad(ValueError, "exactly one of scale and log_scale, got neither", "none", scale=None),
    _bad(ValueError, "event_dims to be 0 or 1", "event", event_dims=2),
    _bad(ValueError, "sample_offset", "offset", sample_offset=-1),
    _bad(ValueError, "to broadcast with loc", "shapes", scale=torch.ones(4)),
    _bad(ValueError, "positive", "negative", scale=-torch.ones(3), validate_args=True),
]


@pytest.mark.parametrize(("named", "error", "words"), BAD)
def test_bad_input(named, error, words):
    given = {"loc": torch.zeros(3), "scale": torch.ones(3), "num_samples": 4} | named
    with pytest.raises(error, match=rf"laplace_rsample: expected .*{words}"):
        fastvi.ops.laplace_rsample(given.pop("loc"), **given)
