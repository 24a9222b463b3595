"""bernoulli_sample: the samples themselves. Their log-probabilities are a row of the op table."""

from __future__ import annotations

import math

import pytest
import torch
from op_samples import KEY
from op_table import DEVICES, DTYPES, EMULATED

import fastvi
from fastvi.ops import bernoulli_log_prob, bernoulli_sample
from fastvi.ops._noise import standard_logistic

on_devices = pytest.mark.parametrize("device", DEVICES)
SHAPES = [
    pytest.param((5, 7, 13), id="odd"),
    pytest.param((1, 1, 1), id="one"),
    pytest.param((3, 2, 5), id="tail"),
    pytest.param((2, 1, 4099), id="wide"),
]


def key(device: str = "cpu") -> torch.Tensor:
    return torch.tensor(KEY, device=device)


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_samples_are_those_of_the_reference(shape, dtype: torch.dtype, device: str):
    if EMULATED and math.prod(shape) > 600:
        return
    samples, batch, features = shape
    logits = (2 * torch.randn(batch, features, dtype=torch.float64)).to(device, dtype)
    z, log_q = bernoulli_sample(logits, samples, key=key(device))
    expected, _ = bernoulli_sample.reference(logits, samples, key=key(device))
    assert z.dtype == dtype
    torch.testing.assert_close(z, expected, rtol=0, atol=0)
    own = logits.expand(shape).contiguous()
    per_sample, same = bernoulli_sample(own, key=key(device))
    torch.testing.assert_close((per_sample, same), (z, log_q), rtol=0, atol=0)
    torch.testing.assert_close(log_q, bernoulli_log_prob(z, logits))
    assert not z.requires_grad


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
def test_the_log_probability_of_each(shape, device: str):
    if EMULATED and math.prod(shape) > 600:
        return
    samples, batch, features = shape
    logits = torch.randn(batch, features, device=device)
    x, log_q = bernoulli_sample(logits, samples, key=key(device), event_dims=0)
    whole, _ = bernoulli_sample(logits, samples, key=key(device))
    torch.testing.assert_close(x, whole, rtol=0, atol=0)
    torch.testing.assert_close(log_q, bernoulli_log_prob(x, logits, event_dims=0))


@on_devices
def test_a_sample_depends_on_its_place_alone(device: str):
    logits = torch.randn(7, 13, device=device)
    whole = bernoulli_sample(logits, 9, key=key(device))
    parts = [
        bernoulli_sample(logits, size, key=key(device), sample_offset=start)
        for start, size in ((0, 4), (4, 1), (5, 4))
    ]
    for all_at_once, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces), all_at_once, rtol=0, atol=0)
    others = torch.randn(9, 7, 13, device=device)
    late, _ = bernoulli_sample(others[5:], key=key(device), sample_offset=5)
    torch.testing.assert_close(
        late, bernoulli_sample(others, key=key(device))[0][5:], rtol=0, atol=0
    )


def test_other_keys_give_other_samples():
    logits = torch.zeros(64)
    first, second = (bernoulli_sample(logits, 1, key=torch.tensor(k))[0] for k in (KEY, KEY[::-1]))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    drawn = bernoulli_sample(logits, 4)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(bernoulli_sample(logits, 4)[0], drawn, rtol=0, atol=0)


@pytest.mark.native
@pytest.mark.parametrize("logit", [-5.0, -0.7, 0.0, 2.0], ids=str)
def test_the_frequency_is_the_probability(logit: float):
    count = 2**20
    z, _ = bernoulli_sample(torch.full((count,), logit), 1, key=key())
    p = 1.0 / (1.0 + math.exp(-logit))
    # Five standard errors; the key is fixed.
    assert abs(z.double().mean().item() - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_neighbours_are_independent():
    z, _ = bernoulli_sample(torch.zeros(64), 4096 if not EMULATED else 64, key=key())
    z = 2 * z.double() - 1
    correlation = (z.T @ z) / len(z) - torch.eye(z.shape[-1])
    assert correlation.abs().max() < 6 / math.sqrt(len(z))


def test_the_noise_is_logistic():
    noise = standard_logistic(key(), 1, 1, 2**18).flatten()
    scipy_stats = pytest.importorskip("scipy.stats")
    assert scipy_stats.kstest(noise.numpy(), "logistic").pvalue > 1e-3


def test_certain_outcomes():
    z, log_q = bernoulli_sample(torch.tensor([60.0, -60.0]), 100, key=key())
    torch.testing.assert_close(z, torch.tensor([1.0, 0.0]).expand(100, 2))
    torch.testing.assert_close(log_q, torch.zeros(100))


def test_a_nan_shows():
    _, log_q = bernoulli_sample(torch.tensor([0.0, math.nan]), 2, key=key())
    assert log_q.isnan().all()


@pytest.mark.native
def test_threads_and_instruction_sets_do_not_matter(threads):
    logits = torch.randn(64, 200)
    runs = []
    for count in (1, 2):
        threads(count)
        runs.append(bernoulli_sample(logits, 50, key=key())[0])
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.native
def test_compile(fresh_compiler):
    def step(logits):
        z, log_q = bernoulli_sample(logits, 5, key=key())
        return z.sum() * log_q.sum()

    logits = torch.randn(7, 13, requires_grad=True)
    expected = torch.autograd.grad(step(logits), logits)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(logits), logits)
    torch.testing.assert_close(got, expected)


BAD = [
    pytest.param((3.0, 4), {}, TypeError, "logits to be a tensor, got float", id="no tensor"),
    pytest.param((torch.zeros(3).long(), 4), {}, TypeError, "floating|float32", id="integers"),
    pytest.param((torch.zeros(3), 0), {}, ValueError, "num_samples to be from 1", id="K=0"),
    pytest.param((torch.zeros(3),), {}, ValueError, "at least 2 dimension", id="no samples"),
    pytest.param((torch.zeros(()), 4), {}, ValueError, "at least 1 dimension", id="no features"),
    pytest.param(
        (torch.zeros(3), 4), {"sample_offset": -1}, ValueError, "sample_offset", id="offset"
    ),
    pytest.param(
        (torch.zeros(3), 4), {"key": torch.zeros(3).long()}, ValueError, "key to have", id="key"
    ),
    pytest.param(
        (torch.zeros(3), 4), {"event_dims": 2}, ValueError, "event_dims to be 0 or 1", id="event"
    ),
    pytest.param(
        (torch.full((3,), math.inf), 4), {"validate_args": True}, ValueError, "finite", id="inf"
    ),
]


@pytest.mark.parametrize(("arguments", "named", "error", "words"), BAD)
def test_bad_input(arguments, named, error, words):
    with pytest.raises(error, match=rf"bernoulli_sample: expected .*{words}"):
        fastvi.ops.bernoulli_sample(*arguments, **named)
