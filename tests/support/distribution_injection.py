"""A pytest plugin that puts fastvi's distributions in the place of torch's: ``-p
distribution_injection``, before anything imports names from ``torch.distributions``.

The names are set on the package ``torch.distributions`` alone. Its submodules keep the originals,
of which ours are subclasses: the registry of ``kl_divergence``, and torch's other distributions,
look there. A program that imports from the package, as everybody does, gets ours; and so does Pyro,
which derives its classes from what it finds in the package.

With ``FASTVI_INJECT=0`` it changes nothing, and only seeds, so that a suite can be run both ways.
At the end it says how often each kernel ran.
"""

from __future__ import annotations

import functools
import os
from collections import Counter

import torch
from torch import distributions as package

from fastvi import distributions as ours
from fastvi import ops

INJECT = os.environ.get("FASTVI_INJECT", "1") != "0"
NAMES = [name for name in ours.__all__ if hasattr(package, name)]
KERNELS = [name for name in ops.__all__ if name.endswith("_log_prob")]
calls: Counter[str] = Counter()

# Suites draw parameters when they are imported.
torch.manual_seed(0)


def _counted(name: str):
    op = getattr(ops, name)

    @functools.wraps(op)  # its reference too
    def call(*args, **kwargs):
        calls[name] += 1
        return op(*args, **kwargs)

    return call


if INJECT:
    for _name in NAMES:
        setattr(package, _name, getattr(ours, _name))
    for _name in KERNELS:
        setattr(ops, _name, _counted(_name))


def pytest_report_header():
    return f"fastvi in the place of torch.distributions: {', '.join(NAMES) if INJECT else 'none'}"


def pytest_terminal_summary(terminalreporter):
    ran = ", ".join(f"{name} {calls[name]}" for name in KERNELS if calls[name])
    terminalreporter.write_line(f"kernels run: {ran or 'none'}")
