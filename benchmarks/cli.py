"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import cases as table_of_cases
from benchmarks.bandwidth import bandwidth_row, copy_bandwidth, share_rows
from benchmarks.conditions import busy, conditions
from benchmarks.ops import WORKS
from benchmarks.ops.jax_step import why_missing
from benchmarks.rounds import Staff, WorkerError, compile_all, measure
from benchmarks.rows import Row, RowFile, to_rows
from benchmarks.table import memory_table, missed, ratio_table, share_table
from benchmarks.work import CHECKPOINT, COMPILE, Case

RESULTS = Path(__file__).parent / "results"
# A full run ends within six minutes on two cores, its compiler included.
BUDGET = {"cpu": 330.0, "cuda": 240.0}


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    result.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    result.add_argument("--quick", action="store_true", help="few rounds, no extra shapes")
    result.add_argument("--only", nargs="+", default=[], metavar="OP", choices=list(WORKS))
    result.add_argument(
        "--dtype",
        nargs="+",
        default=[],
        choices=("float32", "bfloat16", "float16", "float64"),
        help="default: float32, and bfloat16 at the headline shapes",
    )
    result.add_argument("--providers", nargs="+", default=[], help="default: all of them")
    result.add_argument(
        "--warm-heap", action="store_true", help="as in a process that freed larger blocks before"
    )
    result.add_argument("--rounds", type=int, help="default: 15 on a CPU, 10 on a card")
    result.add_argument("--threads", type=int, help="default: as many as torch takes")
    result.add_argument(
        "--budget", type=float, help="seconds after which no further case is started"
    )
    result.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows and chart")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the rows and the chart."""
    options = parser().parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks: --device cuda, but torch sees no CUDA card")
    if options.rounds is not None and options.rounds < 2:
        sys.exit(f"benchmarks: expected --rounds to be at least 2, got {options.rounds}")
    return run(options)


def run(options: argparse.Namespace) -> int:
    start = time.monotonic()
    budget = options.budget or BUDGET[options.device]
    rounds = options.rounds or (3 if options.quick else {"cpu": 15, "cuda": 10}[options.device])
    where = conditions(options.device, options.threads)
    cases = table_of_cases.cases(
        options.device, quick=options.quick, only=options.only, dtypes=options.dtype
    )
    notes: list[str] = []
    say(where.caption)
    if warning := busy():
        say(warning)

    rows: list[Row] = []
    # A part of a run does not take the place of a whole one.
    partial = any((options.quick, options.only, options.dtype, options.providers))
    name = where.slug + "-warm-heap" * options.warm_heap + "-partial" * partial
    file = RowFile(options.out / f"{name}.csv")
    copy: list[float] = []
    if options.device == "cuda":
        copy = copy_bandwidth(options.device)
        rows.append(bandwidth_row(copy, where))
        file.append(rows)
        say(f"copy bandwidth {rows[0].p50:.0f} GB/s")
    compiled = [case for case in cases if COMPILE in WORKS[case.op].providers]
    if compiled and (not options.providers or COMPILE in options.providers):
        jobs = min(os.cpu_count() or 1, 8)
        say(f"compiling {len(compiled)} cases, {jobs} at once")
        compile_all(compiled, jobs, options.threads, notes.append)

    for name in sorted({name for case in cases for name in WORKS[case.op].providers}):
        if (why := why_missing(name, options.device)) is not None:
            notes.append(f"{name} was left out: {why}")
    staff = Staff(options.device, options.threads, options.warm_heap)
    skipped = []
    try:
        for number, case in enumerate(cases, start=1):
            if time.monotonic() - start > budget:
                skipped.append(case)
                continue
            say(
                f"[{time.monotonic() - start:3.0f} s] {number}/{len(cases)} "
                f"{case.op} {case.shape} {case.dtype} {case.mode}"
            )
            try:
                found = measure(
                    case,
                    providers(case, options.providers),
                    staff,
                    rounds=rounds,
                    note=notes.append,
                )
            except WorkerError as error:
                notes.append(f"{case.op} {case.shape} {case.dtype} {case.mode}: {error}")
                continue
            new = to_rows(case, found, where)
            if copy:
                new += share_rows(case, found, copy, where)
            file.append(new)
            rows += new
    finally:
        staff.dismiss()

    report(cases, rows, notes, skipped)
    say(f"\n{file.path}")
    if rows and can_draw():
        from benchmarks.chart import draw_chart

        say(str(draw_chart(rows, cases, file.path.with_suffix(".png"))))
    say(f"{time.monotonic() - start:.0f} s")
    return 0 if rows else 1


def can_draw() -> bool:
    """Say so where there is no matplotlib: the rows are what counts, and they are written."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        say("no chart: matplotlib is not in this environment")
        return False
    return True


def providers(case: Case, asked: Sequence[str]) -> list[str]:
    """The work's own, and checkpointing for the memory of a headline shape."""
    chosen = [name for name in WORKS[case.op].providers if not asked or name in asked]
    chosen = [name for name in chosen if why_missing(name, case.device) is None]
    if case.backward and case.op in table_of_cases.HEADLINE and case.targets and not asked:
        chosen.append(CHECKPOINT)
    return chosen


def report(
    cases: Sequence[Case], rows: Sequence[Row], notes: Sequence[str], skipped: Sequence[Case]
) -> None:
    say("\nTimes in ms (medians; forward under no_grad).")
    say("x: the other's time over fastvi's; in brackets the target.")
    say(ratio_table(cases, rows))
    if memory := memory_table(cases, rows):
        say("\nMost memory held beside the inputs, MiB, forward and backward")
        say(memory)
    if shares := share_table(cases, rows):
        say("\nShare of the card's copy bandwidth, by the least bytes that the work must move")
        say(shares)
    for line in missed(cases, rows):
        say(f"below target: {line}")
    for case in skipped:
        say(f"not measured, out of time: {case.op} {case.shape} {case.dtype} {case.mode}")
    for line in notes:
        say(f"note: {line}")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
