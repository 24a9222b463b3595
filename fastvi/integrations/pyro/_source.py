"""The source of a Pyro program's samples, which can draw the same range of them again.

Keys give the noise of normal sites. torch's generators give the noise of all other sites, seeded by
the number of the first sample.
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

from fastvi.chunks import Source
from fastvi.integrations.pyro._draws import Draws
from fastvi.integrations.pyro._evaluate import Evaluation, Setting, evaluate
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

    @property
    def functions(self) -> Any:
        return self.call.model, self.call.guide

    @property
    def device(self) -> torch.device:
        return self.key.device

    def setting(self) -> tuple[Any, ...]:
        return WHERE, id(self.setting_of_program.look)

    def agree(self, group: Any) -> None:
        self.key = group.common_key(self.key)

    def evaluate(self, begin: int, end: int, *, graph: bool) -> Evaluation:
        gradient = self.setting_of_program.weigher.gradient
        draws = Draws(end - begin, begin, None if gradient == "score" else gradient, self.key)
        seed = int(self.key[0]) + int(self.key[1])
        with torch.set_grad_enabled(graph), _seeded(seed, begin), _SameSubsample(seed):
            found = evaluate(self.call, self.setting_of_program, end - begin, draws)
        self.layout = found.layout
        return found


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
