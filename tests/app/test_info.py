"""``fastvi info``: whether a better build exists for the machine."""

from __future__ import annotations

import pytest
import torch

from fastvi._version import WHEELS
from fastvi.app.info import better_build, runs_on

CPU = {"cuda": "", "cuda_architectures": "", "wheel": ""}
CUDA = {"cuda": "13.0", "cuda_architectures": "80-real 90", "wheel": ""}
WHEEL = {"cuda": "", "cuda_architectures": "", "wheel": "pt213cpu"}


@pytest.mark.parametrize(
    ("record", "torch_cuda", "capabilities", "gpu", "said"),
    [
        (CPU, None, [], False, "none for this machine"),
        (CPU, "13.0", [], False, "none for this machine"),
        (CUDA, "13.0", [(9, 0)], True, "none for this machine"),
        (CUDA, "13.0", [], True, "none for this machine"),
        (CPU, "13.0", [(9, 0)], True, "with nvcc on the PATH"),
        (WHEEL, "13.0", [(9, 0)], True, f"--find-links {WHEELS}"),
        (CPU, None, [], True, "install a torch with CUDA, and fastvi for it"),
        (CUDA, "13.0", [(9, 0), (7, 5)], True, "for architecture 7.5: TORCH_CUDA_ARCH_LIST='7.5'"),
    ],
    ids=[
        "cpu",
        "no GPU",
        "fits",
        "CUDA without a GPU",
        "a GPU unused",
        "a GPU unused by a wheel",
        "a GPU that torch does not know",
        "an older GPU",
    ],
)
def test_a_better_build(record, torch_cuda, capabilities, gpu, said):
    found = better_build(record, torch_cuda, capabilities, gpu)
    assert said in found and "\n" not in found


def test_the_wheel_for_a_gpu():
    minor = "".join(torch.__version__.split(".")[:2])
    assert f"+pt{minor}cu130'" in better_build(WHEEL, "13.0", [(9, 0)], True)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("80-real", (8, 0), True),
        ("80-real", (8, 6), True),
        ("86-real", (8, 0), False),
        ("80-real", (9, 0), False),
        ("80", (12, 0), True),
        ("80-virtual", (9, 0), True),
        ("90a-real", (9, 0), True),
        ("90a", (10, 0), False),
        ("80-real 120", (10, 0), False),
        ("", (8, 0), False),
    ],
    ids=str,
)
def test_which_device_kernels_serve(architectures: str, capability: tuple[int, int], runs: bool):
    assert runs_on(architectures, capability) is runs
