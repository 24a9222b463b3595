"""Measure both, and write rows and the chart: ``python -m benchmarks.few_backward``."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar

from benchmarks.cli import RESULTS, can_draw, say
from benchmarks.conditions import Conditions, busy, conditions
from benchmarks.few_backward import training, variance
from benchmarks.few_backward.chart import draw

PARTS = ("variance", "training")
Row = TypeVar("Row", variance.VarianceRow, training.TrainingRow)


def written(
    path: Path, kind: type[Row], rows: Iterable[Row], where: Conditions, told: Callable[[Row], str]
) -> list[Row]:
    """Write each row as soon as it is measured, with the conditions, and return all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(kind)] + list(asdict(where)))
        for row in rows:
            values = [f"{v:.5g}" if isinstance(v, float) else v for v in asdict(row).values()]
            writer.writerow([*values, *asdict(where).values()])
            file.flush()
            say(told(row))
            found.append(row)
    say(str(path))
    return found


def of_variance(row: variance.VarianceRow) -> str:
    return (
        f"step {row.steps}, {row.effective_samples:.0f} effective samples, {row.backward}: "
        f"{row.measured:.2f} times the variance, by the law {row.law:.2f}"
    )


def of_training(row: training.TrainingRow) -> str:
    return (
        f"K {row.num_samples}, {row.backward} backward, epoch {row.epoch}: {row.seconds:.1f} s, "
        f"{row.held_out_bound:.2f} +- {row.standard_error:.2f} nats"
    )


def report(rows: Sequence[training.TrainingRow]) -> None:
    last = {(row.num_samples, row.backward): row for row in rows}
    for (samples, few), row in last.items():
        everything = last[samples, "all"]
        if row is not everything:
            say(
                f"K {samples}, {few} backward over all: {row.seconds / everything.seconds:.2f} of "
                f"the time, {row.held_out_bound - everything.held_out_bound:+.2f} nats"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_backward", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one of the two measurements")
    parser.add_argument("--draws", type=int, default=150, help="gradients of which a variance is")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--every", type=int, default=5, help="epochs between evaluations")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows and chart")
    options = parser.parse_args(arguments)
    where = conditions("cpu")
    say(where.caption)
    if warning := busy():
        say(warning)
    name = f"{where.slug}-few-backward"
    if options.only in (None, "variance"):
        path = options.out / f"{name}-variance.csv"
        rows = variance.measure(options.draws)
        written(path, variance.VarianceRow, rows, where, of_variance)
    if options.only in (None, "training"):
        path = options.out / f"{name}-training.csv"
        trained = training.measure(options.epochs, options.every)
        found = written(path, training.TrainingRow, trained, where, of_training)
        report(found)
        if can_draw():
            say(str(draw(found, where, path.with_suffix(".png"))))


if __name__ == "__main__":
    main()
