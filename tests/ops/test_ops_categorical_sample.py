"""categorical_sample: the samples themselves. Their log-probabilities are a row of the op table."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from op_samples import KEY
from op_table import DEVICES, DTYPES, EMULATED

import fastvi
from fastvi.ops import categorical_log_prob, categorical_sample

on_devices = pytest.mark.parametrize("device", DEVICES)
SHAPES = [
    pytest.param((5, 7, 13), id="odd"),
    pytest.param((2, 3, 1), id="one class"),
    pytest.param((65, 2, 2), id="two classes"),
    pytest.param((3, 2, 67), id="more than a warp"),
    pytest.param((9, 1, 5003), id="very many classes"),
]


def key(device: str = "cpu") -> torch.Tensor:
    return torch.tensor(KEY, device=device)


@on_devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_samples_are_those_of_the_reference(shape, dtype: torch.dtype, device: str):
    if EMULATED and math.prod(shape) > 600:
        return
    samples, batch, classes = shape
    logits = (2 * torch.randn(batch, classes, dtype=torch.float64)).to(device, dtype)
    x, log_q = categorical_sample(logits, samples, key=key(device))
    expected, _ = categorical_sample.reference(logits, samples, key=key(device))
    assert x.dtype == torch.int64 and not x.requires_grad
    torch.testing.assert_close(x, expected, rtol=0, atol=0)
    own = logits.expand(shape).contiguous()
    per_sample = categorical_sample(own, key=key(device))
    torch.testing.assert_close(per_sample, (x, log_q), rtol=0, atol=0)
    torch.testing.assert_close(log_q, categorical_log_prob(x, logits))


@on_devices
def test_a_sample_depends_on_its_place_alone(device: str):
    logits = torch.randn(7, 13, device=device)
    whole = categorical_sample(logits, 9, key=key(device))
    parts = [
        categorical_sample(logits, size, key=key(device), sample_offset=start)
        for start, size in ((0, 4), (4, 1), (5, 4))
    ]
    for all_at_once, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(pieces), all_at_once, rtol=0, atol=0)


def test_other_keys_give_other_samples():
    logits = torch.zeros(64, 20)
    first, second = (
        categorical_sample(logits, 1, key=torch.tensor(k))[0] for k in (KEY, KEY[::-1])
    )
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    drawn = categorical_sample(logits, 4)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(categorical_sample(logits, 4)[0], drawn, rtol=0, atol=0)


# ---- the law ------------------------------------------------------------------------------------
@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_frequencies_are_the_probabilities(dtype: torch.dtype):
    stats = pytest.importorskip("scipy.stats")
    logits = torch.tensor([0.0, -8.0, 2.0, -torch.inf, 1.0, -3.0], dtype=dtype)
    count = 2**20
    times = categorical_sample(logits, count, key=key())[0].bincount(minlength=6)
    assert times[3] == 0
    possible = torch.arange(6) != 3
    probs = logits.double().softmax(-1)
    found = stats.chisquare(times[possible].numpy(), (count * probs[possible]).numpy())
    assert found.pvalue > 1e-6


@pytest.mark.native
def test_many_small_classes_keep_their_share():
    """Each is 2e-6 of the largest, all of them together two thirds of the whole."""
    logits = torch.full((10**6,), -math.log(5e5))
    logits[123_456] = 0.0
    x, _ = categorical_sample(logits, 40_000, key=key())
    others = (x != 123_456).double().mean().item()
    assert abs(others - 2 / 3) < 5 * math.sqrt(2 / 9 / 40_000)
    assert abs((x < 500_000).double()[x != 123_456].mean().item() - 0.5) < 0.02


def test_neighbours_are_independent():
    x, _ = categorical_sample(torch.zeros(64, 2), 4096 if not EMULATED else 64, key=key())
    z = 2 * x.double() - 1
    correlation = (z.T @ z) / len(z) - torch.eye(z.shape[-1])
    assert correlation.abs().max() < 6 / math.sqrt(len(z))


def test_certain_outcomes():
    logits = torch.tensor([[-torch.inf, 3.0, -torch.inf], [-200.0, -200.0, 0.0]])
    x, log_q = categorical_sample(logits, 100, key=key())
    torch.testing.assert_close(x, torch.tensor([1, 2]).expand(100, 2))
    torch.testing.assert_close(log_q, torch.zeros(100, 2))


@on_devices
@pytest.mark.parametrize(
    "bad", [[0.0, math.nan, 1.0], [-math.inf] * 3, [0.0, math.inf, 1.0]], ids=str
)
def test_what_is_no_distribution_shows(bad: list[float], device: str):
    """In its own row, as NaN; the class is some class."""
    logits = torch.tensor([bad, [0.0, 1.0, 2.0]], device=device)
    x, log_q = categorical_sample(logits, 20, key=key(device))
    assert log_q[:, 0].isnan().all() and log_q[:, 1].isfinite().all()
    assert bool(((x >= 0) & (x < 3)).all())


# ---- the same everywhere ------------------------------------------------------------------------
@pytest.mark.native
def test_threads_do_not_matter(threads):
    logits = torch.randn(64, 20)
    runs = []
    for count in (1, 2):
        threads(count)
        runs.append(categorical_sample(logits, 500, key=key()))
    torch.testing.assert_close(*runs, rtol=0, atol=0)


DRAW = """
import torch, fastvi
logits = torch.randn(40, 37, generator=torch.Generator().manual_seed(0))
x, _ = fastvi.ops.categorical_sample(logits, 2000, key=torch.tensor([5, 7]))
print(hash(tuple(x.flatten().tolist())))
"""


def drawn(**environment: str) -> str | None:
    """A hash of draws in a process of its own; None without the instructions."""
    run = subprocess.run(
        [sys.executable, "-c", DRAW], capture_output=True, text=True, env=os.environ | environment
    )
    if "this machine does not have" in run.stderr:
        return None
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.native
def test_instruction_sets_do_not_matter():
    every = {drawn(FASTVI_CPU_ISA=isa) for isa in ("baseline", "avx2", "avx512")} - {None}
    assert len(every) == 1


@pytest.mark.skipif(not EMULATED, reason="compares the emulated CUDA kernels with the CPU's")
def test_emulated_cuda_draws_what_the_cpu_draws():
    logits = torch.randn(7, 13)
    code = (
        f"import torch, fastvi; logits = torch.tensor({logits.tolist()}); "
        f"x, _ = fastvi.ops.categorical_sample(logits, 9, key=torch.tensor({list(KEY)})); "
        "print(x.tolist())"
    )
    cpu = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"FASTVI_EXTENSION": ""},
    )
    assert cpu.stdout.strip() == str(categorical_sample(logits, 9, key=key())[0].tolist())


@pytest.mark.slow
@pytest.mark.native
def test_compile(fresh_compiler):
    def step(logits):
        x, log_q = categorical_sample(logits, 5, key=key())
        return (x * log_q).sum()

    logits = torch.randn(7, 13, requires_grad=True)
    expected = torch.autograd.grad(step(logits), logits)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True)(logits), logits)
    torch.testing.assert_close(got, expected)


BAD = [
    pytest.param((3.0, 4), {}, TypeError, "logits to be a tensor, got float", id="no tensor"),
    pytest.param((torch.zeros(3).long(), 4), {}, TypeError, "float32", id="integers"),
    pytest.param((torch.zeros(3), 0), {}, ValueError, "num_samples to be from 1", id="K=0"),
    pytest.param((torch.zeros(3),), {}, ValueError, "at least 2 dimension", id="no samples"),
    pytest.param((torch.zeros(()), 4), {}, ValueError, "at least 1 dimension", id="no dimension"),
    pytest.param((torch.zeros(3, 0), 4), {}, ValueError, "at least one class", id="no classes"),
    pytest.param(
        (torch.zeros(3), 4), {"sample_offset": -1}, ValueError, "sample_offset", id="offset"
    ),
    pytest.param(
        (torch.zeros(3), 4), {"key": torch.zeros(3).long()}, ValueError, "key to have", id="key"
    ),
    pytest.param(
        (torch.full((3,), -math.inf), 4), {"validate_args": True}, ValueError, "finite", id="-inf"
    ),
]


@pytest.mark.parametrize(("arguments", "named", "error", "words"), BAD)
def test_bad_input(arguments, named, error, words):
    with pytest.raises(error, match=rf"categorical_sample: expected .*{words}"):
        fastvi.ops.categorical_sample(*arguments, **named)
