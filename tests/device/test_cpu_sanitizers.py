"""The CPU kernels of every op under AddressSanitizer and UndefinedBehaviorSanitizer.

They run without Python or torch on arrays with nothing behind them, by the cases that the emulated
CUDA kernels run by, and at sizes about the widths of vectors, for each instruction set.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from cuda_build import ROOT, build

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.fixture(scope="module")
def driver() -> Path:
    probe = ["c++", "-fsanitize=address,undefined", "-x", "c++", "-", "-o", os.devnull]
    if subprocess.run(probe, input="int main() {}", capture_output=True, text=True).returncode:
        pytest.skip("this compiler has no sanitizers")
    return build("cpu_driver") / "cpu_driver"


def drive(driver: Path, isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FASTVI_CPU_ISA": isa, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([driver, *arguments], env=environment, capture_output=True, text=True)
    if "this machine does not have" in done.stderr:
        pytest.skip(f"this machine does not have {isa}")
    return done


ISAS = ["baseline", "avx2", "avx512"]


@pytest.mark.parametrize("isa", ISAS)
def test_the_kernels_are_clean_and_agree(driver: Path, isa: str):
    done = drive(driver, isa)
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    found = re.search(rf"{isa}: (\d+) comparisons, 0 failures", done.stdout)
    assert found is not None and int(found[1]) > 1000


FOUND = {
    "overrun": "AddressSanitizer: heap-buffer-overflow",
    "beyond": "AddressSanitizer: SEGV",
    "undefined": "runtime error: signed integer overflow",
}
# The sanitizer does not see the masked loads of AVX-512, which the page behind the array is for.
SEEN = [(lie, isa) for lie in FOUND for isa in ISAS if (lie, isa) != ("overrun", "avx512")]


@pytest.mark.parametrize(("lie", "isa"), SEEN, ids=["-".join(pair) for pair in SEEN])
def test_a_lie_about_an_array_is_found_in_the_kernel(driver: Path, lie: str, isa: str):
    done = drive(driver, isa, lie)
    assert done.returncode != 0
    assert FOUND[lie] in done.stderr
    assert re.search("csrc/(?:engines|maths|noise|simd)/", done.stderr)


def test_every_op_is_driven():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    listed = re.search(r"set\(FASTVI_OPS\s+(.*?)\)", cmake, re.DOTALL)
    assert listed is not None
    cases = "".join(
        f.read_text() for f in (ROOT / "tests/device/cuda_emulation").glob("driver_*.cpp")
    )
    for op in listed[1].split():
        header = (ROOT / "csrc" / op / f"{op}.h").read_text()
        kernels = re.findall(r"FASTVI_DECLARE_KERNEL\((\w+),", header)
        assert kernels
        missing = [name for name in kernels if not re.search(rf"\bfastvi::{name}\b", cases)]
        assert not missing, op
