"""A trial run for one sample: the nesting of plates, and checks of the run for all samples."""

from __future__ import annotations

import types
import warnings
from dataclasses import dataclass, field

import torch
from pyro import poutine

from fastvi.integrations.pyro._masks import masked_log_prob
from fastvi.integrations.pyro._programs import (
    WHERE,
    Call,
    Program,
    Traces,
    is_messenger,
    plates_of,
    run_both,
    run_model,
)


@dataclass
class Preview:
    """Facts of a program from a run for one sample."""

    model: Program
    guide: Program
    nesting: int = 0
    # The sizes of each plate: a last batch may be smaller than the others.
    sizes: dict[str, set[int]] = field(default_factory=dict)

    def is_of(self, call: Call) -> bool:
        return _same(self.model, call.model) and _same(self.guide, call.guide)

    def check_plates(self, call: Call, traces: Traces, num_samples: int) -> None:
        """Refuse a plate whose size grows with the number of samples, as if they were data."""
        for name, size in _sizes(traces).items():
            if size in self.sizes.get(name, ()):
                continue
            alone = _sizes(_run(call))
            self._add(alone)
            if alone.get(name, size) != size:
                site = next(x["name"] for x in traces.sites() if name in plates_of(x))
                raise ValueError(
                    f"{WHERE}: expected the size of plate {name!r} not to depend on the number of "
                    f"samples, got {alone[name]} for one and {size} for {num_samples} (at site "
                    f"{site!r}); take it from the data, not from the shape of a sample, or use "
                    f"vectorize_particles=False"
                )

    def _add(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            self.sizes.setdefault(name, set()).add(size)


def preview(call: Call) -> Preview:
    """Run the pair for one sample, without other handlers and without a change of generators."""
    traces = _run(call)
    found = Preview(call.model, call.guide)
    found._add(_sizes(traces))
    for site in traces.sites():
        for frame in plates_of(site).values():
            if frame.vectorized:
                found.nesting = max(found.nesting, -frame.dim)
    return found


def runs_alone(call: Call) -> bool:
    """Return whether one sample runs, after several did not: then they do not broadcast."""
    try:
        _run(call, densities=True)
    except (ValueError, RuntimeError, IndexError):
        return False
    return True


def _run(call: Call, *, densities: bool = False) -> Traces:
    devices = range(torch.cuda.device_count())
    with poutine.block(), torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_messenger(call.guide):
            model, guide = run_both(call, 1, 0)
        else:
            guide = poutine.trace(call.guide).get_trace(*call.args, **call.kwargs)
            model = run_model(call, 1, 0, guide)
        traces = Traces(model, guide)
        if densities:
            for site in traces.sites():
                how = site["fn"], site["value"], site["mask"], False
                masked_log_prob(*how, *site["args"], **site["kwargs"])
    return traces


def _sizes(traces: Traces) -> dict[str, int]:
    found: dict[str, int] = {}
    for site in traces.sites():
        for name, frame in plates_of(site).items():
            found[name] = int(frame.size)
    return found


def _same(one: Program, other: Program) -> bool:
    """Return whether two callables are the same; each access of a method makes a new object."""
    return one is other or (isinstance(one, types.MethodType) and one == other)
