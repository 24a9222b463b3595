"""The source of a Pyro program's samples, which can draw the same range of them again.

Keys give the noise of normal sites. torch's generators give the noise of all other sites, seeded by
the number of the first sample.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from fastvi.chunks import Samples, Source
from fastvi.integrations.pyro._chosen import Chosen
from fastvi.integrations.pyro._draws import Draws
from fastvi.integrations.pyro._evaluate import Evaluation, Setting, evaluate, run_guide_alone
from fastvi.integrations.pyro._layout import Layout
from fastvi.integrations.pyro._programs import WHERE, Call
from fastvi.ops import new_key

_WORD = 2**64 - 1


@dataclass
class ProgramSource(Source):
    """A program, the settings of its evaluation, and the key of all its noise."""

    call: Call
    setting_of_program: Setting
    key: Tensor = field(default_factory=new_key)
    # The layout of data and scales, known after the first chunk.
    layout: Layout | None = None
    where: str = WHERE
    # The chunks of all samples that this process draws.
    ranges: Sequence[Samples] = ()

    @property
    def functions(self) -> Any:
        return self.call.model, self.call.guide

    @property
    def device(self) -> torch.device:
        return self.key.device

    def setting(self) -> tuple[Any, ...]:
        return WHERE, id(self.setting_of_program.preview)

    def agree(self, group: Any) -> None:
        self.key = group.common_key(self.key)

    def choice_key(self) -> Tensor:
        return self.key

    def prepare(self, chunks: Sequence[Samples]) -> None:
        if chunks and chunks[0].index is None:
            self.ranges = chunks

    def evaluate(self, samples: Samples, *, graph: bool) -> Evaluation:
        with torch.set_grad_enabled(graph):
            if samples.index is not None:
                return self._evaluate_chosen(samples.index)
            with self._drawn_again(samples) as draws:
                found = evaluate(self.call, self.setting_of_program, len(samples), draws)
        self.layout = found.layout
        return found

    def _evaluate_chosen(self, index: Tensor) -> Evaluation:
        """Draw the guide's samples of all chunks again, and run the model for the chosen alone."""
        assert self.layout is not None
        chosen = Chosen(index, self.layout)
        for samples in self.ranges:
            with self._drawn_again(samples) as draws:
                found = run_guide_alone(
                    self.call, self.setting_of_program, len(samples), draws, self.layout
                )
            chosen.add(samples, found)
        with _SameSubsample(self._seed):
            return chosen.evaluate(self.call, self.setting_of_program)

    @property
    def _seed(self) -> int:
        return int(self.key[0]) + int(self.key[1])

    @contextlib.contextmanager
    def _drawn_again(self, samples: Samples) -> Iterator[Draws]:
        """Let a program draw the same whenever it draws these samples."""
        gradient = self.setting_of_program.weigher.gradient
        gradient_of_draws = None if gradient == "score" else gradient
        with _seeded(self._seed, samples.begin), _SameSubsample(self._seed):
            yield Draws(len(samples), samples.begin, gradient_of_draws, self.key)


@contextlib.contextmanager
def _seeded(seed: int, offset: int) -> Iterator[None]:
    """Seed torch's generators in this context, and restore them afterwards."""
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
