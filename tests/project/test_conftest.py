"""The summary counts what did not run for want of a device or of a compiler."""

from __future__ import annotations

from types import SimpleNamespace

import conftest
from cuda_reports import needs_nvcc


def summary(*reasons: str) -> list[str]:
    lines: list[str] = []
    skipped = [SimpleNamespace(longrepr=("file.py", 1, f"Skipped: {why}")) for why in reasons]
    conftest.pytest_terminal_summary(
        SimpleNamespace(stats={"skipped": skipped}, write_line=lines.append)
    )
    return lines


def test_skipped_tests_are_counted():
    device, compiler = conftest.NO_DEVICE, needs_nvcc.kwargs["reason"]
    assert summary(device, compiler, device, "no sanitizer") == [
        "2 CUDA tests skipped: no CUDA device on this machine",
        "1 CUDA tests skipped: no nvcc on this machine to compile and link them",
    ]
    assert summary("no sanitizer") == summary() == []
