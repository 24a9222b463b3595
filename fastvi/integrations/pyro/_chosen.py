"""A few samples of a Pyro program: chosen among all that the guide draws, for the model alone."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from fastvi.chunks.choice import in_block
from fastvi.chunks.source import Path, Samples
from fastvi.integrations.pyro._evaluate import (
    Evaluation,
    Setting,
    evaluation,
    seen_by_model,
    sum_model,
)
from fastvi.integrations.pyro._layout import Layout
from fastvi.integrations.pyro._programs import Call, Traces, latents, run_model

Found = tuple[poutine.Trace, Tensor, Tensor | None]


class Chosen:
    """Take the chosen samples, numbers of shape (m, *cells), out of the guide's, chunk by chunk."""

    def __init__(self, index: Tensor, layout: Layout) -> None:
        self.index = index
        self.layout = layout
        self.trace: poutine.Trace | None = None
        self.log_q: Tensor | None = None
        self.score: Tensor | None = None

    def add(self, samples: Samples, found: Found) -> None:
        """Take the chosen samples of a chunk, whose guide has been evaluated."""
        guide, log_q, score = found
        count = len(samples)
        here, inside = in_block(self.index, samples.begin, samples.end)
        trace = guide.copy()
        for site in latents(guide):
            value = self._value(site, count, here)
            if self.trace is not None:
                chosen = self.layout.from_cells(inside)
                chosen = chosen.reshape(*chosen.shape, *[1] * site["fn"].event_dim)
                before: Any = self.trace.nodes[site["name"]]
                value = torch.where(chosen, value, before["value"])
            trace.nodes[site["name"]] = {**site, "value": value}
        self.trace = trace
        self.log_q = self._log_prob(log_q, count, here, inside, self.log_q)
        if score is not None:
            self.score = self._log_prob(score, count, here, inside, self.score)

    def evaluate(self, call: Call, setting: Setting) -> Evaluation:
        """Run the model at the chosen samples."""
        assert self.trace is not None and self.log_q is not None
        count, path = len(self.index), Path()
        seen = seen_by_model(self.trace, setting.weigher, path)
        if count == 1:
            seen = _alone(seen)
        model = run_model(call, count, setting.nesting, seen)
        traces = Traces(model, self.trace)
        log_p = sum_model(traces, self.layout, setting.fused)
        return evaluation(count, log_p, self.log_q, self.score, self.layout, traces, path)

    def _value(self, site: Any, count: int, here: Tensor) -> Tensor:
        """Take the chosen values of a site: of shape (m, *plates, *event)."""
        value, events = site["value"], site["fn"].event_dim
        batch = value.shape[: value.ndim - events]
        # A chunk of one sample has no dimension of samples.
        padded = (1,) * (self.layout.nesting + 1 - len(batch)) + tuple(batch)
        value = value.reshape(*padded, *value.shape[len(batch) :])
        index = self.layout.from_cells(here)
        plates = torch.broadcast_shapes(index.shape[1:], padded[1:])
        value = value.expand(count, *plates, *value.shape[len(padded) :])
        index = index.expand(-1, *plates).reshape(len(index), *plates, *[1] * events)
        return value.gather(0, index.expand(-1, *value.shape[1:]))

    def _log_prob(
        self, log_prob: Tensor, count: int, here: Tensor, inside: Tensor, before: Tensor | None
    ) -> Tensor:
        chosen = log_prob.expand(count, *here.shape[1:]).gather(0, here)
        return chosen if before is None else torch.where(inside, chosen, before)


def _alone(seen: poutine.Trace) -> poutine.Trace:
    """Return one sample's values without the dimension of samples."""
    trace = seen.copy()
    for site in latents(seen):
        trace.nodes[site["name"]] = {**site, "value": site["value"][0]}
    return trace
