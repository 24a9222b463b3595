"""Bounds of very many samples: the exact value and gradient, a chunk of samples at a time.

The samples of a chunk, their log-densities and the likelihood's activations live only while the
chunk is worked on. The first pass meets in a running log-sum-exp. The backward pass draws the same
samples again, now with their normalised weights known, runs the likelihood forward and backward,
and adds up the gradients. The last chunk's graph is kept from the first pass, so that a single
chunk costs no second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._loss_arguments import LogLikelihood, OfData, Prior, log_px_of
from fastvi._modes import records_graphs
from fastvi.estimators import Estimator
from fastvi.ops._call import transforms_active
from fastvi.streaming.chunk_size import Auto, chunk_size_for
from fastvi.streaming.gradients import Draw, Gradients, Guide
from fastvi.streaming.graph import GraphPart, cut, new_mark, place
from fastvi.streaming.replay import Replay
from fastvi.streaming.sample_group import SampleGroup
from fastvi.streaming.totals import Terms, Totals
from fastvi.streaming.weighing import Sums

# Log-weights of two passes that differ by this many nats (more, where they are large) ran two
# functions; what rounding alone does to large ones is far less.
_PASSES_AGREE = 1e-3
_ROUNDING = 1e-6


@dataclass
class _Chunk:
    """Some samples, and their likelihood with its graph where that was asked for."""

    draw: Draw
    z: Tensor
    log_px: Tensor
    terms: Terms
    # What the likelihood itself made of the graph.
    part: Any = None
    # The state before it, where the likelihood may have to run once more.
    replay: Replay | None = None


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
    # For bounds that weigh a sample for the guide otherwise than for the model.
    sums: Callable[[], Sums] | None = None
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

    def evaluate(self, guide: Guide, draw: Draw, mark: int | None = None) -> _Chunk:
        """Evaluate the likelihood, with a graph where the mark that its nodes follow is given."""
        z, log_q, log_p = guide.sample(draw)
        replay = None
        if mark is None:
            with torch.no_grad():
                log_px = log_px_of(self.where, self.log_likelihood, z, self.validate_args)
        else:
            if self.sums is not None:
                replay = Replay(z.device)
            with torch.enable_grad():
                z.requires_grad_(guide.needs_grad and self.estimator.gradient != "score")
                # Views, so that the graph has a node of its own at either end.
                log_px = log_px_of(
                    self.where, self.log_likelihood, z.view_as(z), self.validate_args
                )
                log_px = log_px.view_as(log_px)
        part = None
        if mark is not None and log_px.requires_grad:
            part = GraphPart(log_px, mark)
        dtype = torch.promote_types(log_px.dtype, log_q.dtype)
        terms = Terms(
            log_px.detach().to(dtype),
            self._weighted(log_p).to(dtype),
            self._weighted(log_q).to(dtype),
        )
        return _Chunk(draw, z, log_px, terms, part, replay)

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
    sums: Sums | None = None
    replay: Replay | None = None
    kept: _Chunk | None = None
    # One number for each chunk, to be compared with what the backward pass finds.
    checks: list[Tensor] = field(default_factory=list)
    # What the likelihood depends on, and the places of these in its graph.
    captured: list[Tensor] = field(default_factory=list)
    places: dict[tuple[object, int], int] = field(default_factory=dict)

    # ---- forward ------------------------------------------------------------------------------
    def run(self, guide: Guide, needs_grad: bool) -> Tensor:
        stream = self.stream
        draws = stream.draws()
        if needs_grad and len(draws) > 0:
            self.replay = Replay(guide.loc.device)
        if stream.sums is not None:
            self.sums = stream.sums()
        for draw in draws:
            with_graph = needs_grad and draw is draws[-1]
            chunk = stream.evaluate(guide, draw, new_mark() if with_graph else None)
            if self.sums is not None:
                self.sums.add(draw.offset, chunk.terms.log_w)
            else:
                self.totals.add(chunk.terms)
            if with_graph:
                self.keep(chunk)
            elif needs_grad:
                self.checks.append(_gist(chunk.terms))
            del chunk
        if self.sums is not None:
            return self.sums.bound()
        if stream.group is not None:
            like = torch.empty(0, dtype=guide.acc, device=guide.loc.device)
            self.totals.meet(stream.group, guide.batch, like)
        return self.totals.bound(stream.num_samples)

    def keep(self, chunk: _Chunk) -> None:
        self.kept = chunk
        for source in () if chunk.part is None else chunk.part.sources:
            if source is not chunk.z:
                self.places[place(source)] = len(self.captured)
                self.captured.append(source)

    # ---- backward -----------------------------------------------------------------------------
    def gradients(self, guide: Guide, grad: Tensor) -> Gradients:
        sums = Gradients(guide, len(self.captured))
        kept, self.kept = self.kept, None
        draws = self.stream.draws()
        if kept is not None:
            draws = draws[:-1]
            self._add(sums, grad, kept)
            del kept
        if draws:
            self._repeat(sums, guide, grad, draws)
        return sums

    def _repeat(self, sums: Gradients, guide: Guide, grad: Tensor, draws: list[Draw]) -> None:
        assert self.replay is not None
        differ = torch.zeros((), dtype=torch.bool, device=guide.loc.device)
        with self.replay.repeat():
            mark = new_mark()
            for number, draw in enumerate(draws):
                chunk = self.stream.evaluate(guide, draw, mark)
                self._check_sources(chunk)
                if number < len(self.checks):
                    differ |= _differs(self.checks[number], chunk.terms)
                self._add(sums, grad, chunk)
                del chunk
        if bool(differ):
            raise RuntimeError(
                f"{self.stream.where}: expected log_likelihood to return the same values for the "
                f"same z in the backward pass as in the forward pass, got others; with chunk_size "
                f"it may draw noise from torch's global generators only, and keep no state"
            )

    def _check_sources(self, chunk: _Chunk) -> None:
        sources = () if chunk.part is None else chunk.part.sources
        unknown = [x for x in sources if x is not chunk.z and place(x) not in self.places]
        if unknown:
            shapes = ", ".join(str(list(source.shape)) for source in unknown)
            raise RuntimeError(
                f"{self.stream.where}: expected log_likelihood to depend on the same parameters "
                f"for every chunk of samples, got parameters of shape {shapes} that the last chunk "
                f"does not use; use chunk_size=None"
            )

    def _add(self, sums: Gradients, grad: Tensor, chunk: _Chunk) -> None:
        stream, guide, draw = self.stream, sums.guide, chunk.draw
        if self.sums is not None:
            return self.add_apart(
                sums, grad, chunk, *self.sums.weights(draw.offset, chunk.terms.log_w)
            )
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

    def add_apart(
        self, sums: Gradients, grad: Tensor, chunk: _Chunk, model: Tensor, path: Tensor
    ) -> None:
        """Add the gradients of a chunk whose weights are one for the model, one for the guide."""
        guide, draw = sums.guide, chunk.draw
        grad_z = self._through_likelihood(sums, chunk, model * grad)
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
        if self.stream.estimator.gradient == "score":  # of a trial, whose weights are all alike
            sums.add_score(draw, path)
            return
        sums.add_path(draw, self.stream.estimator.gradient, grad_z, path, with_prior=False)
        sums.add_prior(draw, (model * grad).to(guide.acc))

    def _once_more(self, guide: Guide, chunk: _Chunk, grad_px: Tensor) -> Tensor | None:
        """The gradient of z alone, by another run of the likelihood: the first graph is used up."""
        assert chunk.replay is not None
        with chunk.replay.repeat():
            again = self.stream.evaluate(guide, chunk.draw, new_mark())
        grad_px = grad_px.to(again.log_px.dtype)
        return torch.autograd.grad(again.log_px, again.z, grad_px, allow_unused=True)[0]

    def _through_likelihood(self, sums: Gradients, chunk: _Chunk, grad_px: Tensor) -> Tensor | None:
        """Add the gradients of what the likelihood captured; returns that of z."""
        if chunk.part is None:
            return None
        with cut(chunk.part) as ends:
            grads = torch.autograd.grad(
                chunk.log_px, ends, grad_px.to(chunk.log_px.dtype), allow_unused=True
            )
        grad_z = None
        for source, part in zip(chunk.part.sources, grads, strict=True):
            if source is chunk.z:
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
    grads = records_graphs()
    needs_grad = grads and any(x is not None and x.requires_grad for x in values)
    detached = None if prior is None else (prior[0].detach(), prior[1].detach())
    guide = Guide(loc.detach(), log_var.detach(), detached, needs_grad)
    if stream.group is not None:
        _agree(stream, stream.group, guide)
    first = _Pass(stream, Totals(stream.alpha))
    like = torch.empty(0, dtype=guide.acc, device=guide.loc.device)
    with first.totals.awaited(stream.group, guide.batch, like):
        if isinstance(stream.chunk_size, str):
            bound = _run_auto(first, guide, grads, stream.chunk_size)
        else:
            bound = first.run(guide, grads)
    if not needs_grad and not first.captured:
        # Without samples nothing tells whether the likelihood has a gradient. Here it is zero.
        return bound.requires_grad_(grads and not stream.draws())
    return _StreamedBound.apply(first, bound, *values, *first.captured)


def _run_auto(first: _Pass, guide: Guide, grads: bool, auto: str) -> Tensor:
    """Run the first pass in chunks of a size that was found before, or is now."""
    stream = first.stream
    samples = stream.share[1] - stream.share[0]
    device = guide.loc.device
    shape, budget = guide.loc.shape, stream.memory_budget
    setting = (stream.where, samples, shape, guide.loc.dtype, device, grads, budget)
    known = auto.picked if isinstance(auto, Auto) else {}
    size, shapes = known.get(setting, (None, None))
    if size is None:
        stream.chunk_size = chunk_size_for(
            stream.where,
            samples,
            lambda few: _try(stream, guide, grads, few),
            device,
            budget,
            setting,
        )
    else:
        stream.chunk_size = size
    bound = first.run(guide, grads)
    if size is None:
        # Without a graph nothing tells one likelihood from another.
        if grads:
            known[setting] = stream.chunk_size, [x.shape for x in first.captured]
    elif shapes != [x.shape for x in first.captured]:
        del known[setting]
    return bound


def _try(stream: Stream, guide: Guide, grads: bool, samples: int) -> None:
    """Do with a few samples what is done with a chunk of them."""
    chunk = stream.evaluate(guide, Draw(stream.key, 0, samples), new_mark() if grads else None)
    if not grads:
        return
    first = _Pass(stream, Totals(stream.alpha))
    first.keep(chunk)
    first.kept = None
    weights = torch.full_like(chunk.terms.log_px, 1.0 / stream.num_samples, dtype=torch.float64)
    one = torch.ones(guide.batch, dtype=guide.acc, device=guide.loc.device)
    first.add_apart(Gradients(guide, len(first.captured)), one, chunk, weights, 1.0 * weights)


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
