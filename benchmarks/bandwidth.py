"""How much of a card's copy bandwidth a kernel reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import torch

from benchmarks.conditions import Conditions
from benchmarks.ops import WORKS
from benchmarks.rounds import Samples
from benchmarks.rows import Row, deciles
from benchmarks.work import Case

COPY_BYTES = 2 * 2**30


def copy_bandwidth(device: str, num_bytes: int = COPY_BYTES, rounds: int = 20) -> list[float]:
    """Bytes read and written in a second by device-to-device copies of random numbers."""
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    for _ in range(3):
        target.copy_(source)
    found = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        found.append(2 * num_bytes / (1e-3 * begin.elapsed_time(end)))
    del source, target
    torch.cuda.empty_cache()
    return found


def bandwidth_row(found: Sequence[float], where: Conditions) -> Row:
    p20, p50, p80 = (1e-9 * value for value in deciles(found))
    shape = f"N{COPY_BYTES // 4}"
    return Row(
        op="copy",
        provider="eager",
        mode="forward",
        metric="bandwidth",
        unit="GB/s",
        p20=p20,
        p50=p50,
        p80=p80,
        shape=shape,
        dtype="float32",
        **asdict(where),
        rounds=len(found),
    )


def share_rows(
    case: Case, found: Sequence[Samples], copy: Sequence[float], where: Conditions
) -> list[Row]:
    """The least traffic the case needs, over what a copy would have moved in the same time."""
    num_bytes = WORKS[case.op].num_bytes(case)
    if num_bytes is None:
        return []
    rows = []
    for samples in found:
        if samples.metric != "device_time":
            continue
        shares = [num_bytes / (seconds * median(copy)) for seconds in samples.values]
        p20, p50, p80 = deciles(shares)
        rows.append(
            Row(
                op=case.op,
                provider=samples.provider,
                mode=case.mode,
                metric="bandwidth_share",
                unit="1",
                p20=p20,
                p50=p50,
                p80=p80,
                shape=case.shape,
                dtype=case.dtype,
                **asdict(where),
                variant=samples.variant,
                rounds=len(samples.values),
            )
        )
    return rows
