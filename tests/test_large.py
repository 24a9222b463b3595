"""Tensors of more than 2^31 elements: the indices are of 64 bits."""

from __future__ import annotations

import os

import pytest
import torch
from op_samples import KEY
from op_table import DEVICES

from fastvi.ops import bernoulli_log_prob, gaussian_rsample, iwlb

pytestmark = pytest.mark.native
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


@on_devices
def test_bernoulli_log_prob(device: str):
    features = 512
    logits = torch.zeros(MORE // features, features, dtype=torch.bfloat16, device=device)
    logits[-1] = torch.linspace(-3, 3, features, device=device)
    value = (torch.arange(features, device=device) % 2).bfloat16()
    log_prob = bernoulli_log_prob(value, logits)
    torch.testing.assert_close(log_prob[-1:], bernoulli_log_prob(value, logits[-1:]))
    assert (log_prob[:-1] == log_prob[0]).all()
