"""Tensors of more than 2^31 elements: the indices are of 64 bits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from op_samples import KEY
from op_table import DEVICES
from torch import Tensor

from fastvi.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_log_prob,
    gaussian_rsample,
    iwlb,
    laplace_log_prob,
    leave_one_out,
    linear_bernoulli_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)

pytestmark = [pytest.mark.native, pytest.mark.slow]
on_devices = pytest.mark.parametrize("device", DEVICES)
MORE = 2**31 + 2**20
GIB = 2**30


@pytest.fixture(autouse=True)
def room(request):
    """Twice the largest tensor and then some, or the test is skipped."""
    if request.node.callspec.params["device"] == "cuda":
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 12 * GIB:
        pytest.skip(f"needs 12 GiB of free memory, has {free / GIB:.0f}")


@on_devices
def test_iwlb(device: str):
    batch = 64
    log_w = torch.full((MORE // batch, batch), -7.0, dtype=torch.bfloat16, device=device)
    log_w[-1, -1] = 50.0
    bound = iwlb(log_w)
    torch.testing.assert_close(bound[:-1], torch.full_like(bound[:-1], -7.0), rtol=0, atol=0)
    expected = 50.0 - torch.tensor(MORE / batch, device=device).log()
    torch.testing.assert_close(bound[-1], expected)


@on_devices
def test_gaussian_rsample(device: str):
    """The last samples are those that a call for them alone gives."""
    features, last = 64, 5
    num_samples = MORE // features
    loc = torch.linspace(-1, 1, features, dtype=torch.bfloat16, device=device)
    key = torch.tensor(KEY, device=device)

    def draw(count: int, offset: int) -> tuple[torch.Tensor, ...]:
        return gaussian_rsample(
            loc, log_var=0.5 * loc, num_samples=count, key=key, sample_offset=offset
        )

    ends = [out[-last:].clone() for out in draw(num_samples, 0)]
    torch.testing.assert_close(ends, list(draw(last, num_samples - last)), rtol=0, atol=0)


# Each from the value and its first parameter; what else there is serves all features.
DENSITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bernoulli": bernoulli_log_prob,
    "gaussian": lambda x, loc: gaussian_log_prob(x, loc, scale=loc.new_ones(())),
    "laplace": lambda x, loc: laplace_log_prob(x, loc, scale=loc.new_ones(())),
    "poisson": lambda x, log_rate: poisson_log_prob(x, log_rate=log_rate),
    "negative_binomial": lambda x, mean: negative_binomial_log_prob(x, 4 + mean, mean.new_ones(())),
    "zero_inflated": lambda x, gate: zero_inflated_negative_binomial_log_prob(
        x, gate.new_ones(()), gate.new_ones(()), gate
    ),
}


@on_devices
@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES.keys())
def test_a_log_density(density: Callable[[Tensor, Tensor], Tensor], device: str):
    features = 512
    parameter = torch.zeros(MORE // features, features, dtype=torch.bfloat16, device=device)
    parameter[-1] = torch.linspace(-3, 3, features, device=device)
    value = (torch.arange(features, device=device) % 2).bfloat16()
    log_prob = density(value, parameter)
    torch.testing.assert_close(log_prob[-1:], density(value, parameter[-1:]))
    assert (log_prob[:-1] == log_prob[0]).all()
    assert log_prob[-1] != log_prob[0]


@on_devices
def test_categorical_log_prob(device: str):
    classes = 512
    logits = torch.zeros(MORE // classes, classes, dtype=torch.bfloat16, device=device)
    logits[-1] = torch.linspace(-3, 3, classes, device=device)
    value = torch.full((len(logits),), classes - 1, device=device)
    log_prob = categorical_log_prob(value, logits)
    torch.testing.assert_close(log_prob[-1:], categorical_log_prob(value[-1:], logits[-1:]))
    assert (log_prob[:-1] == log_prob[0]).all()


@on_devices
def test_leave_one_out(device: str):
    """One sample outweighs all the others: without it the bound is theirs."""
    if device == "cpu" and os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 20 * GIB:
        pytest.skip("needs 20 GiB of free memory: the result is float32")
    batch, num_samples = 64, MORE // 64
    log_w = torch.full((num_samples, batch), -7.0, dtype=torch.bfloat16, device=device)
    log_w[-1] = 40.0
    bound = leave_one_out(log_w)
    torch.testing.assert_close(bound[-1], torch.full_like(bound[-1], -7.0), rtol=0, atol=1e-5)
    expected = 40.0 - math.log(num_samples - 1)
    torch.testing.assert_close(bound[:-1:4099], torch.full_like(bound[:-1:4099], expected))


@on_devices
def test_linear_bernoulli_log_prob(device: str):
    """The logits, which never exist, would have more than 2^31 elements."""
    features = 2048
    rows = MORE // features
    hidden = torch.zeros(rows, 1, 8, dtype=torch.bfloat16, device=device)
    hidden[-1] = 1.0
    weight = torch.linspace(-1, 1, features * 8, device=device).bfloat16().reshape(features, 8)
    value = (torch.arange(features, device=device) % 2).bfloat16()[None]
    log_prob = linear_bernoulli_log_prob(hidden, weight, None, value)
    alone = linear_bernoulli_log_prob(hidden[-1:], weight, None, value)
    torch.testing.assert_close(log_prob[-1:], alone, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(log_prob[0].item(), -features * math.log(2.0), rtol=1e-5, atol=0)
    assert (log_prob[:-1] == log_prob[0]).all()
