"""Measure the step against K, write the rows and the chart: ``python -m benchmarks.large_k``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from benchmarks.cli import RESULTS, can_draw, say
from benchmarks.conditions import ROOT, Conditions, busy, conditions
from benchmarks.large_k.chart import draw
from benchmarks.large_k.step import (
    CHECKPOINTED,
    COMPILED,
    EAGER,
    FASTVI,
    FASTVI_AT_ONCE,
    FASTVI_FEW,
)
from benchmarks.rows import UNITS, Row, RowFile
from benchmarks.work import FORWARD_BACKWARD

TWO_PROCESSES, ONE_THREAD = "fastvi, 2 processes of 1 thread", "fastvi, 1 process of 1 thread"
HAND_ONE_THREAD = f"{CHECKPOINTED}, 1 thread"
# Providers that are another one under other conditions, which no card has.
ON_ONE_THREAD = {TWO_PROCESSES: FASTVI, ONE_THREAD: FASTVI, HAND_ONE_THREAD: CHECKPOINTED}
OP = "large_k_step"
ROUNDS = 3
Point = tuple[str, int, int, int]
# (provider, K, B, samples at a time): what the targets compare, then the chart's points. All at
# once stops where the next point would not fit a machine of 24 GiB.
COMPARED = (
    (FASTVI, 2_000, 20, 200),
    (FASTVI_AT_ONCE, 2_000, 20, 200),
    (CHECKPOINTED, 2_000, 20, 200),
    (FASTVI, 1_000, 20, 200),
    (FASTVI, 100_000, 20, 200),
    (ONE_THREAD, 20_000, 8, 500),
    (TWO_PROCESSES, 20_000, 8, 500),
    (HAND_ONE_THREAD, 20_000, 8, 500),
    (EAGER, 2_000, 20, 200),
    (COMPILED, 2_000, 20, 200),
)
CHART = tuple(
    (provider, samples, 8, 500)
    for provider, most in (
        (FASTVI, 1_000_000),
        (FASTVI_FEW, 1_000_000),
        (CHECKPOINTED, 100_000),
        (FASTVI_AT_ONCE, 10_000),
        (EAGER, 10_000),
        (COMPILED, 10_000),
    )
    for samples in (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    if samples <= most
)


def measure(
    provider: str, samples: int, batch: int, chunk: int, device: str = "cpu"
) -> dict[str, Any]:
    threads = 1 if provider in ON_ONE_THREAD else 2
    module = ["-m", "benchmarks.large_k.step"]
    if provider == TWO_PROCESSES:
        module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *module]
    name = ON_ONE_THREAD.get(provider, provider)
    repeats = 1 if samples * batch > 400_000 else 3
    numbers = {"samples": samples, "batch": batch, "chunk": chunk, "threads": threads}
    options = [f"--{key}={value}" for key, value in (numbers | {"repeats": repeats}).items()]
    options.append(f"--device={device}")
    done = subprocess.run(
        [sys.executable, *module, name, *options], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_rounds(
    points: Sequence[Point], device: str = "cpu"
) -> Iterator[tuple[Point, dict[str, Any]]]:
    """Measure each; what a ratio is taken of, round by round, for this machine has its moods."""
    compared = [point for point in points if point in COMPARED and point[1] * point[2] <= 200_000]
    rounds: dict[Point, list[dict[str, Any]]] = {point: [] for point in compared}
    for _ in range(ROUNDS):
        for point in compared:
            rounds[point].append(measure(*point, device))
    for point in points:
        found = rounds.get(point) or [measure(*point, device)]
        times = sorted(seconds for one in found for seconds in one["times"])
        memory = {key: max(one[key] for one in found) for key in ("bytes", "peak")}
        yield point, {"times": times, "seconds": median(times), **memory}


def to_rows(provider: str, shape: str, found: dict[str, Any], where: Conditions) -> list[Row]:
    rows = []
    times = found["times"] if len(found["times"]) > 1 else 2 * found["times"]
    fifths = quantiles(times, n=5, method="inclusive")
    for metric, values in (
        ("time", (fifths[0], found["seconds"], fifths[-1])),
        ("memory", 3 * (found["bytes"],)),
    ):
        unit, scale = UNITS[metric]
        p20, p50, p80 = (scale * value for value in values)
        rows.append(
            Row(
                op=OP, provider=provider, mode=FORWARD_BACKWARD, metric=metric, unit=unit,
                p20=p20, p50=p50, p80=p80, shape=shape, dtype="float32", **asdict(where),
            )
        )  # fmt: skip
    return rows


def report(found: dict[Point, dict[str, Any]]) -> None:
    def ratio(name: str, over: tuple, under: tuple, target: str, key: str = "seconds") -> None:
        if over in found and under in found:
            say(f"{name}: {found[over][key] / found[under][key]:.2f} (target {target})")

    stream, whole, hand = COMPARED[:3]
    ratio("streamed over all at once, K 2000", stream, whole, "<= 1.45")
    pairs = [(hand, stream)]
    for samples in (1_000, 10_000, 100_000):
        pairs.append(((CHECKPOINTED, samples, 8, 500), (FASTVI, samples, 8, 500)))
    for theirs, ours in pairs:
        name = f"checkpointed by hand over streamed, K {theirs[1]}"
        ratio(name, theirs, ours, ">= 1.8")
        ratio(f"{name}, memory", theirs, ours, ">= 1", "bytes")
    for samples in (10_000, 100_000, 1_000_000):
        few, theirs = (FASTVI_FEW, samples, 8, 500), (CHECKPOINTED, samples, 8, 500)
        ratio(f"all backward over few, K {samples}", (FASTVI, samples, 8, 500), few, ">= 2.6")
        ratio(f"checkpointed by hand over few, K {samples}", theirs, few, ">= 4")
        if few in found:
            beside = (found[few]["bytes"] - 4 * samples * 8) / 2**20
            say(f"few, K {samples}: {beside:.0f} MiB beside the log-weights (target <= 64)")
    small, large = COMPARED[3:5]
    if small in found and large in found:
        more = (found[large]["peak"] - found[small]["peak"]) / 2**20
        say(f"peak at K 100 000 less that at K 1000: {more:.1f} MiB (target <= 64)")
    ratio("one process over two, K 20 000", *COMPARED[5:7], ">= 1.7")
    many = (FASTVI, 1_000_000, 8, 500)
    if many in found:
        say(f"K 1 000 000: {found[many]['peak'] / 2**20:.0f} MiB in all (target <= 1536)")
    for samples in (100_000, 1_000_000):
        point, first = (FASTVI, samples, 8, 500), (FASTVI, 10_000, 8, 500)
        if point in found and first in found:
            linear = found[point]["seconds"] / found[first]["seconds"] * 10_000 / samples
            say(f"time per sample, K {samples} over K 10 000: {linear:.2f} (target 0.85 to 1.15)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_k", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows and chart")
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest K to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks.large_k: --device cuda, but torch sees no CUDA card")
    start = time.monotonic()
    where = conditions(options.device, 2)
    say(where.caption)
    if warning := busy():
        say(warning)
    file = RowFile(options.out / f"{where.slug}-large-k.csv")
    found: dict[Point, dict[str, Any]] = {}
    rows: list[Row] = []
    wanted = [
        point
        for point in dict.fromkeys((*COMPARED, *CHART))
        if point[1] <= options.most and not (options.device == "cuda" and point[0] in ON_ONE_THREAD)
    ]
    for point, numbers in in_rounds(wanted, options.device):
        provider, samples, batch, chunk = point
        found[point] = numbers
        milliseconds, mebibytes = 1e3 * found[point]["seconds"], found[point]["bytes"] / 2**20
        say(
            f"[{time.monotonic() - start:3.0f} s] {provider}, K {samples} x B {batch}, {chunk} at "
            f"a time: {milliseconds:.1f} ms, {mebibytes:.0f} MiB more"
        )
        shape = f"K{samples}xB{batch}" + (f"xC{chunk}" if "once" not in provider else "")
        new = to_rows(provider, shape, found[point], where)
        file.append(new)
        rows += new
    report(found)
    say(str(file.path))
    if can_draw():
        say(str(draw({p: f for p, f in found.items() if p in CHART}, where, file.path)))


if __name__ == "__main__":
    main()
