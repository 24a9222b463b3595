"""Chunks of samples through networks that several processes share, under torchrun."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from test_sample_group import ROOT, succeed

CHECKS = ROOT / "tests/support/torchrun/sharded_checks.py"
pytestmark = [
    pytest.mark.native,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]


@pytest.mark.parametrize(
    "check",
    ["wraps", "losses", "columns_and_rows", "mixed_precision", "accumulation", "objectives"],
)
def test_chunks_have_the_gradient_of_the_whole(check: str):
    succeed(2, CHECKS, check)


def test_what_cannot_work_is_named():
    succeed(2, CHECKS, "refusals")


@pytest.mark.skipif(importlib.util.find_spec("pyro") is None, reason="without Pyro")
def test_pyro_programs_have_the_gradient_of_the_whole():
    succeed(2, CHECKS, "pyro")
