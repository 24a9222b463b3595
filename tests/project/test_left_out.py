"""The summary counts what did not run for want of a device or of a compiler."""

from __future__ import annotations

from cuda_reports import needs_nvcc
from left_out import NO_DEVICE, left_out


def test_skipped_tests_are_counted():
    device = f"Skipped: {NO_DEVICE}"
    compiler = f"Skipped: {needs_nvcc.kwargs['reason']}"
    assert left_out([device, compiler, device, "no sanitizer"]) == [
        "2 CUDA tests skipped: no CUDA device on this machine",
        "1 CUDA tests skipped: no nvcc on this machine to compile and link them",
    ]
    assert left_out(["no sanitizer"]) == left_out([]) == []
