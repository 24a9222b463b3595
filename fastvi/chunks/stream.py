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
from typing import Literal

import torch
from torch import Tensor

from fastvi._loss_arguments import LogLikelihood, OfData, Prior, log_px_of
from fastvi._modes import records_graphs
from fastvi.bounds.estimators import Estimator
from fastvi.bounds.sums import Sums
from fastvi.chunks.chunk_size import Auto, chunk_size_for
from fastvi.chunks.gradients import Draw, Gradients, Guide
from fastvi.chunks.graph import GraphPart, new_mark, runs_whole, shared_by_processes
from fastvi.chunks.passes import Chunk, Pass, StreamedBound, joined
from fastvi.chunks.replay import Replay
from fastvi.chunks.sample_group import SampleGroup
from fastvi.chunks.surroundings import Surroundings
from fastvi.chunks.totals import Terms, Totals
from fastvi.ops._call import exporting, transforms_active


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
        if exporting() and torch.compiler.is_dynamo_compiling():
            raise RuntimeError(
                f"{self.where}: chunk_size, group, sums over groups of samples and estimators "
                f"other than 'iwae', 'stl' and 'dreg' need torch.export.export(..., strict=False)"
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

    def check_shares(self) -> None:
        """Refuse shares that would leave some ranks waiting for hooks of others that never run."""
        size = self.chunk_size
        if self.group is None or size is None or self.group.size == 1:
            return
        assert isinstance(size, int)
        shares = [self.group.share(self.num_samples, rank) for rank in range(self.group.size)]
        chunks = [-(-(end - begin) // size) for begin, end in shares]
        if len(set(chunks)) > 1:
            raise ValueError(
                f"{self.where}: expected every rank of group to run a log_likelihood with hooks "
                f"as often, got num_samples={self.num_samples} and chunk_size={size}, of which "
                f"the ranks have {min(chunks)} to {max(chunks)} chunks"
            )

    def evaluate(
        self,
        guide: Guide,
        draw: Draw,
        *,
        graph: bool,
        join: Callable[[Tensor], Tensor] | None = None,
    ) -> Chunk:
        """Evaluate the likelihood, with a graph where that is asked for.

        The graph begins at a leaf, or, where the samples have a gradient, at what ``join`` makes
        of them.
        """
        z, log_q, log_p = guide.sample(draw)
        replay = None
        part = None
        if not graph:
            with torch.no_grad():
                log_px = log_px_of(self.where, self.log_likelihood, z, self.validate_args)
        else:
            if self.sums is not None:
                replay = Replay(z.device)
            with torch.enable_grad():
                if guide.needs_grad and self.estimator.gradient != "score":
                    z = z.requires_grad_() if join is None else join(z)
                mark = new_mark()
                # Views, so that the graph has a node of its own at either end.
                log_px = log_px_of(
                    self.where, self.log_likelihood, z.view_as(z), self.validate_args
                )
                log_px = log_px.view_as(log_px)
                if log_px.requires_grad:
                    part = GraphPart(log_px, mark)
        dtype = torch.promote_types(log_px.dtype, log_q.dtype)
        terms = Terms(
            log_px.detach().to(dtype),
            self._weighted(log_p).to(dtype),
            self._weighted(log_q).to(dtype),
        )
        return Chunk(draw, z, log_px, terms, part, replay)

    def _weighted(self, log_density: Tensor) -> Tensor:
        if self.beta == 1.0:
            return log_density
        # Without a weight they do not count, infinite ones neither.
        return torch.zeros_like(log_density) if self.beta == 0.0 else self.beta * log_density


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
    first = Pass(stream, Totals(stream.alpha))
    like = torch.empty(0, dtype=guide.acc, device=guide.loc.device)
    join = joined(first, values)
    with first.totals.awaited(stream.group, guide.batch, like):
        if isinstance(stream.chunk_size, str):
            bound = _run_auto(first, guide, grads, stream.chunk_size, join)
        else:
            bound = first.run(guide, grads, join)
    if not needs_grad and not first.captured:
        # Without samples nothing tells whether the likelihood has a gradient. Here it is zero.
        return bound.requires_grad_(grads and not stream.draws())
    beside = () if first.whole is None else (first.whole, first.joint.token)
    return StreamedBound.apply(first, bound, *values, *first.captured, *beside)


def _run_auto(
    first: Pass, guide: Guide, grads: bool, auto: str, join: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run the first pass in chunks of a size that was found before, or is now."""
    stream = first.stream
    samples = stream.share[1] - stream.share[0]
    device = guide.loc.device
    shape, budget = guide.loc.shape, stream.memory_budget
    setting = (stream.where, samples, shape, guide.loc.dtype, device, grads, budget)
    known = auto.picked if isinstance(auto, Auto) else {}
    size, shapes = known.get(setting, (None, None))
    if size is None:
        # For as many chunks as there may be.
        first.surroundings = Surroundings(stream.where, stream.log_likelihood, samples, grads)
        stream.chunk_size = chunk_size_for(
            stream.where,
            samples,
            lambda few: _try(first, guide, grads, few),
            device,
            budget,
            setting,
        )
    else:
        stream.chunk_size = size
    bound = first.run(guide, grads, join)
    if size is None:
        # Without a graph nothing tells one likelihood from another.
        if grads:
            known[setting] = stream.chunk_size, [x.shape for x in first.captured]
    elif shapes != [x.shape for x in first.captured]:
        del known[setting]
    return bound


def _try(first: Pass, guide: Guide, grads: bool, samples: int) -> int:
    """Do with a few samples what is done with a chunk of them; returns how many live at a time."""
    stream = first.stream
    assert first.surroundings is not None
    with first.surroundings.trial():
        chunk = stream.evaluate(guide, Draw(stream.key, 0, samples), graph=grads)
    if not grads:
        return 1
    if chunk.part is not None and runs_whole(stream.where, chunk.part, 1):
        if shared_by_processes():
            # What a trial holds is measured, and two processes need not measure the same.
            raise ValueError(
                f"{stream.where}: expected chunk_size to be a number where log_likelihood is "
                f"shared by processes, which must all take as many samples at a time, got 'auto'"
            )
        # The hooks would take a backward pass here for the end of the step. What one holds beside
        # the activations of two chunks is less than those of a third.
        return 3
    trial = Pass(stream, Totals(stream.alpha), surroundings=first.surroundings)
    trial.keep(chunk)
    trial.kept = None
    weights = torch.full_like(chunk.terms.log_px, 1.0 / stream.num_samples, dtype=torch.float64)
    path = None if stream.sums is None else 1.0 * weights
    one = torch.ones(guide.batch, dtype=guide.acc, device=guide.loc.device)
    trial.add_weighted(Gradients(guide, len(trial.captured)), one, chunk, weights, path)
    return 1


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
