"""The noise: a function of the key and the place, the same bits everywhere, and normal."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_samples import KEY
from op_table import DEVICES, EMULATED
from torch import Tensor

from fastvi.ops import gaussian_rsample
from fastvi.ops._noise import philox, standard_normal

on_devices = pytest.mark.parametrize("device", DEVICES)
NUMBERS = 2000 if EMULATED else 2**22


def noise(
    key: tuple[int, int],
    num_samples: int,
    batch: int,
    features: int,
    *,
    dtype: torch.dtype = torch.float32,
    sample_offset: int = 0,
    device: str = "cpu",
) -> Tensor:
    """What the kernel draws: loc 0 and scale 1 leave the noise itself."""
    loc = torch.zeros(batch, features, dtype=dtype, device=device)
    return gaussian_rsample(
        loc,
        scale=torch.ones_like(loc),
        num_samples=num_samples,
        key=torch.tensor(key, device=device),
        sample_offset=sample_offset,
    )[0]


def normals_of_words(words: list[int]) -> list[float]:
    """Box-Muller by the C library, in float64."""
    normals = []
    for a, b in (words[:2], words[2:]):
        radius = math.sqrt(-2.0 * math.log((a + 0.5) / 2**32))
        angle = 2.0 * math.pi * b / 2**32
        normals += [radius * math.cos(angle), radius * math.sin(angle)]
    return normals


# ---- Philox -------------------------------------------------------------------------------------
# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    pytest.param(
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        id="zeros",
    ),
    pytest.param(
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        id="ones",
    ),
    pytest.param(
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
        id="pi",
    ),
]


def hexadecimal(words: str) -> list[int]:
    return [int(word, 16) for word in words.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers_of_the_reference(counter: str, key: str, result: str):
    low, high = hexadecimal(key)
    # A seed beyond 2^63 is a negative int64 with the same bits.
    seed = torch.tensor((high << 32 | low) - (1 << 64 if high >> 31 else 0))
    words = philox([torch.tensor(word) for word in hexadecimal(counter)], seed)
    assert [int(word) for word in words] == hexadecimal(result)


@on_devices
def test_known_answer_of_the_kernel(device: str):
    """Key 0 and row 0 are the first vector: the only one whose counter a small tensor reaches."""
    expected = normals_of_words(hexadecimal(KNOWN_ANSWERS[0].values[2]))
    z = noise((0, 0), 1, 1, 4, dtype=torch.float64, device=device)
    torch.testing.assert_close(z.flatten().cpu(), torch.tensor(expected, dtype=torch.float64))


@pytest.fixture(scope="session")
def torch_philox(tmp_path_factory):
    """The words of torch's own C++ engine, for (seed, stream, row, block)."""
    include = Path(torch.__file__).parent / "include"
    if not (include / "ATen/core/PhiloxRNGEngine.h").exists():
        pytest.skip("this torch comes without its C++ headers")
    program = tmp_path_factory.mktemp("philox") / "oracle"
    source = Path(__file__).with_name("philox_oracle.cpp")
    compiler = os.environ.get("CXX", "g++")
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-I", include, source, "-o", program], check=True
    )

    def words(places: list[tuple[int, int, int, int]]) -> list[list[int]]:
        lines = [
            f"{seed % 2**64} {row} {block | (stream % 2**32) << 32}"
            for seed, stream, row, block in places
        ]
        out = subprocess.run(
            [program], input="\n".join(lines), capture_output=True, text=True, check=True
        )
        return [[int(word) for word in line.split()] for line in out.stdout.splitlines()]

    return words


@pytest.mark.slow
@pytest.mark.native
def test_the_reference_against_torchs_engine(torch_philox):
    draw = random.Random(1)
    places = [
        (
            draw.randrange(-(2**63), 2**63),
            draw.randrange(-(2**63), 2**63),
            draw.randrange(2**64),
            draw.randrange(2**32),
        )
        for _ in range(500)
    ]
    for (seed, stream, row, block), expected in zip(places, torch_philox(places), strict=True):
        counter = [block, stream % 2**32, row % 2**32, row >> 32]
        words = philox([torch.tensor(word) for word in counter], torch.tensor(seed))
        assert [int(word) for word in words] == expected


PLACES = [
    pytest.param(KEY, 0, 3, 2, 11, id="small"),
    pytest.param((-1, -1), 0, 2, 3, 5, id="all bits of the key"),
    pytest.param((-(2**63), 1), 5, 1, 7, 8, id="lowest seed"),
    pytest.param((2**31, 2**31), 0, 1, 1, 4001, id="wide"),
    pytest.param(KEY, 2**31 - 2, 4, 1, 6, id="rows around 2^31"),
    pytest.param(KEY, (2**32 - 5) // 3, 5, 3, 6, id="rows around 2^32"),
    pytest.param(KEY, 2**33 + 1, 2, 3, 6, id="rows beyond 2^34"),
    pytest.param(KEY, 2**60, 2, 3, 6, id="rows beyond 2^61"),
]


@on_devices
@pytest.mark.parametrize(("key", "offset", "num_samples", "batch", "features"), PLACES)
def test_counter_layout_of_the_kernel(
    key, offset, num_samples, batch, features, device, torch_philox
):
    """Counter (d // 4, stream low, row low, row high), row = (sample_offset + k) * B + b."""
    places = [
        (*key, (offset + k) * batch + b, block)
        for k in range(num_samples)
        for b in range(batch)
        for block in range((features + 3) // 4)
    ]
    expected = torch.tensor(
        [normals_of_words(words) for words in torch_philox(places)], dtype=torch.float64
    )
    expected = expected.reshape(num_samples, batch, -1)[..., :features]
    z = noise(
        key, num_samples, batch, features, dtype=torch.float64, sample_offset=offset, device=device
    )
    torch.testing.assert_close(z.cpu(), expected, rtol=1e-13, atol=1e-14)
    reference = standard_normal(torch.tensor(key), num_samples, batch, features, offset)
    torch.testing.assert_close(reference, expected, rtol=1e-13, atol=1e-14)


@on_devices
def test_the_batch_shape_is_flattened(device: str):
    key = torch.tensor(KEY, device=device)
    flat = gaussian_rsample(
        torch.zeros(6, 5, device=device),
        scale=torch.ones((), device=device),
        num_samples=3,
        key=key,
    )[0]
    shaped = gaussian_rsample(
        torch.zeros(2, 3, 5, device=device),
        scale=torch.ones((), device=device),
        num_samples=3,
        key=key,
    )[0]
    torch.testing.assert_close(shaped.flatten(1, 2), flat, rtol=0, atol=0)


# ---- the same bits, whatever the machine does ---------------------------------------------------
SHAPES = [
    pytest.param(7, 5, 13, id="odd"),
    pytest.param(33, 3, 1, id="one feature"),
    pytest.param(17, 9, 2, id="two features"),
    pytest.param(5, 1, 1031, id="wide", marks=pytest.mark.native),
    pytest.param(1031, 1, 3, id="many samples", marks=pytest.mark.native),
]


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("num_samples", "batch", "features"), SHAPES)
def test_chunks_of_samples(num_samples, batch, features, dtype, device):
    """Any cut of K gives the samples of the whole, to the bit, and their densities."""
    draw = torch.Generator().manual_seed(3)
    loc = torch.randn(batch, features, dtype=dtype, generator=draw).to(device)
    log_var = torch.randn(batch, features, dtype=dtype, generator=draw).to(device)
    key = torch.tensor(KEY, device=device)

    def run(count: int, offset: int) -> tuple[Tensor, ...]:
        return gaussian_rsample(
            loc, log_var=log_var, num_samples=count, key=key, sample_offset=100 + offset
        )

    whole = run(num_samples, 0)
    for size in (1, 2, num_samples // 2 + 1):
        starts = range(0, num_samples, size) if size > 1 else range(min(num_samples, 5))
        for start in starts:
            part = run(min(size, num_samples - start), start)
            for ours, all_of_it in zip(part, whole, strict=True):
                expected = all_of_it[start : start + len(ours)]
                torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.native
def test_number_of_threads(threads):
    seen = set()
    for count in (1, 2, 3):
        threads(count)
        z = noise(KEY, 301, 17, 33)
        seen.add(hashlib.sha256(z.numpy().tobytes()).hexdigest())
    assert len(seen) == 1


# The noise, and z where sigma is given: exp may differ by an ulp. Over shapes that leave odd tails.
HASHES = """
import hashlib, torch, fastvi
from fastvi._ext import C
draw = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for K, B, D in ((7, 5, 13), (33, 3, 1), (17, 9, 2), (3, 1, 131), (65, 1, 3), (2, 2, 64)):
        key = torch.randint(-2**63, 2**63 - 1, (2,), generator=draw)
        loc, spread = torch.randn(2, B, D, generator=draw).to(dtype)
        digest = hashlib.sha256()
        zero = torch.zeros_like(loc)
        for at, named in (
            (zero, {"scale": zero + 1}),
            (loc, {"scale": spread.exp()}),
        ):
            index = torch.arange(K * B).reshape(K, B) % 7
            for numbered in ({}, {"sample_index": index}):
                z = fastvi.ops.gaussian_rsample(at, **named, **numbered, num_samples=K, key=key)[0]
                digest.update(z.view(torch.uint8).numpy().tobytes())
        print(digest.hexdigest())
"""


def hashes(**environment: str) -> list[str] | None:
    """One hash per shape and dtype from a process of its own; None without the instructions."""
    run = subprocess.run(
        [sys.executable, "-c", HASHES],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    if "this machine does not have" in run.stderr:
        return None
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.slow
@pytest.mark.native
def test_instruction_sets():
    every = {isa: hashes(FASTVI_CPU_ISA=isa) for isa in ("baseline", "avx2", "avx512")}
    here = {isa: found for isa, found in every.items() if found is not None}
    assert all(len(found) == 18 for found in here.values())
    if len(here) < 2:
        pytest.skip("this machine has one instruction set only")
    for isa, found in here.items():
        assert found == here["baseline"], isa


@pytest.mark.skipif(not EMULATED, reason="compares the emulated CUDA kernels with the CPU's")
def test_emulated_cuda_has_the_bits_of_the_cpu():
    assert hashes() == hashes(FASTVI_EXTENSION="")


@pytest.mark.cuda
@pytest.mark.parametrize(("num_samples", "batch", "features"), SHAPES)
def test_cuda_has_the_bits_of_the_cpu(num_samples: int, batch: int, features: int):
    on_cuda = noise(KEY, num_samples, batch, features, device="cuda").cpu()
    torch.testing.assert_close(on_cuda, noise(KEY, num_samples, batch, features), rtol=0, atol=0)


def test_float32_is_close_to_float64():
    """The radius sqrt(-2 log u) at u near 1 sets the error: u is rounded to 24 bits there."""
    single = noise(KEY, 1, 1, NUMBERS).double()
    double = noise(KEY, 1, 1, NUMBERS, dtype=torch.float64)
    gap = (single - double).abs()
    # A few ulps in the bulk; near 0 an ulp of u, 2^-24, becomes sqrt(2^-23) of radius at the worst.
    assert gap.mean() < 2e-7
    assert gap.max() < 2**-11.5
    assert (gap > 1e-5).double().mean() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_low_precision_rounds_the_float32_noise(dtype: torch.dtype):
    expected = noise(KEY, 5, 3, 37).to(dtype)
    torch.testing.assert_close(noise(KEY, 5, 3, 37, dtype=dtype), expected, rtol=0, atol=0)


# ---- is it normal? At a fixed key: these either always pass or always fail. ----------------------
@pytest.fixture(scope="module", params=["float32", "float64"])
def sample(request) -> Tensor:
    """[K, B, D], about four million numbers."""
    dtype = getattr(torch, request.param)
    return noise((20240229, 7), NUMBERS // 4096, 64, 64, dtype=dtype).double()


@pytest.mark.native
def test_moments(sample: Tensor):
    n = sample.numel()
    # E z^m and its standard error sqrt((E z^2m - (E z^m)^2) / n).
    for power, mean, second in ((1, 0, 1), (2, 1, 3), (3, 0, 15), (4, 3, 105), (6, 15, 10395)):
        error = math.sqrt((second - mean**2) / n)
        assert abs((sample**power).mean().item() - mean) < 4 * error, power


@pytest.mark.slow
@pytest.mark.native
@pytest.mark.parametrize("dim", [0, 1, 2], ids=["samples", "batch", "features"])
def test_no_correlation_along(sample: Tensor, dim: int):
    for lag in (1, 2, 3, 4, 5, 8, 16):
        a = sample.narrow(dim, 0, sample.shape[dim] - lag)
        b = sample.narrow(dim, lag, sample.shape[dim] - lag)
        bound = 4.5 / math.sqrt(a.numel())
        assert abs((a * b).mean().item()) < bound, f"lag {lag}"
        # Of the squares too: the two normals of a pair share their radius.
        squares = ((a**2 - 1) * (b**2 - 1)).mean().item() / 2
        assert abs(squares) < bound, f"squares, lag {lag}"


@pytest.mark.slow
@pytest.mark.native
def test_kolmogorov_smirnov(sample: Tensor):
    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(sample.flatten().numpy(), "norm").pvalue > 1e-3
    # The four places of a block come from different words and functions.
    for place in range(4):
        some = sample[..., place::4].flatten().numpy()
        assert stats.kstest(some, "norm").pvalue > 1e-3, place


@pytest.mark.native
def test_tails(sample: Tensor):
    for limit in (3.0, 4.0, 4.5, 5.0):
        expected = sample.numel() * math.erfc(limit / math.sqrt(2.0))
        seen = (sample.abs() > limit).sum().item()
        assert abs(seen - expected) < 4.5 * math.sqrt(expected) + 1, f"beyond {limit}"
    # The largest radius, of the word 0.
    assert sample.abs().max() <= math.sqrt(2 * 33 * math.log(2)) + 1e-6


@pytest.mark.native
@pytest.mark.parametrize(
    "other",
    [
        pytest.param((20240230, 7), id="next seed"),
        pytest.param((20240229 + 2**32, 7), id="high half of the seed"),
        pytest.param((20240229, 8), id="next stream"),
        pytest.param((7, 20240229), id="swapped"),
    ],
)
def test_another_key_is_independent(other: tuple[int, int]):
    first = noise((20240229, 7), 100, 64, 64).double()
    second = noise(other, 100, 64, 64).double()
    assert abs((first * second).mean().item()) < 4.5 / math.sqrt(first.numel())
    assert (first == second).double().mean() < 1e-5
