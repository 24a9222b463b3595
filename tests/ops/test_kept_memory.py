"""Large CPU results take memory that was kept from earlier ones; see csrc/torch/empty.h."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastvi
from fastvi._ext import C

pytestmark = pytest.mark.native
MIB = 2**20
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    C.release_kept_memory()
    yield
    C.release_kept_memory()


def draw(megabytes: int, seed: int = 0) -> torch.Tensor:
    """Samples of that many MiB; the same numbers for the same seed."""
    key = torch.tensor([seed, 0])
    loc = torch.zeros(megabytes, 1024)
    z, _, _ = fastvi.ops.gaussian_rsample(loc, log_var=loc, num_samples=256, key=key)
    return z


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [2, 5, 40], ids=lambda n: f"{n}MiB")
def test_a_freed_result_serves_the_next(megabytes: int):
    first = draw(megabytes)
    place, expected = first.data_ptr(), first.clone()
    del first
    again = draw(megabytes)
    assert again.data_ptr() == place
    assert torch.equal(again, expected)


@pytest.mark.slow
def test_a_live_result_is_not_touched():
    first = draw(4, seed=1)
    expected = first.clone()
    view = first[3]
    del first
    others = [draw(4, seed=seed) for seed in range(2, 6)]
    assert len({other.data_ptr() for other in others}) == len(others)
    assert torch.equal(view, expected[3])


@pytest.mark.slow
def test_a_much_larger_block_is_not_taken():
    large = draw(40)
    place = large.data_ptr()
    del large
    assert draw(4).data_ptr() != place


@pytest.mark.slow
def test_results_of_many_threads_do_not_mix():
    expected = [draw(3, seed=seed).double().sum().item() for seed in range(4)]

    def work(seed: int) -> list[float]:
        return [draw(3, seed=seed).double().sum().item() for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert found == [[value] * 5 for value in expected]


@pytest.mark.slow
def test_it_is_a_tensor_like_any_other():
    z = draw(2)
    expected = z.clone()
    assert torch.equal(pickle.loads(pickle.dumps(z)), expected)
    twice = draw(2).resize_(2 * z.numel())
    assert torch.equal(twice[: z.numel()].reshape(z.shape), expected)
    assert torch.equal(torch.from_numpy(z.numpy()), expected)
    shared = draw(2).share_memory_()
    assert torch.equal(shared, expected)


@pytest.mark.slow
def test_a_profiler_sees_it():
    with torch.profiler.profile(profile_memory=True) as profiler:
        z = draw(8)
    used = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
    assert used >= z.nbytes


SCRIPT = """
import os, re, torch, fastvi
# The threads of OpenMP do not live on in a forked process.
torch.set_num_threads(1)
from fastvi._ext import C

def resident():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmRSS:\\s*(\\d+) kB", status.read())[1]) / 1024

def draw(megabytes):
    loc = torch.zeros(megabytes, 1024)
    return fastvi.ops.gaussian_rsample(loc, log_var=loc, num_samples=256)[0]

draw(1)
before = resident()
results = [draw(30) for _ in range(6)]
held = resident()
del results
kept = resident()
C.release_kept_memory()
print(held - before, kept - before, resident() - before)
child = os.fork()
if child == 0:
    ok = torch.isfinite(draw(4)).all().item()
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@LINUX
def test_what_is_kept_is_little_and_is_given_back():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120
    )
    sizes, child = done.stdout.splitlines()
    held, kept, left = map(float, sizes.split())
    assert held >= 6 * 30
    assert 30 <= kept <= 64 + 16
    assert left <= 16
    assert child == "0"
