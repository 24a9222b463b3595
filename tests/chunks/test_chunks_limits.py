"""Bounds in chunks: what is refused, and the memory they take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chunks_setting import LOSSES, Setting
from torch import Tensor, nn

import fastvi
from fastvi.chunks import chunk_size as chunk_sizes

ROOT = Path(__file__).parents[2]


# ---- bad input ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        pytest.param({"chunk_size": 0}, ValueError, "chunk_size", id="zero"),
        pytest.param({"chunk_size": -3}, ValueError, "chunk_size", id="negative"),
        pytest.param({"chunk_size": 11}, ValueError, "at most num_samples, 10", id="above K"),
        pytest.param({"chunk_size": 2.0}, TypeError, "chunk_size", id="float"),
        pytest.param({"chunk_size": "big"}, ValueError, "'auto'", id="unknown word"),
        pytest.param({"memory_budget": 10}, ValueError, "memory_budget", id="budget alone"),
        pytest.param({"chunk_size": "auto", "memory_budget": 0}, ValueError, "positive", id="none"),
        pytest.param({"estimator": "rws", "alpha": 0.5}, ValueError, "alpha", id="rws renyi"),
        pytest.param({"alpha": float("nan")}, ValueError, "alpha", id="alpha nan"),
        pytest.param({"group": 3}, RuntimeError, "init_process_group", id="no group"),
    ],
)
def test_bad_options(options, error, says):
    zeros = torch.zeros(4, 2)
    with pytest.raises(error, match=says):
        fastvi.iwlb_loss(zeros, zeros, lambda z: z.sum(-1), 10, **options)


def test_wrong_shape_of_the_likelihood():
    zeros = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"\(K, \*batch\) = \[3, 4\]"):
        fastvi.iwlb_loss(zeros, zeros, lambda z: z, 10, chunk_size=3)


# Breaks when a chunk is compared among all others, or in a mean that noise does not move.
@pytest.mark.parametrize("name", LOSSES, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("change", ["all", "one chunk", "noise"])
def test_a_likelihood_that_changes_between_the_passes(name: str, change: str):
    calls: list[int] = []
    # Noise of no generator of torch's.
    noise = np.random.default_rng(0)

    def log_likelihood(z: Tensor) -> Tensor:
        calls.append(1)
        log_px = -z.square().sum(-1)
        if change == "noise":
            return log_px + 0.1 * torch.from_numpy(noise.standard_normal(log_px.shape)).float()
        # Three of the last pass's chunks: the fourth's graph is kept.
        changed = len(calls) > 4 if change == "all" else len(calls) == 6
        return log_px + 0.02 if changed else log_px

    loc = torch.zeros(4, 2, requires_grad=True)
    loss = LOSSES[name](chunk_size=5)(loc, torch.zeros(4, 2), log_likelihood)
    with pytest.raises(RuntimeError, match="same values"):
        loss.backward()


@pytest.mark.parametrize("name", ["dreg", "iwae", "rws"])
def test_a_generator_of_the_model_gives_the_same_noise_in_both_passes(name: str):
    generator = torch.Generator()
    decoder = torch.nn.Linear(2, 1)

    def run(chunk_size: int) -> list[Tensor]:
        generator.manual_seed(1)

        def log_likelihood(z: Tensor) -> Tensor:
            # One number for each sample, whatever chunk it is in.
            noise = torch.cat([torch.randn(1, 4, generator=generator) for _ in z])
            return -(decoder(z)[..., 0] + noise).square()

        decoder.zero_grad()
        loc = torch.zeros(4, 2, requires_grad=True)
        key = torch.tensor([3, 4])
        fastvi.iwlb_loss(
            loc,
            torch.zeros(4, 2),
            log_likelihood,
            6,
            estimator=name,
            chunk_size=chunk_size,
            key=key,
        ).backward()
        return [loc.grad, decoder.weight.grad]

    torch.testing.assert_close(run(2), run(6), rtol=1e-5, atol=1e-6)


def test_parameters_of_some_chunks_only():
    first = nn.Parameter(torch.ones(2))
    sizes = []

    def log_likelihood(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return (z * first).sum(-1) if len(z) == 4 else -z.square().sum(-1)

    loc = torch.zeros(3, 2, requires_grad=True)
    loss = fastvi.iwlb_loss(loc, torch.zeros(3, 2), log_likelihood, 10, chunk_size=4)
    with pytest.raises(RuntimeError, match=r"same parameters for every chunk.*\[2\]"):
        loss.backward()


def test_double_backward_is_refused():
    setting = Setting()
    loss = setting.loss(fastvi.IWLBLoss(9, chunk_size=2))
    (grad, *_) = torch.autograd.grad(loss, setting.parameters, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_torch_func_is_refused():
    def loss(loc):
        return fastvi.iwlb_loss(loc, torch.zeros(4, 2), lambda z: z.sum(-1), 6, chunk_size=2)

    with pytest.raises(RuntimeError, match="torch.func"):
        torch.func.grad(loss)(torch.zeros(4, 2))


# ---- memory -------------------------------------------------------------------------------------
MEMORY = """
import ctypes, re, sys, torch, fastvi
from pathlib import Path
from torch import nn
torch.set_num_threads(2)
samples, streamed = int(sys.argv[1]), sys.argv[2] == "streamed"
decoder = nn.Sequential(
    nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
)
x = (torch.rand(2, 784) > 0.5).float()
loc = torch.zeros(2, 50, requires_grad=True)
log_var = torch.zeros(2, 50, requires_grad=True)
def step(k):
    loss = fastvi.iwlb_loss(
        loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(x, decoder(z)), k,
        chunk_size=min(k, 500) if streamed else None,
    )
    loss.backward()
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
step(500)
before = peak()
step(samples)
print((peak() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_samples():
    """MiB by which 20 times the samples raise the peak of a fresh process."""

    def growth(samples: int, how: str) -> float:
        command = [sys.executable, "-c", MEMORY, str(samples), how]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True
        )
        return float(done.stdout)

    assert growth(10_000, "streamed") < 24
    # The measure sees what it is for.
    assert growth(10_000, "whole") > 100


@pytest.mark.parametrize(
    ("criterion", "most"),
    [
        pytest.param(fastvi.CIWAELoss(200_000, 0.1), 1.0, id="ciwae"),
        pytest.param(fastvi.MIWAELoss(20_000, 10), 1.0, id="miwae"),
        pytest.param(fastvi.PIWAELoss(20_000, 10), 1.0, id="piwae"),
        pytest.param(fastvi.JackknifeLoss(200_000), 5.5, id="jackknife"),
    ],
)
def test_bytes_that_are_kept_of_a_log_weight(criterion, most: float):
    """The jackknife keeps four, the others none."""
    size, batch = 2_000, 4
    offsets = range(0, 200_000, size)
    with chunk_sizes._MemoryInUse(torch.device("cpu")) as held:
        sums = criterion.weigher().sums()
        for offset in offsets:
            sums.add(offset, torch.zeros(size, batch))
        sums.bound()
        for offset in offsets:
            sums.weights(offset, torch.zeros(size, batch))
    assert max(held.amounts) < most * 200_000 * batch
