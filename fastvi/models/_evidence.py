"""The bound of very many samples of a model, in chunks and shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._checks import check_chunks, check_num_samples
from fastvi.bounds.weighers import Renyi
from fastvi.chunks import Cut, Evaluated, SampleGroup, Samples, Source, bound_in_passes
from fastvi.ops import new_key
from fastvi.ops._call import exporting

# A chunk holds about this many values of the decoder's output: 16 MB in float32.
_CHUNK_ELEMENTS = 2**22
# From a number of samples, a key and the number of the first sample to log-weights, (K, *batch).
LogWeights = Callable[[int, Tensor, int], Tensor]


def check_evidence(where: str, num_samples: int, chunk_size: object, memory_budget: object) -> None:
    """Check the arguments before the encoder runs."""
    check_num_samples(where, num_samples)
    check_chunks(where, num_samples, chunk_size, memory_budget)


def evidence(
    where: str,
    log_weights: LogWeights,
    x: Tensor,
    num_samples: int,
    *,
    chunk_size: int | Literal["auto"] | None,
    memory_budget: int | None,
    group: Any,
    key: Tensor | None,
    batch: Callable[[], torch.Size],
    facts: Mapping[str, object],
) -> Tensor:
    """Return the bound L_K of each example, without a graph, for any chunks and ranks.

    ``facts`` must be equal on all ranks, as the number of samples, the key and x must.
    """
    own_key = key is None
    key = new_key(x.device) if key is None else key
    weigher = Renyi(num_samples, "iwae")
    if exporting() and group is None:
        step = chunk_size if isinstance(chunk_size, int) else num_samples
        sums = weigher.sums()
        for start in range(0, num_samples, step):
            sums.add(start, log_weights(min(step, num_samples - start), key, start))
        return sums.bound()
    if chunk_size is None:
        chunk_size = min(num_samples, max(1, _CHUNK_ELEMENTS // max(1, x.numel())))
    source = _LogWeights(where, log_weights, x, key, own_key, batch, facts)
    sample_group = None if group is None else SampleGroup(where, group)
    with torch.no_grad():
        return bound_in_passes(source, weigher, Cut(chunk_size, memory_budget, sample_group))


@dataclass
class _LogWeights(Source):
    """The source of the log-weights that a model computes, without a graph."""

    where: str
    log_weights: LogWeights
    x: Tensor
    key: Tensor
    own_key: bool
    batch: Callable[[], torch.Size]
    facts_alike: Mapping[str, object]

    @property
    def functions(self) -> Any:
        return self.log_weights

    @property
    def device(self) -> torch.device:
        return self.x.device

    def setting(self) -> tuple[Any, ...]:
        return self.where, self.x.shape, self.x.dtype, self.x.device

    def facts(self) -> Mapping[str, object]:
        key = None if self.own_key else self.key.tolist()
        return {"key": key, "x": self.x, **self.facts_alike}

    def agree(self, group: Any) -> None:
        if self.own_key:
            self.key = group.common_key(self.key)

    def nothing(self) -> Tensor:
        dtype = torch.promote_types(self.x.dtype, torch.float32)
        return torch.zeros(0, *self.batch(), dtype=dtype, device=self.x.device)

    def evaluate(self, samples: Samples, *, graph: bool) -> Evaluated:
        log_w = self.log_weights(len(samples), self.key, samples.begin)
        return Evaluated(log_w, torch.zeros_like(log_w))
