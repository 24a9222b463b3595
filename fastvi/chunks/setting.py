"""How a bound's samples are gone through: how many at a time, by whom, and how many backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi.bounds.sums import Sums
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.chunk_size import Auto, chunk_size_for
from fastvi.chunks.few import AutoFew, Few
from fastvi.chunks.graph import GraphPart, cut, new_mark, runs_whole, shared_by_processes
from fastvi.chunks.sample_group import SampleGroup
from fastvi.chunks.source import Evaluated, Samples, Source
from fastvi.chunks.surroundings import Surroundings


@dataclass(frozen=True)
class Cut:
    """How the samples are cut: at a time all (None), a number, or what the budget allows."""

    chunk_size: int | Literal["auto"] | None = None
    # Bytes.
    memory_budget: int | None = None
    group: SampleGroup | None = None
    # How many samples run backward; None for all.
    few: Few | None = None


def sums_for(weigher: Weigher, evaluated: Evaluated) -> Sums:
    """Sums for samples like these: with signals, where some have no path."""
    return weigher.sums(signals=gets_signals(weigher, evaluated))


def gets_signals(weigher: Weigher, evaluated: Evaluated) -> bool:
    """Whether some of the samples have no path, and are credited with a signal."""
    return evaluated.score is not None and weigher.gradient == "total"


@dataclass
class Setting:
    """A source and a weigher, and how the samples are cut."""

    source: Source
    weigher: Weigher
    how: Cut
    surroundings: Surroundings | None = None
    # Samples at a time, and what this was found for.
    size: int = field(init=False)
    found_for: tuple[Any, ...] = ()

    @property
    def share(self) -> tuple[int, int]:
        """Return the range of k that this process draws."""
        samples = self.weigher.num_samples
        return (0, samples) if self.how.group is None else self.how.group.share(samples)

    def surround(self, num_chunks: int, grads: bool) -> Surroundings:
        if self.surroundings is None:
            self.surroundings = Surroundings(
                self.source.where, self.source.functions, num_chunks, grads
            )
        return self.surroundings

    def size_of_chunks(self, grads: bool) -> int:
        begin, end = self.share
        size = self.how.chunk_size
        if not isinstance(size, str):
            return size or max(1, end - begin)
        known = size.picked if isinstance(size, Auto) else {}
        self.found_for = (
            *self.source.setting(), end - begin, grads, self.how.memory_budget
        )  # fmt: skip
        if self.found_for in known:
            return known[self.found_for][0]
        # For as many chunks as there may be.
        self.surround(end - begin, grads)
        return chunk_size_for(
            self.source.where,
            end - begin,
            lambda few: self._try(few, grads),
            self.source.device,
            self.how.memory_budget,
            self.found_for,
        )

    def remember(self, depends_on: Sequence[Tensor]) -> None:
        """Keep the size that was found, for the next step of a training loop."""
        size = self.how.chunk_size
        if not isinstance(size, Auto):
            return
        # Another function than before shows in what it depends on.
        shapes = [x.shape for x in depends_on]
        if self.found_for not in size.picked:
            size.picked[self.found_for] = self.size, shapes
        elif size.picked[self.found_for][1] != shapes:
            del size.picked[self.found_for]

    def _try(self, samples: int, grads: bool) -> int:
        """Do with a few samples what is done with a chunk; returns how many live at a time."""
        assert self.surroundings is not None
        begin = self.share[0]
        trial = Samples(begin, begin + samples)
        self.source.prepare([trial])
        mark = new_mark()
        with self.surroundings.trial():
            evaluated = self.source.evaluate(trial, graph=grads)
        if not grads:
            return 1
        sums, log_w = sums_for(self.weigher, evaluated), evaluated.log_w
        # As if the others were alike.
        for k in range(0, self.weigher.num_samples, samples):
            sums.add(k, log_w[: self.weigher.num_samples - k])
        sums.bound()
        with torch.enable_grad():
            bound = evaluated.bound(sums.weights(0, log_w))
        if not bound.requires_grad:
            return 1
        part = GraphPart(bound, mark)
        if runs_whole(self.source.where, part, 1):
            if shared_by_processes():
                # What a trial holds is measured, and two processes need not measure the same.
                raise ValueError(
                    f"{self.source.where}: expected chunk_size to be a number where "
                    f"log_likelihood is shared by processes, which must all take as many samples "
                    f"at a time, got 'auto'"
                )
            # The hooks would take a backward pass here for the end of the step. What one holds
            # beside the activations of two chunks is less than those of a third.
            return 3
        with cut(part) as ends:
            torch.autograd.grad(bound.sum(), ends, allow_unused=True)
        return 1


def check_alike(where: str, how: Cut, num_samples: int, size: int) -> None:
    """Refuse shares that would leave some ranks waiting for hooks of others that never run."""
    group, few = how.group, how.few
    if group is None or group.size == 1:
        return
    if how.chunk_size is None:
        return
    if few is not None and isinstance(few.samples, AutoFew):
        raise ValueError(
            f"{where}: expected backward_samples to be a number where every rank of group runs a "
            f"log_likelihood with hooks in chunks, got 'auto'"
        )
    counts = [num_samples] if few is None else [num_samples, int(few.samples)]
    for count in counts:
        shares = [group.share(count, rank) for rank in range(group.size)]
        chunks = [-(-(end - begin) // size) for begin, end in shares]
        if len(set(chunks)) > 1:
            raise ValueError(
                f"{where}: expected every rank of group to run a log_likelihood with hooks as "
                f"often, got num_samples={num_samples} and chunk_size={size}, of which the ranks "
                f"have {min(chunks)} to {max(chunks)} chunks"
            )
