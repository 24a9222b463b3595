"""The two passes over a bound's samples: the exact value and gradient, a chunk at a time.

The samples of a chunk, their log-densities and the networks' activations live only while the chunk
is worked on. The first pass gathers what the bound needs of the log-weights. The backward pass
draws the same samples again, now with their weights known, and adds up the gradients. The last
chunk's graph is kept from the first pass, so that a single chunk costs no second one.

If a few samples are to run backward, the first pass keeps all log-weights and no graph, and the
second goes through the chosen samples alone.

Where nothing of the last chunk's graph has a hook, its gradients are taken apart from the rest, as
those of all other chunks are. Where something has, it stays a part of the whole graph: what wraps
a network, to shard it or to reduce its gradients, counts on its hooks being run with those of the
parameters, once, when the whole gradient arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastvi._compiler import not_compiled
from fastvi._modes import records_graphs, repeated
from fastvi.bounds.sums import Sums
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.choice import Choice
from fastvi.chunks.few import Few, parts_of, uniform_of
from fastvi.chunks.graph import GraphPart, cut, new_mark, place, runs_whole
from fastvi.chunks.replay import Replay
from fastvi.chunks.sample_group import awaited
from fastvi.chunks.setting import Cut, Setting, check_alike, gets_signals, sums_for
from fastvi.chunks.source import Evaluated, Samples, Source
from fastvi.chunks.summing import Gradients, checksum, differs, unlike


@not_compiled("the bound of chunks of samples is more than one graph")
def bound_in_passes(source: Source, weigher: Weigher, how: Cut) -> Tensor:
    r"""Compute the bound, (\*batch,), whose backward pass is the second pass over the samples."""
    if how.few is not None and (not records_graphs() or (how.group is None and how.few.rests)):
        how = replace(how, few=None)
    at_once = how.chunk_size is None and how.group is None and how.few is None
    if at_once and not weigher.may_lose_the_guide:
        return _at_once(source, weigher)
    return Passes(source, weigher, how).bound()


def _at_once(source: Source, weigher: Weigher) -> Tensor:
    """Compute the bound in one pass, with the graph of all samples."""
    samples = Samples(0, weigher.num_samples)
    source.prepare([samples])
    evaluated = source.evaluate(samples, graph=records_graphs())
    source.gathered(None)
    bound = bound_at_once(evaluated, weigher)
    assert bound is not None
    return bound


def bound_at_once(evaluated: Evaluated, weigher: Weigher) -> Tensor | None:
    r"""Return the bound, (\*batch,), of all samples; None if it takes two passes.

    It does where the model's weights are too small to carry those of the guide.
    """
    signals = gets_signals(weigher, evaluated)
    if weigher.is_plain and not signals and evaluated.is_whole:
        return weigher.bound(evaluated.log_p - evaluated.log_q)
    if not records_graphs():
        return weigher.bound(evaluated.log_w)
    weights = weigher.weights(evaluated.log_w, signals=signals)
    if weigher.may_lose_the_guide and weights.is_lost(evaluated.log_p.dtype):
        return None
    return evaluated.bound(weights)


@dataclass
class _Last:
    """The last chunk of the first pass: the bound with its graph, taken apart from the rest."""

    bound: Tensor
    part: Any


@dataclass
class Passes(Setting):
    """What the first pass leaves for the second."""

    sums: Sums = field(init=False)
    # One number for each chunk, (chunks,), which the second pass compares with its own: in one
    # tensor, for many small ones, each among a chunk's, would leave holes between them.
    checks: Tensor = field(init=False)
    chunks: list[Samples] = field(default_factory=list)
    replay: Replay | None = None
    kept: _Last | None = None
    # If few samples are to run backward: all log-weights of this process, and then the choice, for
    # which they are dropped.
    log_w: Tensor | None = None
    choice: Choice | None = None
    # What the samples depend on, and the places of these in their graphs: those of all chunks
    # first, then what one chunk alone depends on.
    captured: list[Tensor] = field(default_factory=list)
    places: dict[tuple[object, int], int] = field(default_factory=dict)
    shared: int = 0

    # ---- the first pass -------------------------------------------------------------------------
    def bound(self) -> Tensor:
        group, grads = self.how.group, records_graphs()
        if group is not None:
            if self.weigher.num_samples < group.size and self.source.nothing() is None:
                raise ValueError(
                    f"{self.source.where}: expected num_samples to be at least the size of group, "
                    f"{group.size}, got {self.weigher.num_samples}"
                )
            facts = {"num_samples": self.weigher.num_samples, **self.weigher.facts()}
            facts |= self.source.facts()
            group.check_agreement(facts, self.source.device)
            self.source.agree(group)
        last, mark = awaited(group, lambda: self._first(grads))
        if group is not None:
            if "number of data" not in facts:
                of_data = {"number of data": self.num_data}
                group.check_agreement(of_data, self.source.device)
            self.sums.meet(group)
        self.source.gathered(group)
        bound = self.sums.bound()
        if not grads:
            return bound
        few = self.how.few
        if few is not None:
            # A rank without samples waits for the others too.
            last, mark = awaited(group, lambda: self._choose(few) if self.chunks else (None, 0))
            if last is not None and len(self.chunks) == 1:
                self.remember(self.captured[: self.shared])
                return self._with_graph(last, self.chunks[0], self.before)
        if last is None:
            # Without samples nothing tells whether there is a gradient. Here it is zero.
            return bound.requires_grad_()
        whole = self._keep(last, mark)
        del last
        self.remember(self.captured[: self.shared])
        if not self.captured:
            return bound
        beside = () if whole is None else (whole,)
        return _InPasses.apply(
            self, bound, len(self.captured), *self.captured, *beside, *self.source.inputs
        )

    def _first(self, grads: bool) -> tuple[Evaluated | None, int]:
        """Gather the log-weights; returns the last chunk with its graph, and where that begins."""
        begin, end = self.share
        self.size = self.size_of_chunks(grads)
        few = self.how.few
        self.chunks = _cut(begin, end, self.size)
        if few is not None:
            self.choice_key = self.source.choice_key()
        if not self.chunks:
            nothing = self.source.nothing()
            assert nothing is not None
            self.num_data = nothing.shape[1:].numel()
            self.sums = self.weigher.sums()
            self.sums.add(begin, nothing)
            return None, 0
        self.source.prepare(self.chunks)
        surroundings = self.surround(len(self.chunks) + (few is not None), grads)
        if surroundings.is_lazy:
            with surroundings.trial():
                self.source.evaluate(Samples(begin, begin + 1), graph=False)
        if grads:
            self.replay = Replay(self.source.device, surroundings.generators)
        last, mark = None, 0
        for number, chunk in enumerate(self.chunks):
            last = None  # Two chunks never live at a time.
            with_graph = grads and few is None and chunk is self.chunks[-1]
            if with_graph:
                self.before = self._state()
                mark = new_mark()
            with surroundings.shared(), repeated(grads and few is None):
                last = self.source.evaluate(chunk, graph=with_graph)
            log_w = last.log_w
            if number == 0:
                self.sums = sums_for(self.weigher, last)
                self.signals = gets_signals(self.weigher, last)
                self.num_data = log_w[0].numel()
                self.checks = log_w.new_empty(len(self.chunks), dtype=torch.float64)
            self.sums.add(chunk.begin, log_w)
            if few is not None:
                self._keep_log_w(chunk, log_w)
            else:
                self.checks[number] = checksum(log_w)
        return last, mark

    # ---- the choice -----------------------------------------------------------------------------
    def _keep_log_w(self, chunk: Samples, log_w: Tensor) -> None:
        begin, end = self.share
        if len(self.chunks) == 1:
            self.log_w = log_w
            return
        if self.log_w is None:
            self.log_w = log_w.new_empty(end - begin, *log_w.shape[1:])
        self.log_w[chunk.begin - begin : chunk.end - begin] = log_w

    def _choose(self, few: Few) -> tuple[Evaluated, int]:
        """Choose the samples that run backward; returns the last chunk of them with its graph."""
        assert self.log_w is not None and self.surroundings is not None
        parts = parts_of(self.weigher, signals=self.signals)
        share, batch = self.share, self.log_w.shape[1:]
        uniform = uniform_of(self.choice_key, len(parts), share[0], batch)
        self.choice = few.choose(
            self.source.where,
            parts,
            self.sums,
            share,
            self.weigher.num_samples,
            self.log_w,
            uniform,
            takes_pairs=self.source.takes_pairs,
        )
        if self.choice is not None:
            self.log_w = None
            index, data = self.choice.index, self.choice.data
            size = self.size if data is None else self.size * self.num_data
            self.chunks = _cut(0, len(index), size, index, data)
            self.source.prepare(self.chunks)
        self.before = self._state()
        mark = new_mark()
        with self.surroundings.shared():
            last = self.source.evaluate(self.chunks[-1], graph=True)
        if bool(self._differs(len(self.chunks) - 1, last.log_w)):
            raise self._changed()
        return last, mark

    def _differs(self, number: int, log_w: Tensor) -> Tensor:
        """Tell whether the second pass finds other log-weights in a chunk than the first."""
        if self.how.few is None:
            return differs(self.checks[number], log_w)
        # The first pass had no graph, so its values may be rounded differently.
        chunk = self.chunks[number]
        if self.choice is None:
            assert self.log_w is not None
            begin = self.share[0]
            before = self.log_w[chunk.begin - begin : chunk.end - begin]
        else:
            before = self.choice.log_w[chunk.begin : chunk.end]
        coarse = log_w.dtype.itemsize < 4 or torch.is_autocast_enabled(log_w.device.type)
        return unlike(before, log_w, coarse=coarse)

    def _changed(self) -> RuntimeError:
        if self.how.few is None:
            may = (
                "with chunk_size it may draw noise from torch's generators only, and keep no state"
            )
        else:
            may = (
                "with backward_samples, which runs a few samples again among others, it may draw "
                "no noise and keep no state: put dropout and batch normalisation into evaluation "
                "mode, or use backward_samples=None"
            )
        return RuntimeError(
            f"{self.source.where}: expected the model to return the same values for the same "
            f"samples in the backward pass as in the forward pass, got others; {may}"
        )

    def _state(self) -> Replay | None:
        """Return the state before a chunk that may have to run once more."""
        if not self.weigher.may_lose_the_guide or self.surroundings is None:
            return None
        return Replay(self.source.device, self.surroundings.generators)

    def _keep(self, last: Evaluated, mark: int) -> Tensor | None:
        """Keep the last chunk; returns its bound where that stays in the whole graph."""
        bound = self._with_graph(last, self.chunks[-1], self.before)
        if not bound.requires_grad:
            return None
        part = GraphPart(bound, mark)
        own = {place(tensor) for tensor in self.source.own(self.chunks[-1])}
        for source in part.sources:
            if place(source) not in own:
                self.places[place(source)] = len(self.captured)
                self.captured.append(source)
        self.shared = len(self.captured)
        for chunk in self.chunks:
            for tensor in self.source.own(chunk):
                self.places[place(tensor)] = len(self.captured)
                self.captured.append(tensor)
        if not runs_whole(self.source.where, part, len(self.chunks)):
            self.kept = _Last(bound, part)
            return None
        check_alike(self.source.where, self.how, self.weigher.num_samples, self.size)
        return bound

    def _with_graph(self, evaluated: Evaluated, chunk: Samples, before: Replay | None) -> Tensor:
        """Return the bound, with the graph of a chunk."""
        if self.choice is None:
            weights = self.sums.weights(chunk.begin, evaluated.log_w)
        else:
            weights = self.choice.weights.part(chunk.begin, chunk.end)
        slopes = None
        if self.weigher.may_lose_the_guide and weights.is_lost(evaluated.log_p.dtype):
            slopes = self._slopes(chunk, before)
        with torch.enable_grad():
            return evaluated.bound(weights, slopes)

    def _slopes(self, chunk: Samples, before: Replay | None) -> dict[str, Tensor]:
        assert before is not None and self.surroundings is not None
        with before.repeat(), self.surroundings.again(), torch.enable_grad():
            return self.source.evaluate(chunk, graph=True).slopes()

    # ---- the second pass ------------------------------------------------------------------------
    def gradients(self, grad: Tensor, *, last: bool) -> list[Tensor | None]:
        """Sum the gradients of all chunks, or of all but the last."""
        sums = Gradients(self.captured)
        kept, self.kept = self.kept, None
        chunks = self.chunks if last and kept is None else self.chunks[:-1]
        if kept is not None:
            self._add(sums, kept.bound, kept.part, grad)
            del kept
        self._repeat(sums, chunks, grad)
        return sums.finished()

    def _repeat(self, sums: Gradients, chunks: Sequence[Samples], grad: Tensor) -> None:
        if not chunks:
            return
        assert self.replay is not None and self.surroundings is not None
        used: set[int] = set()
        differ = torch.zeros((), dtype=torch.bool, device=self.source.device)
        with self.replay.repeat(), self.surroundings.again():
            for number, chunk in enumerate(chunks):
                before, mark = self._state(), new_mark()
                with torch.enable_grad():
                    evaluated = self.source.evaluate(chunk, graph=True)
                differ |= self._differs(number, evaluated.log_w)
                bound = self._with_graph(evaluated, chunk, before)
                if bound.requires_grad:
                    used |= self._add(sums, bound, GraphPart(bound, mark), grad)
                del evaluated, bound
        self._refuse(
            [self.captured[number] for number in range(self.shared) if number not in used],
            "only the last chunk used, in the forward pass",
        )
        if bool(differ):
            raise self._changed()

    def _add(self, sums: Gradients, bound: Tensor, part: Any, grad: Tensor) -> set[int]:
        """Add a chunk's gradients; returns the numbers of what it uses."""
        sources = part.sources
        self._refuse(
            [source for source in sources if place(source) not in self.places],
            "the last chunk did not use in the forward pass",
        )
        with cut(part) as ends:
            found = torch.autograd.grad(bound, ends, grad, allow_unused=True)
        for source, each in zip(sources, found, strict=True):
            if each is not None:
                sums.add(self.places[place(source)], each)
        return {self.places[place(source)] for source in sources}

    def _refuse(self, others: Sequence[Tensor], used: str) -> None:
        if others:
            shapes = ", ".join(str(list(source.shape)) for source in others)
            raise RuntimeError(
                f"{self.source.where}: expected the model to depend on the same parameters for "
                f"every chunk of samples, in the forward pass and in the backward pass, got "
                f"parameters of shape {shapes}, which {used}; parameters that were put into a "
                f"module for some time (torch.func.functional_call does that, and is known) have "
                f"to stay there until the backward pass, or use chunk_size=None"
            )


def _cut(
    begin: int, end: int, size: int, index: Tensor | None = None, data: Tensor | None = None
) -> list[Samples]:
    """Cut a range into chunks; with an ``index`` its rows."""
    return [
        Samples(k, to, *(None if each is None else each[k:to] for each in (index, data)))
        for k, to in ((k, min(k + size, end)) for k in range(begin, end, size))
    ]


class _InPasses(torch.autograd.Function):
    """The finished bound on the way forward, the second pass over the chunks on the way back."""

    @staticmethod
    def forward(ctx: Any, first: Passes, bound: Tensor, count: int, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        ctx.first = first
        ctx.others = len(inputs) - count
        ctx.is_whole = first.kept is None and bool(first.captured)
        # Not the bound of a chunk that stays in the graph: nothing reads it.
        ctx.save_for_backward(*inputs[:count], *inputs[count + ctx.is_whole :])
        return bound.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        _ = ctx.saved_tensors  # Which refuses what was changed in place.
        found = ctx.first.gradients(grad, last=not ctx.is_whole)
        whole = (grad,) if ctx.is_whole else ()
        return None, None, None, *found, *whole, *[None] * (ctx.others - len(whole))
