"""Measure the step against K, write the rows and the chart: ``python -m benchmarks.large_k``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.cli import RESULTS, say
from benchmarks.conditions import ROOT, Conditions, busy, conditions
from benchmarks.large_k.chart import draw
from benchmarks.large_k.step import (
    CHECKPOINTED,
    COMPILED,
    EAGER,
    FASTVI,
    FASTVI_AT_ONCE,
)
from benchmarks.rows import UNITS, Row, RowFile
from benchmarks.work import FORWARD_BACKWARD

TWO_PROCESSES, ONE_THREAD = "fastvi, 2 processes of 1 thread", "fastvi, 1 process of 1 thread"
OP = "large_k_step"
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
)
CHART = tuple(
    (provider, samples, 8, 500)
    for provider, most in (
        (FASTVI, 1_000_000),
        (CHECKPOINTED, 100_000),
        (FASTVI_AT_ONCE, 10_000),
        (EAGER, 10_000),
        (COMPILED, 10_000),
    )
    for samples in (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    if samples <= most
)


def measure(provider: str, samples: int, batch: int, chunk: int) -> dict[str, float]:
    threads = 1 if provider in (TWO_PROCESSES, ONE_THREAD) else 2
    module = ["-m", "benchmarks.large_k.step"]
    if provider == TWO_PROCESSES:
        module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *module]
    name = FASTVI if provider in (TWO_PROCESSES, ONE_THREAD) else provider
    repeats = 1 if samples * batch > 400_000 else 3
    numbers = {"samples": samples, "batch": batch, "chunk": chunk, "threads": threads}
    options = [f"--{key}={value}" for key, value in (numbers | {"repeats": repeats}).items()]
    done = subprocess.run(
        [sys.executable, *module, name, *options], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def to_rows(provider: str, shape: str, found: dict[str, float], where: Conditions) -> list[Row]:
    rows = []
    for metric, value in (("time", found["seconds"]), ("memory", found["bytes"])):
        unit, scale = UNITS[metric]
        rows.append(
            Row(
                op=OP, provider=provider, mode=FORWARD_BACKWARD, metric=metric, unit=unit,
                p20=scale * value, p50=scale * value, p80=scale * value, shape=shape,
                dtype="float32", **asdict(where),
            )
        )  # fmt: skip
    return rows


def report(found: dict[tuple[str, int, int, int], dict[str, float]]) -> None:
    def ratio(name: str, over: tuple, under: tuple, target: str, key: str = "seconds") -> None:
        if over in found and under in found:
            say(f"{name}: {found[over][key] / found[under][key]:.2f} (target {target})")

    stream, whole, hand = COMPARED[:3]
    ratio("streamed over all at once, K 2000", stream, whole, "<= 1.45")
    ratio("checkpointed by hand over streamed, K 2000", hand, stream, ">= 1.8")
    ratio("memory, checkpointed by hand over streamed", hand, stream, ">= 1", "bytes")
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_k", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows and chart")
    parser.add_argument("--most", type=int, default=1_000_000, help="the largest K to measure")
    options = parser.parse_args()
    start = time.monotonic()
    where = conditions("cpu", 2)
    say(where.caption)
    if warning := busy():
        say(warning)
    file = RowFile(options.out / f"{where.slug}-large-k.csv")
    found: dict[tuple[str, int, int, int], dict[str, float]] = {}
    rows: list[Row] = []
    for point in dict.fromkeys((*COMPARED, *CHART)):
        provider, samples, batch, chunk = point
        if samples > options.most:
            continue
        found[point] = measure(*point)
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
    say(str(draw({p: f for p, f in found.items() if p in CHART}, where, file.path)))


if __name__ == "__main__":
    main()
