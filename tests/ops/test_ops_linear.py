"""The ops on a Linear: their blocks, their memory, and the sums of their gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from error_budget import assert_within_budget
from op_samples_linear import LINEAR_BERNOULLI_LOG_PROB
from op_table import DEVICES
from torch import Tensor
from torch.nn.functional import linear

from fastvi import ops

ROOT = Path(__file__).parents[2]
on_devices = pytest.mark.parametrize("device", DEVICES)


def draw(*rows: int, hidden: int, features: int, device: str = "cpu") -> dict[str, Tensor]:
    tensors = {
        "hidden": torch.randn(*rows, hidden),
        "weight": torch.randn(features, hidden) / hidden**0.5,
        "bias": torch.randn(features),
        "value": torch.rand(*rows[1:], features),
    }
    return {name: x.to(device).requires_grad_() for name, x in tensors.items()}


def assert_linear_within_budget(function, upstream: Tensor, tensors, dtype: torch.dtype) -> None:
    op = LINEAR_BERNOULLI_LOG_PROB
    assert_within_budget(
        lambda x: {"output": function(**x)},
        lambda x: {"output": function.reference(**x)},
        tensors,
        dtype,
        {"output": upstream},
        computes_in=op.computes_in(dtype),
        roundings=op.roundings_of(tensors),
    )


# ---- blocks -------------------------------------------------------------------------------------
# A block of outputs holds 2 MiB on a CPU: 668 rows of 784 features in float32.
SHAPES = [
    pytest.param((211, 19), 784, id="several samples in a block, and a remainder"),
    pytest.param((1499,), 784, id="no batch, and a remainder"),
    pytest.param((2, 1499), 784, id="a batch of several blocks"),
    pytest.param((2, 3), 300_000, id="a row in a block"),
    pytest.param((2, 2), 600_000, id="a row larger than a block"),
]


@pytest.mark.slow
@pytest.mark.native
@on_devices
@pytest.mark.parametrize(("rows", "features"), SHAPES)
def test_blocks_do_not_show(rows: tuple[int, ...], features: int, device: str):
    tensors = draw(*rows, hidden=5, features=features, device=device)
    upstream = torch.randn(rows).bfloat16().to(device)
    function = ops.linear_bernoulli_log_prob
    assert_linear_within_budget(function, upstream, tensors, torch.float32)


@pytest.mark.slow
@pytest.mark.native
def test_the_spread_has_its_gradient_from_every_block():
    tensors = draw(211, 19, hidden=5, features=784)
    tensors["log_scale"] = (0.1 * torch.randn(19, 1)).requires_grad_()
    upstream = torch.randn(211, 19).bfloat16()
    function = ops.linear_gaussian_log_prob
    assert_linear_within_budget(function, upstream, tensors, torch.float32)


# ---- low precision ------------------------------------------------------------------------------
@pytest.mark.native
@on_devices
def test_gradients_of_the_parameters_are_not_added_up_in_bfloat16(device: str):
    """Thirty equal blocks: a running sum in bfloat16 would be off by several units."""
    rows, features = 80_000, 784
    hidden = torch.ones(rows, 4, dtype=torch.bfloat16, device=device)
    weight = torch.zeros(features, 4, dtype=torch.bfloat16, device=device, requires_grad=True)
    bias = torch.zeros(features, dtype=torch.bfloat16, device=device, requires_grad=True)
    value = torch.ones(features, dtype=torch.bfloat16, device=device)
    log_prob = ops.linear_bernoulli_log_prob(hidden, weight, bias, value)
    for gradient in torch.autograd.grad(log_prob.sum(), (weight, bias)):
        true = torch.full_like(gradient, 0.5 * rows, dtype=torch.float64)
        unit = torch.finfo(torch.bfloat16).eps * 0.5 * rows
        torch.testing.assert_close(gradient.double(), true, rtol=0, atol=unit)


@pytest.mark.slow
@pytest.mark.native
@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_low_precision_over_many_blocks(dtype: torch.dtype, device: str):
    """Each block's product is rounded, their sum is not."""
    tensors = draw(400, 20, hidden=30, features=784, device=device)
    tensors = {name: x.detach().to(dtype).requires_grad_() for name, x in tensors.items()}
    upstream = torch.randn(400, 20).bfloat16().to(device)
    function = ops.linear_bernoulli_log_prob
    assert_linear_within_budget(function, upstream, tensors, dtype)


# ---- what is not asked for ----------------------------------------------------------------------
@on_devices
def test_frozen_parameters(device: str):
    tensors = draw(5, 7, hidden=11, features=13, device=device)
    for name in ("weight", "bias"):
        tensors[name].requires_grad_(False)
    ours, theirs = (
        torch.autograd.grad(function(**tensors).sum(), tensors["hidden"])
        for function in (ops.linear_bernoulli_log_prob, ops.linear_bernoulli_log_prob.reference)
    )
    torch.testing.assert_close(ours, theirs)


@on_devices
def test_the_ops_that_it_joins(device: str):
    tensors = draw(5, 7, hidden=11, features=13, device=device)
    hidden, weight, bias, value = tensors.values()
    outputs = linear(hidden, weight, bias)
    torch.testing.assert_close(
        ops.linear_bernoulli_log_prob(**tensors), ops.bernoulli_log_prob(value, outputs)
    )
    scale = torch.full((13,), 0.5, device=device)
    torch.testing.assert_close(
        ops.linear_gaussian_log_prob(**tensors, scale=scale),
        ops.gaussian_log_prob(value, outputs, scale=scale),
    )
    torch.testing.assert_close(
        ops.linear_poisson_log_prob(**tensors), ops.poisson_log_prob(value, log_rate=outputs)
    )


# ---- memory -------------------------------------------------------------------------------------
MEASURE = """
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, linear
from benchmarks.worker import peak_cpu
from fastvi.ops import linear_bernoulli_log_prob

hidden = torch.randn(1000, 20, 200, requires_grad=True)
weight = (0.05 * torch.randn(784, 200)).requires_grad_()
bias = torch.zeros(784, requires_grad=True)
value = (torch.rand(20, 784) > 0.5).float()
upstream = torch.randn(1000, 20)

def eager(hidden, weight, bias, value):
    logits = linear(hidden, weight, bias)
    target = value.expand_as(logits)
    return -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

def run(function):
    leaves = (hidden, weight, bias)
    return lambda: torch.autograd.grad(function(*leaves, value), leaves, upstream)

print(*(peak_cpu(run(function)) for function in (linear_bernoulli_log_prob, eager)))
"""


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_an_eighth_of_eager():
    """Forward and backward in a fresh process, with the gradient of the hidden units counted."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    ours, eager = map(int, done.stdout.split())
    assert eager > 2 * 1000 * 20 * 784 * 4, "eager holds the logits and their gradient"
    assert ours <= eager / 8, f"{ours / 2**20:.0f} MiB, eager {eager / 2**20:.0f} MiB"
