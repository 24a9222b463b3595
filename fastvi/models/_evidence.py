"""The bound of very many samples of a model, in chunks and shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._loss_arguments import check_chunks
from fastvi.chunks.chunk_size import chunk_size_for
from fastvi.chunks.sample_group import SampleGroup
from fastvi.chunks.surroundings import Surroundings
from fastvi.chunks.totals import Terms, Totals
from fastvi.ops import new_key
from fastvi.ops._arguments import check_num_samples
from fastvi.ops._call import exporting

# A chunk holds about this many values of the decoder's output: 16 MB in float32.
_CHUNK_ELEMENTS = 2**22
# The log-weights of so many samples, (K, *batch), under a key, from a number on.
LogWeights = Callable[[int, Tensor, int], Tensor]


def check_evidence(where: str, num_samples: int, chunk_size: object, memory_budget: object) -> None:
    """Check what can be checked before the encoder runs."""
    check_num_samples(where, num_samples)
    check_chunks(where, num_samples, chunk_size, memory_budget)


@torch.compiler.disable
def _eager(run: Callable[[], Tensor]) -> Tensor:
    return run()


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
    """Return the bound L_K of each datum, without a graph, whatever the chunks and the ranks.

    ``facts`` are what the ranks must have alike beside the number of samples, the key and x.
    """
    own_key = key is None
    key = new_key(x.device) if key is None else key
    if exporting() and group is None:
        step = chunk_size if isinstance(chunk_size, int) else num_samples
        totals = Totals(0.0)
        for start in range(0, num_samples, step):
            log_w = log_weights(min(step, num_samples - start), key, start)
            totals.add(Terms.of_weights(log_w))
        return totals.bound(num_samples)
    given = key

    def run() -> Tensor:
        return _run(
            where,
            log_weights,
            x,
            num_samples,
            chunk_size,
            memory_budget,
            None if group is None else SampleGroup(where, group),
            given,
            own_key,
            torch.Size() if group is None else batch(),
            facts,
        )

    return _eager(run)


def _run(
    where: str,
    log_weights: LogWeights,
    x: Tensor,
    num_samples: int,
    chunk_size: int | str | None,
    memory_budget: int | None,
    group: SampleGroup | None,
    key: Tensor,
    own_key: bool,
    batch: torch.Size,
    facts: Mapping[str, object],
) -> Tensor:
    begin, end = (0, num_samples) if group is None else group.share(num_samples)
    if group is not None:
        alike = {"num_samples": num_samples, "key": None if own_key else key.tolist(), "x": x}
        group.check_agreement({**alike, **facts}, x.device)
        if own_key:
            key = group.common_key(key)
    totals = Totals(0.0)
    like = torch.empty(0, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    with totals.awaited(group, batch, like):
        if isinstance(chunk_size, str):
            surroundings = Surroundings(where, log_weights, end - begin, False)

            def trial(samples: int) -> None:
                with surroundings.trial():
                    log_weights(samples, key, begin)

            setting = (where, end - begin, x.shape, x.dtype, x.device, memory_budget)
            step = chunk_size_for(where, end - begin, trial, x.device, memory_budget, setting)
        else:
            step = chunk_size or max(1, _CHUNK_ELEMENTS // max(1, x.numel()))
        starts = range(begin, end, step)
        surroundings = Surroundings(where, log_weights, len(starts), False)
        if surroundings.is_lazy:
            with surroundings.trial():
                log_weights(1, key, begin)
        with surroundings.shared():
            for start in starts:
                totals.add(Terms.of_weights(log_weights(min(step, end - start), key, start)))
        if group is not None:
            totals.meet(group, batch, like)
    return totals.bound(num_samples)
