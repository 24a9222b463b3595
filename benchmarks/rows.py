"""Rows that speak for themselves: each has its quantiles, its unit and all its conditions."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import quantiles

from benchmarks.conditions import Conditions
from benchmarks.rounds import Samples
from benchmarks.work import Case

# From what was measured, seconds and bytes, to what is written.
UNITS = {"time": ("ms", 1e3), "device_time": ("ms", 1e3), "memory": ("MiB", 2.0**-20)}


@dataclass(frozen=True)
class Row:
    """One metric of one provider at one case. Quantiles are over the rounds."""

    op: str
    provider: str
    mode: str
    metric: str
    unit: str
    p20: float
    p50: float
    p80: float
    shape: str
    dtype: str
    device: str
    torch: str
    cuda: str
    fastvi: str
    commit: str
    date: str
    # Which of the provider's ways of writing it was the fastest, where it has several.
    variant: str = ""
    rounds: int = 1


def deciles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def to_rows(case: Case, found: Iterable[Samples], where: Conditions) -> list[Row]:
    rows = []
    for samples in found:
        unit, scale = UNITS[samples.metric]
        p20, p50, p80 = (scale * value for value in deciles(samples.values))
        rows.append(
            Row(
                op=case.op,
                provider=samples.provider,
                mode=case.mode,
                metric=samples.metric,
                unit=unit,
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


class RowFile:
    """A CSV that has every row as soon as it is measured, so that a run cut short is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(field.name for field in fields(Row))

    def append(self, rows: Iterable[Row]) -> None:
        with self.path.open("a", newline="") as file:
            for row in rows:
                values = asdict(row).values()
                csv.writer(file).writerow(
                    f"{value:.6g}" if isinstance(value, float) else value for value in values
                )


def read(path: Path) -> list[Row]:
    """The rows of a file that :class:`RowFile` wrote.

    Raises:
        ValueError: other columns, or a number that is none.
    """
    kinds = {
        field.name: {"float": float, "int": int}.get(str(field.type), str) for field in fields(Row)
    }
    with path.open(newline="") as file:
        try:
            return [
                Row(**{name: kinds[name](value) for name, value in line.items()})
                for line in csv.DictReader(file)
            ]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"expected {path} to hold the rows of a benchmark, got {type(error).__name__}: "
                f"{error}"
            ) from error
