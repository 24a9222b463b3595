"""The CUDA kernels on the host, one thread for each CUDA thread: values, bits, and sanitizers.

CMake compiles the same ``.cu`` files against ``cuda_emulation/cuda_runtime.h``, in the build folder
of the extension, where most of its objects lie already.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_build import ROOT, build

pytestmark = [pytest.mark.native, pytest.mark.slow]


def run(*command: str | Path, timeout: float = 1800, **environment: str):
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def succeed(*command: str | Path, **environment: str) -> str:
    done = run(*command, **environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


@pytest.fixture(scope="module")
def emulated() -> Path:
    (extension,) = (build("_C_emulated") / "emulated").glob("_C*.so")
    return extension


@pytest.fixture(scope="module", params=["address", "thread"])
def driver(request: pytest.FixtureRequest) -> Path:
    probe = ["c++", f"-fsanitize={request.param}", "-x", "c++", "-", "-o", os.devnull]
    if subprocess.run(probe, input="int main() {}", capture_output=True, text=True).returncode:
        pytest.skip(f"this compiler has no {request.param} sanitizer")
    name = f"cuda_driver_{request.param}"
    return build(name) / name


def drive(driver: Path, *arguments: str):
    """Run the driver; once more with a plain memory layout, where the sanitizer asks for one."""
    options = {"ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    done = run(driver, *arguments, **options)
    if "unexpected memory mapping" in done.stderr:
        done = run("setarch", platform.machine(), "-R", driver, *arguments, **options)
    return done


# ---- in Python, in a process of its own: one build of the extension per process -----------------
SUITES = [
    "tests/ops/test_op_contract.py",
    "tests/ops/test_noise.py",
    "tests/ops/test_keys.py",
    "tests/ops/test_ops_bernoulli_sample.py",
    "tests/ops/test_ops_categorical_sample.py",
    "tests/ops/test_ops_laplace_rsample.py",
    "tests/ops/test_not_finite.py",
]


@pytest.mark.parametrize("suite", SUITES, ids=[Path(suite).stem for suite in SUITES])
def test_the_suite_of_the_ops(emulated: Path, suite: str):
    pytest_of_it = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite]
    out = succeed(*pytest_of_it, FASTVI_EXTENSION=str(emulated), OMP_NUM_THREADS="1")
    assert " passed" in out or "[100%]" in out


def test_it_is_the_emulated_build(emulated: Path):
    code = "import fastvi; print(fastvi._ext.C.build_info()['cuda_emulated'])"
    out = succeed(sys.executable, "-c", code, FASTVI_EXTENSION=str(emulated))
    assert out.strip() == "True"


# ---- without Python, under the sanitizers -------------------------------------------------------
def test_the_kernels_are_clean_and_right(driver: Path):
    done = drive(driver)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    assert " 0 failures" in done.stdout
    assert "Sanitizer" not in done.stderr


FOUND = {
    "address": ("overrun", "AddressSanitizer: heap-buffer-overflow"),
    "thread": ("race", "ThreadSanitizer: data race"),
}


def test_a_planted_bug_is_found(driver: Path):
    bug, report = FOUND[driver.name.rpartition("_")[2]]
    done = drive(driver, bug)
    assert done.returncode != 0
    assert report in done.stderr
    assert "planted.cpp" in done.stderr


def test_threads_that_miss_a_barrier_are_found(driver: Path):
    done = drive(driver, "divergence")
    assert done.returncode != 0
    assert "left a block whose others wait at __syncthreads" in done.stderr
