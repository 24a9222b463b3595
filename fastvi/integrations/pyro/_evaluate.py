"""The log-weights of some samples of a Pyro program, with the graph for an estimator."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from fastvi._modes import records_graphs
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.source import Evaluated, Path
from fastvi.distributions._support import chain_of
from fastvi.distributions.constant_parameters import log_prob_at
from fastvi.integrations.pyro._draws import Draws
from fastvi.integrations.pyro._layout import Layout, layout_of
from fastvi.integrations.pyro._preview import Preview, runs_alone
from fastvi.integrations.pyro._programs import (
    WHERE,
    Call,
    Site,
    Traces,
    check_match,
    check_reparameterized,
    counts,
    evaluate_log_prob,
    is_messenger,
    latents,
    needs_score,
    run_both,
    run_guide,
    run_model,
    sites,
)
from fastvi.integrations.pyro.acceleration import quick_checks


class Evaluation(Evaluated):
    """Log-densities of shape (K, *cells), and their layout in the sites' log-densities."""

    def __init__(
        self,
        log_p: Tensor,
        log_q: Tensor,
        score: Tensor | None,
        layout: Layout,
        traces: Traces,
        path: Path,
    ) -> None:
        super().__init__(log_p, log_q, score, path)
        self.layout = layout
        self.traces = traces

    def shaped(self, weight: Tensor) -> Tensor:
        return self.layout.from_cells(weight)


@dataclass(frozen=True)
class Setting:
    """The settings with which samples are evaluated."""

    nesting: int
    preview: Preview
    weigher: Weigher
    # Whether fastvi's kernels compute the log-densities.
    fused: bool = True


def evaluate(call: Call, setting: Setting, num_samples: int, draws: Draws) -> Evaluation:
    """Run guide and model for some samples; if they run only for one, an error says so."""
    try:
        with quick_checks() if setting.fused else contextlib.nullcontext():
            return _evaluate(call, setting, num_samples, draws)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, IndexError) as error:
        if num_samples == 1 or str(error).startswith(WHERE) or not runs_alone(call):
            raise
        raise ValueError(
            f"{WHERE}: model and guide ran for one sample, but not for {num_samples} at once, in a "
            f"plate of dim {-1 - setting.nesting}: {error}\nExpected them to broadcast, with no "
            f"plate or index that takes the samples for data; or use vectorize_particles=False"
        ) from error


def _evaluate(call: Call, setting: Setting, num_samples: int, draws: Draws) -> Evaluation:
    weigher, path = setting.weigher, Path()
    if is_messenger(call.guide):
        return _evaluate_messenger(call, setting, num_samples)
    nesting = setting.nesting
    guide, log_q_of = _run_guide(call, setting, num_samples, draws)
    model = run_model(call, num_samples, nesting, seen_by_model(guide, weigher, path))
    traces = _traces(call, setting, num_samples, model, guide)
    layout = layout_of(traces, nesting, weigher.linear)
    log_p = sum_model(traces, layout, setting.fused)
    return evaluation(num_samples, log_p, *log_q_of(layout), layout, traces, path)


def run_guide_alone(
    call: Call, setting: Setting, num_samples: int, draws: Draws, layout: Layout
) -> tuple[poutine.Trace, Tensor, Tensor | None]:
    """Run the guide of a pair whose layout is known: its trace, log q, and the score's log q."""
    if is_messenger(call.guide):
        raise ValueError(
            f"{WHERE}: expected backward_samples to be None for a guide that is a messenger "
            f"({type(poutine.unwrap(call.guide)).__name__}), which runs the model itself"
        )
    guide, log_q_of = _run_guide(call, setting, num_samples, draws)
    return guide, *log_q_of(layout)


def _run_guide(
    call: Call, setting: Setting, num_samples: int, draws: Draws
) -> tuple[poutine.Trace, Callable[[Layout], tuple[Tensor, Tensor | None]]]:
    """Run the guide: its trace, and what evaluates log q, and that of samples without a path."""
    weigher = setting.weigher
    gradient = weigher.gradient if records_graphs() else "total"
    guide = run_guide(call, num_samples, setting.nesting, draws)
    if gradient == "path":
        check_reparameterized(guide, weigher.estimator)
        along = _along_path(call, setting, guide, num_samples, draws)
        return guide, lambda layout: (along(layout), None)

    def log_q_of(layout: Layout) -> tuple[Tensor, Tensor | None]:
        traces, everything = Traces(poutine.Trace(), guide), gradient == "score"
        log_q, score = _sum_guide(traces, layout, draws, everything, setting.fused)
        return log_q.detach() if everything else log_q, score

    return guide, log_q_of


def seen_by_model(guide: poutine.Trace, weigher: Weigher, path: Path) -> poutine.Trace:
    """Return the samples as the model is to see them."""
    if not records_graphs() or weigher.same or weigher.gradient == "score":
        return guide
    return _with_weighed_samples(guide, path)


def evaluation(
    num_samples: int, log_p: Tensor, log_q: Tensor, score: Tensor | None, *rest: Any
) -> Evaluation:
    """Return one value for each sample and cell, even if nothing depends on them."""
    shape = torch.broadcast_shapes(log_p.shape, log_q.shape)
    shape = torch.Size((num_samples, *shape[1:]))
    score = None if score is None else score.expand(shape)
    return Evaluation(log_p.expand(shape), log_q.expand(shape), score, *rest)


def _with_weighed_samples(guide: poutine.Trace, path: Path) -> poutine.Trace:
    """Return the trace for the model: samples whose gradient is weighed in the backward pass.

    Later sites of the guide, and log q, take the guide's own samples, so that a gradient is weighed
    once, between the model and the guide.
    """
    seen = guide.copy()
    for site in latents(guide):
        value = site["value"]
        if value.requires_grad:
            value = path.attach(site["name"], value, site["fn"].event_dim)
            seen.nodes[site["name"]] = {**site, "value": value}
    return seen


def _evaluate_messenger(call: Call, setting: Setting, num_samples: int) -> Evaluation:
    weigher = setting.weigher
    if weigher.gradient != "total" or not weigher.same:
        raise ValueError(
            f"{WHERE}: expected estimator to be 'iwae' for a guide that is a messenger "
            f"({type(poutine.unwrap(call.guide)).__name__}), of a bound that weighs samples alike "
            f"for model and guide, got {weigher.estimator!r}"
        )
    model, guide = run_both(call, num_samples, setting.nesting)
    traces = _traces(call, setting, num_samples, model, guide)
    layout = layout_of(traces, setting.nesting, weigher.linear)
    log_q, score = _sum_guide(traces, layout, Draws(), False, setting.fused)
    log_p = sum_model(traces, layout, setting.fused)
    return evaluation(num_samples, log_p, log_q, score, layout, traces, Path())


def _traces(
    call: Call, setting: Setting, num_samples: int, model: poutine.Trace, guide: poutine.Trace
) -> Traces:
    check_match(model, guide, setting.nesting)
    traces = Traces(model, guide)
    if num_samples > 1:
        setting.preview.check_plates(call, traces, num_samples)
    return traces


# ---- sums over the sites ------------------------------------------------------------------------
def _term(layout: Layout, site: Site, log_prob: Tensor) -> Tensor:
    return layout.to_cells(scale_and_mask(log_prob, layout.inside(site), site["mask"]))


def _sum_terms(terms: list[Tensor], layout: Layout) -> Tensor:
    return (
        functools.reduce(torch.add, terms) if terms else torch.zeros((1,) * (1 + len(layout.cells)))
    )


def sum_model(traces: Traces, layout: Layout, fused: bool) -> Tensor:
    terms = [
        _term(layout, site, evaluate_log_prob(traces.model, site, layout.nesting, fused))
        for site in sites(traces.model)
        if counts(site)
    ]
    return _sum_terms(terms, layout)


def _sum_guide(
    traces: Traces, layout: Layout, draws: Draws, everything: bool, fused: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log q of all guide sites, and of the sites (or all) that are trained by the score."""
    terms = []
    score: Tensor | None = None
    for site in sites(traces.guide):
        if site["name"] in draws.log_q:
            site["unscaled_log_prob"] = draws.log_q[site["name"]]
        # A masked sample has no term of its own, but may change the terms of others. So VIMCO takes
        # the score of every sample, and the wake phase only that of unmasked ones.
        by_score = not everything and needs_score(site)
        log_prob = evaluate_log_prob(traces.guide, site, layout.nesting, fused, score=by_score)
        terms.append(_term(layout, site, log_prob))
        if everything:
            log_prob = scale_and_mask(log_prob, mask=site["mask"])
        if everything or by_score:
            term = layout.to_cells(log_prob)
            score = term if score is None else score + term
    return _sum_terms(terms, layout), score


# ---- the path -----------------------------------------------------------------------------------
def _along_path(
    call: Call,
    setting: Setting,
    guide: poutine.Trace,
    num_samples: int,
    draws: Draws,
) -> Callable[[Layout], Tensor]:
    """Return a function for log q of the samples, with constant parameters of the guide."""
    named = {site["name"]: site for site in latents(guide)}
    plain = set(named) == set(draws.log_q) == {site["name"] for site in sites(guide)}
    plain = plain and (len(named) < 2 or not _depend(list(named.values())))
    log_q = {name: draws.log_q[name] for name in named} if plain else {}
    samples = [site["value"] for site in named.values()]

    def sum_fused(layout: Layout) -> Tensor:
        terms = [_term(layout, named[name], value) for name, value in log_q.items()]
        return _sum_terms(terms, layout)

    def sum_again(layout: Layout) -> Tensor:
        def log_q_of(values: list[Tensor]) -> tuple[Tensor, Tensor]:
            again = guide.copy()
            for name, value in zip(named, values, strict=True):
                again.nodes[name] = {**again.nodes[name], "value": value}
            trace = run_model(
                Call(call.guide, call.guide, call.args, call.kwargs),
                num_samples,
                setting.nesting,
                again,
            )
            _evaluate_one_way(guide, trace)
            traces = Traces(poutine.Trace(), trace)
            total, _ = _sum_guide(traces, layout, Draws(), False, setting.fused)
            for name in named.keys() - draws.log_q.keys():
                drawn = trace.nodes[name]["unscaled_log_prob"]
                named[name]["unscaled_log_prob"] = drawn.detach()
            # The value has the bits of the value without a graph.
            with torch.no_grad():
                value, _ = _sum_guide(
                    Traces(poutine.Trace(), guide), layout, draws, False, setting.fused
                )
            return value, total

        return _AlongPath.apply(log_q_of, *samples)

    return sum_fused if plain else sum_again


def _evaluate_one_way(drawn: poutine.Trace, again: poutine.Trace) -> None:
    """Evaluate the sites whose transforms have no inverse, but keep their draw."""
    site: Site
    for site in latents(again):
        if chain_of(site["fn"]) is not None and site["mask"] is None:
            first: Site = drawn.nodes[site["name"]]
            site["unscaled_log_prob"] = log_prob_at(
                site["fn"], site["value"], first["fn"], first["value"]
            )


class _AlongPath(torch.autograd.Function):
    """Make a log-density a function of the samples alone, without its other inputs."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[list[Tensor]], tuple[Tensor, Tensor]], *values: Tensor
    ) -> Tensor:
        with torch.enable_grad():
            ctx.leaves = [value.detach().requires_grad_() for value in values]
            value, ctx.result = function(ctx.leaves)
        return value.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if not ctx.result.requires_grad:
            return None, *[None for _ in ctx.leaves]
        grads = torch.autograd.grad(
            ctx.result, ctx.leaves, grad, allow_unused=True, retain_graph=True
        )
        return None, *grads


def _depend(found: list[Site]) -> bool:
    """Return whether a sample's graph contains another site's sample: a hierarchy."""
    nodes = {site["value"].grad_fn for site in found if site["value"].grad_fn is not None}
    for site in found:
        start = site["value"].grad_fn
        seen: set[Any] = set()
        todo = [start] if start is not None else []
        while todo:
            for following, _ in todo.pop().next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    todo.append(following)
        if (seen - {start}) & nodes:
            return True
    return False
