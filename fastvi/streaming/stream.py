"""Bounds of very many samples: the exact value and gradient, a chunk of samples at a time.

The samples of a chunk, their log-densities and the likelihood's activations live only while the
chunk is worked on. The first pass meets in a running log-sum-exp. The backward pass draws the same
samples again, now with their normalised weights known, runs the likelihood forward and backward,
and adds up the gradients. The last chunk's graph is kept from the first pass, so that a single
chunk costs no second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._loss_arguments import LogLikelihood, OfData, Prior, log_px_of
from fastvi.estimators import Estimator
from fastvi.ops._call import transforms_active
from fastvi.streaming.chunk_size import chunk_size_for
from fastvi.streaming.gradients import Draw, Gradients, Guide
from fastvi.streaming.graph import among, leaves_of, mark, without_hooks
from fastvi.streaming.replay import Replay
from fastvi.streaming.sample_group import SampleGroup
from fastvi.streaming.totals import Terms, Totals

# Two passes whose sums differ by this many nats (more, for large log-weights) ran two functions.
_PASSES_AGREE = 1e-3

# From all log-weights, [K, *batch]: the bound, [*batch], and what each sample counts for the model
# and for the guide, [K, *batch] each.
Weigh = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass
class _Chunk:
    """Some samples, and their likelihood with its graph where that was asked for."""

    draw: Draw
    z: Tensor
    log_px: Tensor
    terms: Terms
    first_node: int = 0


@dataclass
class Stream:
    """A bound of K samples, how it is differentiated, and how its samples are cut."""

    where: str
    log_likelihood: LogLikelihood
    num_samples: int
    estimator: Estimator
    key: Tensor
    # Samples at a time: all of them (None), a number, or what the budget, in bytes, allows.
    chunk_size: int | Literal["auto"] | None = None
    memory_budget: int | None = None
    alpha: float = 0.0
    # The weight of log p - log q beside log p(x | z).
    beta: float = 1.0
    # For bounds whose weights are no function of a running sum.
    weigh: Weigh | None = None
    group: SampleGroup | None = None
    # Whether the key was drawn here, so that the first rank's may serve all.
    own_key: bool = False
    # What else the ranks must have alike.
    alike: Mapping[str, object] = field(default_factory=dict)
    validate_args: bool = False

    def bound(self, loc: Tensor, log_var: Tensor, prior: Prior | None) -> Tensor:
        r"""Compute the bound, shape (\*batch,), differentiable in all that it depends on."""
        if transforms_active():
            raise RuntimeError(
                f"{self.where}: chunk_size, group and estimators other than 'iwae', 'stl' and "
                f"'dreg' do not work under torch.func transforms"
            )
        return _bound(self, loc, log_var, prior)

    @property
    def share(self) -> tuple[int, int]:
        """The range of k that this process draws."""
        return (0, self.num_samples) if self.group is None else self.group.share(self.num_samples)

    def draws(self) -> list[Draw]:
        """Every chunk of this process."""
        begin, end = self.share
        step = self.chunk_size or max(1, end - begin)
        assert isinstance(step, int)
        return [Draw(self.key, k, min(step, end - k)) for k in range(begin, end, step)]

    def evaluate(self, guide: Guide, draw: Draw, *, graph: bool) -> _Chunk:
        z, log_q, log_p = guide.sample(draw)
        with torch.set_grad_enabled(graph):
            first_node = mark() if graph else 0
            if graph and guide.needs_grad and self.estimator.gradient != "score":
                z.requires_grad_()
            log_px = log_px_of(self.where, self.log_likelihood, z, self.validate_args)
        dtype = torch.promote_types(log_px.dtype, log_q.dtype)
        terms = Terms(
            log_px.detach().to(dtype),
            self._weighted(log_p).to(dtype),
            self._weighted(log_q).to(dtype),
        )
        return _Chunk(draw, z, log_px, terms, first_node)

    def _weighted(self, log_density: Tensor) -> Tensor:
        if self.beta == 1.0:
            return log_density
        # Without a weight they do not count, infinite ones neither.
        return torch.zeros_like(log_density) if self.beta == 0.0 else self.beta * log_density


@dataclass
class _Pass:
    """What the first pass leaves for the backward pass."""

    stream: Stream
    totals: Totals
    # Of all chunks but the last, to be compared with what the backward pass finds.
    without_last: Totals
    replay: Replay | None = None
    kept: _Chunk | None = None
    weights: tuple[Tensor, Tensor] | None = None
    captured: list[Tensor] = field(default_factory=list)
    # Whether the likelihood's graph goes on into one that was made before, and must outlive it.
    reaches_out: bool = False

    # ---- forward ------------------------------------------------------------------------------
    def run(self, guide: Guide, needs_grad: bool) -> Tensor:
        stream = self.stream
        draws = stream.draws()
        if needs_grad and len(draws) > 0:
            self.replay = Replay(guide.loc.device)
        log_w = []
        for draw in draws:
            last = draw is draws[-1]
            if last:
                self.without_last = self.totals.copy()
            chunk = stream.evaluate(guide, draw, graph=needs_grad and last)
            if stream.weigh is not None:
                log_w.append(chunk.terms.log_w)
            else:
                self.totals.add(chunk.terms)
            if needs_grad and last:
                self._keep(chunk)
            del chunk
        if stream.weigh is not None:
            bound, *weights = stream.weigh(torch.cat(log_w))
            self.weights = weights[0], weights[1]
            return bound
        if stream.group is not None:
            like = torch.empty(0, dtype=guide.acc, device=guide.loc.device)
            self.totals.meet(stream.group, guide.batch, like)
        return self.totals.bound(stream.num_samples)

    def _keep(self, chunk: _Chunk) -> None:
        self.kept = chunk
        leaves, self.reaches_out = leaves_of(chunk.log_px, chunk.first_node)
        self.captured = [leaf for leaf in leaves if leaf is not chunk.z]

    # ---- backward -----------------------------------------------------------------------------
    def gradients(self, guide: Guide, grad: Tensor) -> Gradients:
        sums = Gradients(guide, len(self.captured))
        kept, self.kept = self.kept, None
        draws = self.stream.draws()
        with without_hooks(self.captured):
            if kept is not None:
                draws = draws[:-1]
                self._add(sums, grad, kept)
                del kept
            if draws:
                self._repeat(sums, guide, grad, draws)
        return sums

    def _repeat(self, sums: Gradients, guide: Guide, grad: Tensor, draws: list[Draw]) -> None:
        assert self.replay is not None
        again = Totals(self.stream.alpha)
        all_but_last = len(self.stream.draws()) - 1
        with self.replay.repeat():
            for number, draw in enumerate(draws, start=1):
                chunk = self.stream.evaluate(guide, draw, graph=True)
                self._check_leaves(chunk)
                self._add(sums, grad, chunk)
                if self.stream.weigh is None:
                    again.add(chunk.terms)
                    if number == all_but_last:
                        self._check_values(again)
                del chunk

    def _check_leaves(self, chunk: _Chunk) -> None:
        leaves, _ = leaves_of(chunk.log_px)
        unknown = [x for x in leaves if x is not chunk.z and not among(x, self.captured)]
        if unknown:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in unknown)
            raise RuntimeError(
                f"{self.stream.where}: expected log_likelihood to depend on the same parameters "
                f"for every chunk of samples, got parameters of shape {shapes} that the last chunk "
                f"does not use; use chunk_size=None"
            )

    def _check_values(self, again: Totals) -> None:
        before, now = self.without_last.log_sum(), again.log_sum()
        slack = _PASSES_AGREE * (1.0 + 1e-2 * before.abs())
        # Infinities and NaN tell nothing.
        if bool((torch.nan_to_num((now - before) / slack, 0.0, 0.0, 0.0).abs() > 1.0).any()):
            raise RuntimeError(
                f"{self.stream.where}: expected log_likelihood to return the same values for the "
                f"same z in the backward pass as in the forward pass, got others; with chunk_size "
                f"it may draw noise from torch's global generators only, and keep no state"
            )

    def _add(self, sums: Gradients, grad: Tensor, chunk: _Chunk) -> None:
        stream, guide, draw = self.stream, sums.guide, chunk.draw
        if self.weights is not None:
            return self._add_separately(sums, grad, chunk)
        weight = self.totals.weights(chunk.terms, stream.num_samples)
        grad_px = weight * grad.to(weight.dtype)
        grad_z = self._through_likelihood(sums, chunk, grad_px)
        if not guide.needs_grad:
            return None
        grad_density = (stream.beta * grad_px).to(guide.acc)
        if stream.estimator.gradient == "score":
            sums.add_score(draw, grad_density)
        elif stream.estimator.path_weight is None:
            sums.add_path(draw, stream.estimator.gradient, grad_z, grad_density)
        else:
            path = stream.estimator.path_weight(weight, stream.alpha).to(guide.acc)
            sums.add_path(draw, "path_weighted", grad_z, grad_density, path)
        return None

    def _add_separately(self, sums: Gradients, grad: Tensor, chunk: _Chunk) -> None:
        """The weights of model and guide are no multiples of each other: a pass for each."""
        assert self.weights is not None
        guide, draw = sums.guide, chunk.draw
        begin = draw.offset - self.stream.share[0]
        model, path = (weight[begin : begin + draw.size] * grad for weight in self.weights)
        grad_z = None
        if chunk.z.requires_grad and chunk.log_px.requires_grad:
            (grad_z,) = torch.autograd.grad(
                chunk.log_px,
                chunk.z,
                path.to(chunk.log_px.dtype),
                retain_graph=True,
                allow_unused=True,
            )
        self._through_likelihood(sums, chunk, model, with_z=False)
        if guide.needs_grad:
            gradient = self.stream.estimator.gradient
            sums.add_path(draw, gradient, grad_z, path.to(guide.acc), with_prior=False)
            sums.add_prior(draw, model.to(guide.acc))

    def _through_likelihood(
        self, sums: Gradients, chunk: _Chunk, grad_px: Tensor, with_z: bool = True
    ) -> Tensor | None:
        """Add the gradients of what the likelihood captured; returns that of z."""
        with_z = with_z and chunk.z.requires_grad
        inputs = [chunk.z, *self.captured] if with_z else self.captured
        if not inputs or not chunk.log_px.requires_grad:
            return None
        grads = torch.autograd.grad(
            chunk.log_px,
            inputs,
            grad_px.to(chunk.log_px.dtype),
            allow_unused=True,
            retain_graph=self.reaches_out,
        )
        sums.add_captured(grads[1:] if with_z else grads)
        return grads[0] if with_z else None


class _StreamedBound(torch.autograd.Function):
    """The finished bound on the way forward, the second pass over the chunks on the way back."""

    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any, first: _Pass, bound: Tensor, *inputs: Tensor | None
    ):
        ctx.first = first
        ctx.save_for_backward(*inputs)
        return bound.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        inputs = ctx.saved_tensors
        loc, log_var, prior_loc, prior_log_var = inputs[:4]
        prior = None if prior_loc is None else (prior_loc.detach(), prior_log_var.detach())
        needs_grad = any(ctx.needs_input_grad[2:6])
        guide = Guide(loc.detach(), log_var.detach(), prior, needs_grad)
        sums = ctx.first.gradients(guide, grad)
        grads = [sums.loc, sums.log_var, *(sums.prior or (None, None)), *sums.captured]
        return (
            None,
            None,
            *(
                None if total is None else total.to(x.dtype)
                for total, x in zip(grads, inputs, strict=True)
            ),
        )


@torch.compiler.disable
def _bound(stream: Stream, loc: Tensor, log_var: Tensor, prior: Prior | None) -> Tensor:
    loc, log_var, prior = _meet_in_type(loc, log_var, prior)
    loc, log_var = torch.broadcast_tensors(loc, log_var)
    prior_loc, prior_log_var = prior or (None, None)
    values = (loc, log_var, prior_loc, prior_log_var)
    grads = torch.is_grad_enabled()
    needs_grad = grads and any(x is not None and x.requires_grad for x in values)
    detached = None if prior is None else (prior[0].detach(), prior[1].detach())
    guide = Guide(loc.detach(), log_var.detach(), detached, needs_grad)
    if stream.group is not None:
        _agree(stream, stream.group, guide)
    first = _Pass(stream, Totals(stream.alpha), Totals(stream.alpha))
    like = torch.empty(0, dtype=guide.acc, device=guide.loc.device)
    with first.totals.awaited(stream.group, guide.batch, like):
        if stream.chunk_size == "auto":
            stream.chunk_size = _samples_at_a_time(stream, guide, grads)
        bound = first.run(guide, grads)
    if not needs_grad and not first.captured:
        # Without samples nothing tells whether the likelihood has a gradient. Here it is zero.
        return bound.requires_grad_(grads and not stream.draws())
    return _StreamedBound.apply(first, bound, *values, *first.captured)


def _samples_at_a_time(stream: Stream, guide: Guide, grads: bool) -> int:
    begin, end = stream.share
    device, budget = guide.loc.device, stream.memory_budget

    def trial(samples: int) -> None:
        stream.evaluate(guide, Draw(stream.key, begin, samples), graph=grads)

    setting = (stream.where, end - begin, guide.loc.shape, guide.loc.dtype, device, grads, budget)
    return chunk_size_for(stream.where, end - begin, trial, device, budget, setting)


def _agree(stream: Stream, group: SampleGroup, guide: Guide) -> None:
    """One key on all ranks; an error on all of them where they do not compute one bound."""
    prior_loc, prior_log_var = guide.prior or (None, None)
    facts = {
        "num_samples": stream.num_samples,
        "number of data": guide.batch.numel(),
        "number of latent features": guide.loc.shape[-1],
        "dtype": str(guide.loc.dtype),
        "alpha": stream.alpha,
        "beta": stream.beta,
        **stream.alike,
        "key": None if stream.own_key else stream.key.tolist(),
        "x": stream.log_likelihood.x if isinstance(stream.log_likelihood, OfData) else None,
        "loc": guide.loc,
        "log_var": guide.log_var,
        "prior loc": prior_loc,
        "prior log_var": prior_log_var,
    }
    group.check_agreement(facts, guide.loc.device)
    if stream.own_key:
        stream.key = group.common_key(stream.key)


def _meet_in_type(
    loc: Tensor, log_var: Tensor, prior: Prior | None
) -> tuple[Tensor, Tensor, Prior | None]:
    """Under autocast the widest type of all, as in the op; else the op refuses a mixture."""
    if not torch.is_autocast_enabled(loc.device.type):
        return loc, log_var, prior
    dtype = torch.promote_types(loc.dtype, log_var.dtype)
    for value in prior or ():
        dtype = torch.promote_types(dtype, value.dtype)
    if prior is not None:
        prior = (prior[0].to(dtype), prior[1].to(dtype))
    return loc.to(dtype), log_var.to(dtype), prior
