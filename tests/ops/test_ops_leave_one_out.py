"""The bound without each sample, against the [K, K] form that says what it is."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from op_table import DEVICES, EMULATED
from torch import Tensor

import fastvi
from fastvi.ops import leave_one_out

on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)
LONG = 65 if EMULATED else 301


def dense(log_w: Tensor) -> Tensor:
    """Every row without its diagonal, written out: K times the memory."""
    num_samples = log_w.shape[0]
    itself = torch.eye(num_samples, dtype=torch.bool, device=log_w.device)
    itself = itself.view(num_samples, num_samples, *[1] * (log_w.ndim - 1))
    others = log_w.expand(num_samples, *log_w.shape).masked_fill(itself, -torch.inf)
    return torch.logsumexp(others, 1) - math.log(num_samples - 1)


def with_gradient(function, log_w: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = log_w.detach().clone().requires_grad_()
    out = function(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, grad.to(out.dtype))[0]


def _one_dominates(x: Tensor) -> Tensor:
    x[3] += 40.0
    return x


def _one_drowns_the_others(x: Tensor) -> Tensor:
    x[3] += 5000.0
    return x


def _two_dominate(x: Tensor) -> Tensor:
    x[2:4] = x[2:4] + 40.0
    return x


def _two_are_equal(x: Tensor) -> Tensor:
    x[2:4] = 40.0
    return x


WEIGHTS = {
    "normal": lambda x: x,
    "wide": lambda x: 10.0 * x,
    "one dominates": _one_dominates,
    "one drowns the others": _one_drowns_the_others,
    "two dominate": _two_dominate,
    "two are equal": _two_are_equal,
    "equal": lambda x: torch.full_like(x, -3.3),
    "near -1e5": lambda x: x - 1e5,
    "-inf scattered": lambda x: x.masked_fill(x > 0.5, -torch.inf),
}


# ---- against the definition ---------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("shape", [(5,), (4, 3), (33, 17), (LONG, 1), (LONG, 2, 3)], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_dense_form(weights: str, shape: tuple[int, ...], device: str):
    """Values and gradients in float64; 1e-10 of near -1e5 is the rounding of the input."""
    log_w = WEIGHTS[weights](torch.randn(shape, dtype=torch.float64)).to(device)
    grad = torch.randn(shape, dtype=torch.float64, device=device)
    out, gradient = with_gradient(leave_one_out, log_w, grad)
    expected, expected_gradient = with_gradient(dense, log_w, grad)
    tight = {"rtol": 1e-12, "atol": 1e-9 if weights == "near -1e5" else 1e-12}
    torch.testing.assert_close(out, expected, **tight)
    torch.testing.assert_close(gradient, expected_gradient, **tight)


@pytest.mark.slow
@on_devices
@pytest.mark.parametrize("num_samples", [2, 3, 64, 65, 129, LONG])
@pytest.mark.parametrize("batch", [1, 2, 31, 257])
def test_around_the_cuts_of_the_reduction(batch: int, num_samples: int, device: str):
    if EMULATED and num_samples * batch > 3000:
        pytest.skip("too many threads to emulate")
    log_w = 3 * torch.randn(num_samples, batch, dtype=torch.float64, device=device)
    grad = torch.randn_like(log_w)
    torch.testing.assert_close(
        with_gradient(leave_one_out, log_w, grad), with_gradient(dense, log_w, grad)
    )


# ---- what a difference would lose ---------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("gap", [10.0, 20.0, 50.0, 1000.0], ids=lambda gap: f"{gap:g} nats")
def test_the_dominating_sample_keeps_the_digits_of_the_others(gap: float, device: str):
    """S - w_k in float32 has lost half of them at 10 nats, and all at 20."""
    others = torch.randn(LONG, 4)
    log_w = torch.cat([others, torch.full((1, 4), gap + 3.0)]).to(device)
    exact = torch.logsumexp(others.double(), 0) - math.log(LONG)
    found = leave_one_out(log_w)[-1].cpu().double()
    assert (found - exact).abs().max() <= 4 * torch.finfo(torch.float32).eps * exact.abs().max()
    weights = torch.exp(log_w - log_w.amax(0))
    by_difference = torch.log(weights.sum(0) - weights[-1]) + log_w[-1] - math.log(LONG)
    assert not ((by_difference.cpu() - exact).abs() < 1e-5).all()


@on_devices
def test_a_gradient_that_dominates_does_not_drown_the_others(device: str):
    """One sample's own signal is not in its gradient: what is large there must not round it."""
    log_w = torch.randn(33, 5, device=device)
    grad = torch.randn(33, 5, device=device)
    grad[7] = 1e8
    _, gradient = with_gradient(leave_one_out, log_w, grad)
    _, exact = with_gradient(dense, log_w.double(), grad.double())
    assert exact[7].abs().max() < 1.0
    torch.testing.assert_close(gradient[7].double(), exact[7], rtol=1e-4, atol=1e-6)


@on_devices
@in_dtypes
@pytest.mark.parametrize("value", [-1e5, -3.3, 0.0, 1e4])
def test_equal_weights_give_their_value(value: float, dtype: torch.dtype, device: str):
    log_w = torch.full((127, 5), value, dtype=dtype, device=device)
    out, gradient = with_gradient(leave_one_out, log_w, torch.ones_like(log_w))
    assert torch.equal(out, log_w)
    torch.testing.assert_close(gradient, torch.ones_like(log_w))


@on_devices
@in_dtypes
def test_two_samples_are_each_others(dtype: torch.dtype, device: str):
    log_w = 30 * torch.randn(2, 100, dtype=dtype, device=device)
    grad = torch.randn_like(log_w)
    out, gradient = with_gradient(leave_one_out, log_w, grad)
    torch.testing.assert_close(out, log_w.flip(0))
    torch.testing.assert_close(gradient, grad.flip(0))


@on_devices
@pytest.mark.parametrize("c", [4096.0, -65536.0])
def test_adding_a_constant_adds_it(c: float, device: str):
    log_w = torch.round(torch.randn(101, 7, device=device) * 64) / 64
    grad = torch.randn(101, 7, device=device)
    out, gradient = with_gradient(leave_one_out, log_w, grad)
    moved, moved_gradient = with_gradient(leave_one_out, log_w + c, grad)
    assert torch.equal(gradient, moved_gradient)
    ulp = torch.finfo(torch.float32).eps * (abs(c) + 8.0)
    assert ((moved.double() - c) - out.double()).abs().max() <= ulp


# ---- guards -------------------------------------------------------------------------------------
@on_devices
@in_dtypes
@pytest.mark.parametrize("num_samples", [2, 33, LONG])
@pytest.mark.parametrize("one", [False, True], ids=["alone", "in a batch"])
def test_a_column_of_minus_infinity(one: bool, num_samples: int, dtype: torch.dtype, device: str):
    log_w = torch.randn(num_samples, 5 if one else 1, dtype=dtype, device=device)
    log_w[:, -1] = -torch.inf
    for grad in (torch.randn_like(log_w), torch.full_like(log_w, torch.nan)):
        out, gradient = with_gradient(leave_one_out, log_w, grad)
        assert (out[:, -1] == -torch.inf).all()
        assert (gradient[:, -1] == 0).all()
        assert torch.isfinite(out[:, :-1]).all()


@on_devices
@in_dtypes
@pytest.mark.parametrize("num_samples", [2, 33])
def test_one_possible_sample(num_samples: int, dtype: torch.dtype, device: str):
    """Without it nothing is left: -inf, which no log-weight can move."""
    log_w = torch.full((num_samples, 3), -torch.inf, dtype=dtype, device=device)
    log_w[1] = -7.0
    out, gradient = with_gradient(leave_one_out, log_w, torch.ones_like(log_w))
    assert (out[1] == -torch.inf).all()
    left = torch.full_like(out[0], -7.0 - math.log(num_samples - 1))
    torch.testing.assert_close(out[0], left)
    expected = torch.zeros_like(log_w)
    expected[1] = num_samples - 1
    torch.testing.assert_close(gradient, expected)


@on_devices
@pytest.mark.parametrize("place", [0, 16, LONG - 1])
def test_plus_infinity_shows_where_it_counts(place: int, device: str):
    log_w = torch.randn(LONG, 3, device=device)
    log_w[place, 1] = torch.inf
    out = leave_one_out(log_w)
    others = [k for k in range(LONG) if k != place]
    assert (out[others, 1] == torch.inf).all()
    torch.testing.assert_close(out[place], dense(log_w)[place])
    log_w[(place + 5) % LONG, 1] = torch.inf
    assert (leave_one_out(log_w)[:, 1] == torch.inf).all()


@on_devices
@pytest.mark.parametrize("place", [0, 16, LONG - 1])
def test_nan_shows(place: int, device: str):
    log_w = torch.randn(LONG, 3, device=device)
    log_w[place, 1] = torch.nan
    out, gradient = with_gradient(leave_one_out, log_w, torch.ones_like(log_w))
    assert torch.isnan(out[:, 1]).all()
    assert torch.isnan(gradient[:, 1]).all()
    assert torch.isfinite(out[:, [0, 2]]).all()
    assert torch.isfinite(gradient[:, [0, 2]]).all()


# ---- laws and memory ----------------------------------------------------------------------------
@on_devices
def test_the_mean_over_left_out_samples_is_below_the_bound(device: str):
    """By Jensen, draw by draw: the log of the mean over who is left out is the bound itself."""
    log_w = 2 * torch.randn(LONG, 11, dtype=torch.float64, device=device)
    assert (leave_one_out(log_w).mean(0) < fastvi.ops.iwlb(log_w)).all()


@on_devices
def test_order_of_samples(device: str):
    log_w = torch.randn(LONG, 3, dtype=torch.float64, device=device)
    order = torch.randperm(LONG, device=device)
    torch.testing.assert_close(leave_one_out(log_w[order]), leave_one_out(log_w)[order])


def test_the_backward_keeps_three_numbers_per_datum():
    saved = []
    log_w = torch.randn(101, 7).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        leave_one_out(log_w)
    assert log_w.data_ptr() in {x.data_ptr() for x in saved}
    assert sum(x.numel() for x in saved) == log_w.numel() + 3 * 7


MEASURE = """
    import pathlib, re, sys
    import torch
    sys.path[:0] = ["tests/ops", "tests/support"]
    from test_ops_leave_one_out import dense, leave_one_out, with_gradient

    def resident(name):
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(name + r":\\s+(\\d+)", status)[1])

    function = {"dense": dense, "ours": leave_one_out}[sys.argv[1]]
    num_samples, batch = int(sys.argv[2]), int(sys.argv[3])
    with_gradient(function, torch.randn(3, 2), torch.ones(3, 2))
    log_w, grad = torch.randn(2, num_samples, batch)
    # The largest residence starts anew: at the start of a process it is that of its parent.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    with_gradient(function, log_w, grad)
    print(resident("VmHWM") - before)
"""


def peak_bytes(who: str, num_samples: int, batch: int) -> int:
    """What a forward and backward pass adds to the largest residence of a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), who, str(num_samples), str(batch)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux's /proc")
@pytest.mark.native
def test_a_hundredth_of_the_memory_of_the_dense_form():
    """Which holds at least one [K, K, B] tensor: measured where it is small, counted where not."""
    assert peak_bytes("dense", 512, 64) > 4 * 512 * 512 * 64
    ours = peak_bytes("ours", 4096, 64)
    # The result and the gradient, at the least: what is measured is not nothing.
    assert 2 * 4 * 4096 * 64 <= ours < 4 * 4096 * 4096 * 64 / 100
