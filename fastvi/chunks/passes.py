"""The two passes of a streamed bound, and the nodes that stand for them in the graph.

Where nothing of the last chunk's graph has a hook, its gradients are taken apart from the rest, as
those of all other chunks are. Where something has, it stays a part of the whole graph: what wraps
a network, to shard it or to reduce its gradients, counts on its hooks being run with those of the
parameters, once, when the whole gradient arrives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastvi.bounds.sums import Sums
from fastvi.chunks.gradients import Draw, Gradients, Guide
from fastvi.chunks.graph import cut, place, runs_whole
from fastvi.chunks.replay import Replay
from fastvi.chunks.sample_group import SampleGroup
from fastvi.chunks.streamed import Streamed
from fastvi.chunks.surroundings import Surroundings
from fastvi.chunks.totals import Terms, Totals

# Log-weights of two passes that differ by this many nats (more, where they are large) ran two
# functions; what rounding alone does to large ones is far less.
_PASSES_AGREE = 1e-3
_ROUNDING = 1e-6


@dataclass
class Chunk:
    """Some samples, and their likelihood with its graph where that was asked for."""

    draw: Draw
    z: Tensor
    log_px: Tensor
    terms: Terms
    # What the likelihood itself made of the graph.
    part: Any = None
    # The state before it, where the likelihood may have to run once more.
    replay: Replay | None = None

    def is_of_samples(self, source: Tensor) -> bool:
        return place(source) == place(self.z)


@dataclass
class Joint:
    """Where the samples of a chunk that stays in the whole graph give their gradient."""

    # Finishes the gradients of the guide, once that of the samples is known.
    finish: Callable[[Tensor | None], Gradients] | None = None
    token: Tensor | None = None


@dataclass
class Pass:
    """What the first pass leaves for the backward pass."""

    stream: Streamed
    totals: Totals
    sums: Sums | None = None
    replay: Replay | None = None
    surroundings: Surroundings | None = None
    kept: Chunk | None = None
    # The likelihood of a kept chunk that stays in the whole graph, until it is put there.
    whole: Tensor | None = None
    joint: Joint = field(default_factory=Joint)
    # One number for each chunk, to be compared with what the backward pass finds.
    checks: list[Tensor] = field(default_factory=list)
    # What the likelihood depends on, and the places of these in its graph.
    captured: list[Tensor] = field(default_factory=list)
    places: dict[tuple[object, int], int] = field(default_factory=dict)

    # ---- forward ------------------------------------------------------------------------------
    def run(
        self, guide: Guide, needs_grad: bool, join: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        stream = self.stream
        draws = stream.draws()
        if self.surroundings is None:
            self.surroundings = Surroundings(
                stream.where, stream.log_likelihood, len(draws), needs_grad
            )
        if self.surroundings.is_lazy:
            with self.surroundings.trial():
                stream.evaluate(guide, replace(draws[0], size=1), graph=False)
        if needs_grad and len(draws) > 0:
            self.replay = Replay(guide.loc.device)
        if stream.sums is not None:
            self.sums = stream.sums()
        own: list[Tensor] = []
        for draw in draws:
            with_graph = needs_grad and draw is draws[-1]
            with self.surroundings.shared():
                chunk = stream.evaluate(guide, draw, graph=with_graph, join=join)
            if self.sums is not None and stream.group is not None:
                own.append(chunk.terms.log_w)
            elif self.sums is not None:
                self.sums.add(draw.offset, chunk.terms.log_w)
            else:
                self.totals.add(chunk.terms)
            if with_graph:
                self.keep(chunk)
                if chunk.part is not None and runs_whole(stream.where, chunk.part, len(draws)):
                    stream.check_shares()
                    self.whole = chunk.log_px
                    # Without the graph, which would hold on to what holds on to this.
                    self.kept = replace(
                        chunk, z=chunk.z.detach(), log_px=chunk.log_px.detach(), part=None
                    )
            elif needs_grad:
                self.checks.append(_gist(chunk.terms))
            del chunk
        if stream.group is not None:
            like = torch.empty(0, dtype=guide.acc, device=guide.loc.device)
            self.totals.meet(stream.group, guide.batch, like)
            if self.sums is not None:
                self.sums.add(0, self._of_all_ranks(stream.group, own, guide))
        if self.sums is not None:
            return self.sums.bound()
        return self.totals.bound(stream.num_samples)

    def _of_all_ranks(self, group: SampleGroup, own: list[Tensor], guide: Guide) -> Tensor:
        """The log-weights of all samples, in one type, which a rank without samples cannot know."""
        shape = (self.stream.num_samples, *guide.batch)
        everything = torch.zeros(shape, dtype=torch.float64, device=guide.loc.device)
        if own:
            everything[slice(*self.stream.share)] = torch.cat(own).double()
        return group.add(everything).to(guide.acc)

    def keep(self, chunk: Chunk) -> None:
        self.kept = chunk
        for source in () if chunk.part is None else chunk.part.sources:
            if not chunk.is_of_samples(source):
                self.places[place(source)] = len(self.captured)
                self.captured.append(source)

    # ---- backward -----------------------------------------------------------------------------
    def gradients(self, guide: Guide, grad: Tensor) -> Gradients:
        """Sum the gradients of all chunks, taken apart from the rest of the graph."""
        sums = Gradients(guide, len(self.captured))
        kept, self.kept = self.kept, None
        draws = self.stream.draws()
        if kept is not None:
            draws = draws[:-1]
            self._add(sums, grad, kept)
            del kept
        self._repeat(sums, guide, grad, draws)
        return sums

    def gradients_beside_the_kept(self, guide: Guide, grad: Tensor) -> tuple[Gradients, Tensor]:
        """Sum the gradients of all chunks but the last, and compute that of its likelihood."""
        assert self.kept is not None
        kept = self.kept
        sums = Gradients(guide, len(self.captured))
        self._repeat(sums, guide, grad, self.stream.draws()[:-1])
        model, path = self._weights(kept)

        def finish(grad_z: Tensor | None) -> Gradients:
            self._add_guide(sums, grad, kept, model, path, grad_z)
            return sums

        if self.joint.token is None:
            finish(None)
        else:
            self.joint.finish = finish
        return sums, (model * grad.to(model.dtype)).to(kept.log_px.dtype)

    def _repeat(self, sums: Gradients, guide: Guide, grad: Tensor, draws: list[Draw]) -> None:
        if not draws:
            return
        assert self.replay is not None and self.surroundings is not None
        used: set[int] = set()
        differ = torch.zeros((), dtype=torch.bool, device=guide.loc.device)
        with self.replay.repeat(), self.surroundings.again():
            for number, draw in enumerate(draws):
                chunk = self.stream.evaluate(guide, draw, graph=True)
                used |= self._check_sources(chunk)
                if number < len(self.checks):
                    differ |= _differs(self.checks[number], chunk.terms)
                self._add(sums, grad, chunk)
                del chunk
        self._refuse(
            [source for number, source in enumerate(self.captured) if number not in used],
            "only the last chunk used, in the forward pass",
        )
        if bool(differ):
            raise RuntimeError(
                f"{self.stream.where}: expected log_likelihood to return the same values for the "
                f"same z in the backward pass as in the forward pass, got others; with chunk_size "
                f"it may draw noise from torch's global generators only, and keep no state"
            )

    def _check_sources(self, chunk: Chunk) -> set[int]:
        """The numbers of what the chunk uses, all of which the last chunk uses too."""
        sources = () if chunk.part is None else chunk.part.sources
        sources = [source for source in sources if not chunk.is_of_samples(source)]
        self._refuse(
            [source for source in sources if place(source) not in self.places],
            "the last chunk did not use in the forward pass",
        )
        return {self.places[place(source)] for source in sources}

    def _refuse(self, others: Sequence[Tensor], used: str) -> None:
        if others:
            shapes = ", ".join(str(list(source.shape)) for source in others)
            raise RuntimeError(
                f"{self.stream.where}: expected log_likelihood to depend on the same parameters "
                f"for every chunk of samples, in the forward pass and in the backward pass, got "
                f"parameters of shape {shapes}, which {used}; parameters that were put into a "
                f"module for some time (torch.func.functional_call does that, and is known) have "
                f"to stay there until the backward pass, or use chunk_size=None"
            )

    def _weights(self, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
        """What the samples count: for the model, and for the guide where that is something else."""
        if self.sums is not None:
            return self.sums.weights(chunk.draw.offset, chunk.terms.log_w)
        return self.totals.weights(chunk.terms, self.stream.num_samples), None

    def _add(self, sums: Gradients, grad: Tensor, chunk: Chunk) -> None:
        self.add_weighted(sums, grad, chunk, *self._weights(chunk))

    def add_weighted(
        self, sums: Gradients, grad: Tensor, chunk: Chunk, model: Tensor, path: Tensor | None
    ) -> None:
        """Add the gradients of a chunk whose samples have these weights."""
        grad_z = self._through_likelihood(sums, chunk, model * grad.to(model.dtype))
        self._add_guide(sums, grad, chunk, model, path, grad_z)

    def _add_guide(
        self,
        sums: Gradients,
        grad: Tensor,
        chunk: Chunk,
        model: Tensor,
        path: Tensor | None,
        grad_z: Tensor | None,
    ) -> None:
        """Add the gradients of the guide and the prior, given the samples' from the likelihood."""
        stream, guide, draw = self.stream, sums.guide, chunk.draw
        if path is not None:
            self._add_apart(sums, grad, chunk, model, path, grad_z)
        elif guide.needs_grad:
            grad_density = (stream.beta * model * grad.to(model.dtype)).to(guide.acc)
            if stream.estimator.gradient == "score":
                sums.add_score(draw, grad_density)
            elif stream.estimator.path_weight is None:
                sums.add_path(draw, stream.estimator.gradient, grad_z, grad_density)
            else:
                weight = stream.estimator.path_weight(model, stream.alpha).to(guide.acc)
                sums.add_path(draw, "path_weighted", grad_z, grad_density, weight)

    def _add_apart(
        self,
        sums: Gradients,
        grad: Tensor,
        chunk: Chunk,
        model: Tensor,
        path: Tensor,
        grad_z: Tensor | None,
    ) -> None:
        """Add them where the weights are one for the model, one for the guide."""
        guide, draw = sums.guide, chunk.draw
        if not guide.needs_grad:
            return
        if grad_z is not None and path is not model:
            # A smaller weight than this may be lost on its way through the likelihood.
            least = torch.finfo(chunk.log_px.dtype).tiny ** 0.5 * path.abs()
            if bool((model.abs() < least).any()):
                grad_z = self._once_more(guide, chunk, path * grad)
            else:
                ratio = torch.where(model == 0.0, 0.0, path / model)
                grad_z = grad_z * ratio[..., None].to(grad_z.dtype)
        path = (path * grad).to(guide.acc)
        sums.add_path(draw, self.stream.estimator.gradient, grad_z, path, with_prior=False)
        sums.add_prior(draw, (model * grad).to(guide.acc))

    def _once_more(self, guide: Guide, chunk: Chunk, grad_px: Tensor) -> Tensor | None:
        """The gradient of z alone, by another run of the likelihood: the first graph is used up."""
        assert chunk.replay is not None
        assert self.surroundings is not None
        with chunk.replay.repeat(), self.surroundings.again():
            again = self.stream.evaluate(guide, chunk.draw, graph=True)
        grad_px = grad_px.to(again.log_px.dtype)
        return torch.autograd.grad(again.log_px, again.z, grad_px, allow_unused=True)[0]

    def _through_likelihood(self, sums: Gradients, chunk: Chunk, grad_px: Tensor) -> Tensor | None:
        """Add the gradients of what the likelihood captured; returns that of z."""
        if chunk.part is None:
            return None
        with cut(chunk.part) as ends:
            grads = torch.autograd.grad(
                chunk.log_px, ends, grad_px.to(chunk.log_px.dtype), allow_unused=True
            )
        grad_z = None
        for source, part in zip(chunk.part.sources, grads, strict=True):
            if chunk.is_of_samples(source):
                grad_z = part
            elif part is not None:
                sums.add_captured(self.places[place(source)], part)
        return grad_z


def _gist(terms: Terms) -> Tensor:
    """The sum of the finite log-weights: infinities and NaN tell nothing."""
    return torch.nan_to_num(terms.log_w, 0.0, 0.0, 0.0).sum(dtype=torch.float64)


def _differs(before: Tensor, terms: Terms) -> Tensor:
    """Whether a chunk's log-weights are others than before, if only in a random way."""
    log_w = torch.nan_to_num(terms.log_w, 0.0, 0.0, 0.0)
    count = max(1, log_w.numel())
    size = log_w.abs().sum(dtype=torch.float64) / count
    slack = _PASSES_AGREE * math.sqrt(count) * (1.0 + 1e-2 * size) + _ROUNDING * count * size
    return (log_w.sum(dtype=torch.float64) - before).abs() > slack


# ---- nodes of the graph -------------------------------------------------------------------------
class _Samples(torch.autograd.Function):
    """The last chunk's samples, which give the guide its gradient where they get their own."""

    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any, joint: Joint, z: Tensor, *values: Tensor | None
    ):
        ctx.joint = joint
        ctx.dtypes = [None if value is None else value.dtype for value in values]
        ctx.set_materialize_grads(False)
        return z.detach(), z.new_zeros(())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_z: Tensor | None, _: Tensor | None
    ) -> tuple[Any, ...]:
        finish, ctx.joint.finish = ctx.joint.finish, None
        assert finish is not None
        sums = finish(grad_z)
        grads = [sums.loc, sums.log_var, *(sums.prior or (None, None))]
        return None, None, *_in_types(grads, ctx.dtypes)


def joined(first: Pass, values: tuple[Tensor | None, ...]) -> Callable[[Tensor], Tensor]:
    """Make samples a result of the guide's values, for as long as their chunk is in the graph."""

    def join(z: Tensor) -> Tensor:
        z, first.joint.token = _Samples.apply(first.joint, z, *values)
        return z

    return join


class StreamedBound(torch.autograd.Function):
    """The finished bound on the way forward, the second pass over the chunks on the way back."""

    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any, first: Pass, bound: Tensor, *inputs: Tensor | None
    ):
        ctx.first = first
        # Not the likelihood of a chunk that stays in the graph: nothing reads it.
        ctx.save_for_backward(*inputs[: 4 + len(first.captured)])
        ctx.is_whole = first.whole is not None
        first.whole = None
        return bound.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        first, inputs = ctx.first, ctx.saved_tensors
        loc, log_var, prior_loc, prior_log_var = inputs[:4]
        prior = None if prior_loc is None else (prior_loc.detach(), prior_log_var.detach())
        needs_grad = any(ctx.needs_input_grad[2:6])
        guide = Guide(loc.detach(), log_var.detach(), prior, needs_grad)
        beside: tuple[Tensor | None, ...] = ()
        if ctx.is_whole:
            sums, grad_px = first.gradients_beside_the_kept(guide, grad)
            token = first.joint.token
            beside = (grad_px, None if token is None else torch.zeros_like(token))
        else:
            sums = first.gradients(guide, grad)
        grads = [sums.loc, sums.log_var, *(sums.prior or (None, None))]
        if ctx.is_whole and first.joint.token is not None:
            # From the samples, once they have their gradient.
            grads = [None] * 4
        grads += sums.captured
        return None, None, *_in_types(grads, [x is not None and x.dtype for x in inputs]), *beside


def _in_types(grads: list[Tensor | None], dtypes: list[Any]) -> list[Tensor | None]:
    return [
        None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)
    ]
