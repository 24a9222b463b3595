"""A Pyro program's bound in chunks of samples, and shared among processes: exact in both passes.

The first pass keeps all log-weights, four bytes each, and no graph but the last chunk's. They give
the bound and every sample's weights. The backward pass runs the program for the same samples again,
chunk by chunk, and adds up the gradients.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from fastvi._modes import records_graphs
from fastvi.bounds.weighers import Weights
from fastvi.chunks import SampleGroup
from fastvi.chunks.graph import GraphPart, cut, new_mark, place, runs_whole
from fastvi.chunks.replay import Replay
from fastvi.chunks.surroundings import Surroundings
from fastvi.integrations.pyro._draws import Draws
from fastvi.integrations.pyro._evaluate import Evaluation, Setting, evaluate
from fastvi.integrations.pyro._programs import WHERE, Call
from fastvi.ops import new_key

# Log-weights of two passes that differ by this many nats come of two programs.
_PASSES_AGREE = 1e-3
_WORD = 2**64 - 1


@dataclass
class Stream:
    """How the samples are cut, and the key that all their noise comes from."""

    call: Call
    setting: Setting
    chunk_size: int
    group: SampleGroup | None
    key: Tensor = field(default_factory=new_key)

    @property
    def num_samples(self) -> int:
        return self.setting.weigher.num_samples

    @property
    def share(self) -> tuple[int, int]:
        return (0, self.num_samples) if self.group is None else self.group.share(self.num_samples)

    def chunks(self) -> list[tuple[int, int]]:
        begin, end = self.share
        return [(k, min(k + self.chunk_size, end)) for k in range(begin, end, self.chunk_size)]

    def evaluate(self, chunk: tuple[int, int], *, graph: bool) -> Evaluation:
        begin, end = chunk
        gradient = self.setting.weigher.gradient
        draws = Draws(end - begin, begin, None if gradient == "score" else gradient, self.key)
        seed = int(self.key[0]) + int(self.key[1])
        with torch.set_grad_enabled(graph), _seeded(seed, begin), _SameSubsample(seed):
            return evaluate(self.call, self.setting, end - begin, draws)

    def trial(self, samples: int) -> None:
        """Do with a few samples what is done with a chunk of them."""
        grads = records_graphs()
        begin, _ = self.share
        call = self.call
        surroundings = Surroundings(WHERE, (call.model, call.guide), self.num_samples, grads)
        mark = new_mark()
        with surroundings.trial():
            evaluation = self.evaluate((begin, begin + samples), graph=grads)
        if not grads:
            return
        like = evaluation.log_w.detach()
        score = None if evaluation.score is None else torch.full_like(like, 1.0)
        weights = Weights(
            like.mean(0), torch.full_like(like, 0.5), torch.full_like(like, 0.25), score
        )
        with torch.enable_grad():
            bound = evaluation.bound(weights, same=self.setting.weigher.same)
        if bound.requires_grad:
            part = GraphPart(bound, mark)
            with cut(part) as ends:
                torch.autograd.grad(bound.sum(), ends, allow_unused=True)


def streamed_loss(stream: Stream) -> Tensor:
    """The negative bound, differentiable where gradients are enabled."""
    if stream.group is not None:
        stream.key = stream.group.common_key(stream.key)
    needs_grad = records_graphs()
    replay = Replay(torch.device("cpu"))
    chunks = stream.chunks()
    if stream.num_samples < (1 if stream.group is None else stream.group.size):
        raise ValueError(
            f"{WHERE}: expected num_samples to be at least the size of group, "
            f"got {stream.num_samples} for {stream.group and stream.group.size}"
        )
    parts = []
    mark = 0
    surroundings = Surroundings(
        WHERE, (stream.call.model, stream.call.guide), len(chunks), needs_grad
    )
    if surroundings.is_lazy:
        with surroundings.trial():
            stream.evaluate((chunks[0][0], chunks[0][0] + 1), graph=False)
    with surroundings.shared():
        for chunk in chunks:
            with_graph = needs_grad and chunk is chunks[-1]
            if with_graph:
                mark = new_mark()
            last = stream.evaluate(chunk, graph=with_graph)
            parts.append(last.log_w.detach())
    log_w = torch.cat(parts)
    if stream.group is not None:
        log_w = _meet(stream, log_w)
    if not needs_grad:
        return -last.layout.scaled(stream.setting.weigher.bound(log_w))
    weights = stream.setting.weigher.weights(log_w, signals=last.score is not None)
    bound, first = weights.bound, _Pass(stream, replay, surroundings, weights, log_w)
    whole = first.keep(last, mark)
    if first.captured:
        beside = () if whole is None else (whole,)
        bound = _Streamed.apply(first, bound, *first.captured, *beside)
    return -last.layout.scaled(bound)


def _meet(stream: Stream, log_w: Tensor) -> Tensor:
    """All log-weights on every rank, each of which has its own."""
    group = stream.group
    assert group is not None
    facts = {**stream.setting.weigher.facts(), "number of data": log_w[0].numel()}
    group.check_agreement(facts, log_w.device)
    begin, end = stream.share
    full = log_w.new_zeros(stream.num_samples, *log_w.shape[1:])
    full[begin:end] = log_w
    return group.add(full)


@dataclass
class _Chunk:
    """The bound with the graph of some samples, as far as this run of the program made it."""

    bound: Tensor
    part: Any


@dataclass
class _Pass:
    """What the first pass leaves for the backward pass."""

    stream: Stream
    replay: Replay
    surroundings: Surroundings
    weights: Weights
    log_w: Tensor
    kept: _Chunk | None = None
    # What the program depends on, and the places of these in its graph.
    captured: list[Tensor] = field(default_factory=list)
    places: dict[tuple[object, int], int] = field(default_factory=dict)

    def keep(self, evaluation: Evaluation, mark: int) -> Tensor | None:
        """Keep the last chunk; returns its bound where that stays in the whole graph."""
        chunks = self.stream.chunks()
        self.kept = self._chunk(evaluation, chunks[-1], mark)
        if self.kept is None:
            return None
        for source in self.kept.part.sources:
            self.places[place(source)] = len(self.captured)
            self.captured.append(source)
        if not runs_whole(WHERE, self.kept.part, len(chunks)):
            return None
        if self.stream.group is not None:
            raise ValueError(
                f"{WHERE}: expected model and guide without hooks on their graphs, such as those "
                f"of sharded modules, where a group shares the samples; got some"
            )
        whole, self.kept = self.kept.bound, None
        return whole

    def gradients(self, grad: Tensor, *, last: bool) -> list[Tensor | None]:
        """Sum the gradients of all chunks, or of all but the last."""
        sums: list[Tensor | None] = [None] * len(self.captured)
        used: set[int] = set()
        kept, self.kept = self.kept, None
        chunks = self.stream.chunks()
        with self.replay.repeat(), self.surroundings.again():
            for chunk in reversed(chunks if last else chunks[:-1]):
                found = kept or self._again(chunk)
                if found is not None:
                    numbers = self._add(sums, found, grad)
                    used |= set() if kept is not None else numbers
                kept = None
                del found
        others = [source for number, source in enumerate(self.captured) if number not in used]
        if len(chunks) > 1:
            self._refuse(others, "only the last chunk used, in the forward pass")
        if self.stream.group is not None:
            sums = _sum_over_ranks(self.stream.group, self.captured, sums)
        return sums

    def _again(self, chunk: tuple[int, int]) -> _Chunk | None:
        mark = new_mark()
        evaluation = self.stream.evaluate(chunk, graph=True)
        self._check_values(evaluation.log_w.detach(), chunk)
        return self._chunk(evaluation, chunk, mark)

    def _chunk(self, evaluation: Evaluation, chunk: tuple[int, int], mark: int) -> _Chunk | None:
        """None where nothing of the chunk has a gradient."""
        with torch.enable_grad():
            same = self.stream.setting.weigher.same
            bound = evaluation.bound(self.weights.part(*chunk), same=same)
        return _Chunk(bound, GraphPart(bound, mark)) if bound.requires_grad else None

    def _refuse(self, others: list[Tensor], used: str) -> None:
        if others:
            shapes = ", ".join(str(list(source.shape)) for source in others)
            raise RuntimeError(
                f"{WHERE}: expected model and guide to have the same parameters for every chunk of "
                f"samples, in the forward pass and in the backward pass, got some of shape "
                f"{shapes}, which {used}; parameters that were put into a module for some time "
                f"(torch.func.functional_call does that, and is known) have to stay there until "
                f"the backward pass, or use chunk_size=None"
            )

    def _add(self, sums: list[Tensor | None], chunk: _Chunk, grad: Tensor) -> set[int]:
        """Add a chunk's gradients; returns the numbers of what it uses."""
        sources = chunk.part.sources
        self._refuse(
            [source for source in sources if place(source) not in self.places],
            "the last chunk did not use in the forward pass",
        )
        with cut(chunk.part) as ends:
            found = torch.autograd.grad(chunk.bound, ends, grad, allow_unused=True)
        for source, part in zip(sources, found, strict=True):
            if part is not None:
                index = self.places[place(source)]
                total = sums[index]
                sums[index] = part if total is None else total + part
        return {self.places[place(source)] for source in sources}

    def _check_values(self, log_w: Tensor, chunk: tuple[int, int]) -> None:
        before = self.log_w[chunk[0] : chunk[1]]
        difference = (log_w - before) / (1.0 + 1e-2 * before.abs())
        # Infinities and NaN tell nothing.
        if bool((torch.nan_to_num(difference, 0.0, 0.0, 0.0).abs() > _PASSES_AGREE).any()):
            raise RuntimeError(
                f"{WHERE}: expected model and guide to do the same in the backward pass as in the "
                f"forward pass, got other log-weights; with chunk_size their noise may come from "
                f"sample sites and torch's global generators only, and they may keep no state"
            )


def _sum_over_ranks(
    group: SampleGroup, captured: list[Tensor], sums: list[Tensor | None]
) -> list[Tensor | None]:
    """The gradient of all samples, on every rank."""
    return [
        group.add(torch.zeros_like(leaf) if part is None else part)
        for leaf, part in zip(captured, sums, strict=True)
    ]


class _Streamed(torch.autograd.Function):
    """The finished bound on the way forward, the second pass over the chunks on the way back."""

    @staticmethod
    def forward(ctx: Any, first: _Pass, bound: Tensor, *inputs: Tensor) -> Tensor:
        ctx.first = first
        ctx.is_whole = len(inputs) > len(first.captured)
        return bound.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        beside = (grad,) if ctx.is_whole else ()
        return None, None, *ctx.first.gradients(grad, last=not ctx.is_whole), *beside


# ---- the same noise -----------------------------------------------------------------------------
@contextlib.contextmanager
def _seeded(seed: int, offset: int) -> Iterator[None]:
    """torch's generators, seeded by what is drawn, and afterwards as they were."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(_mixed(seed, offset))
        yield


def _mixed(seed: int, place: int) -> int:
    """Spread a seed and a place over all bits: splitmix64."""
    x = (seed + 0x9E3779B97F4A7C15 * (place + 1)) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class _SameSubsample(Messenger):
    """Let a plate take the same sub-sample in every chunk, on every rank."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and msg["value"] is None and not msg["done"]:
            with _seeded(self.seed, zlib.crc32(msg["name"].encode())):
                msg["value"] = msg["fn"]()
