"""The run as a table: each case's times, how many times as fast, and the targets beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.cases import SHARE_TARGETS
from benchmarks.ops.few_step import CHECKPOINTED, FASTVI_ALL, FORWARD_ALONE
from benchmarks.ops.iwae_step import FASTVI_DREG, FASTVI_SWAPPED
from benchmarks.ops.jax_step import JAX, NUMPYRO
from benchmarks.rows import Row
from benchmarks.work import Case

ALSO_OURS = {FASTVI_DREG: "with DReG", FASTVI_SWAPPED: "loss swapped alone"}
COLUMNS = (
    "eager", "compile", "networks", FASTVI_ALL, FORWARD_ALONE, CHECKPOINTED, JAX, NUMPYRO,
)  # fmt: skip
HEADER = ("work", "shape", "dtype", "pass", "fastvi")


def medians(rows: Iterable[Row], case: Case, metric: str = "time") -> dict[str, float]:
    """Each provider's median at the case."""
    return {
        row.provider: row.p50
        for row in rows
        if (row.op, row.shape, row.dtype, row.mode) == (case.op, case.shape, case.dtype, case.mode)
        and row.metric == metric
    }


def ratio_table(cases: Sequence[Case], rows: Sequence[Row]) -> str:
    """Times in ms, and other provider's time / fastvi's, with the target in brackets."""
    header = [*HEADER]
    for other in COLUMNS:
        header += [other, f"x {other}"]
    lines = [header]
    for case in cases:
        found = medians(rows, case)
        if not found:
            continue
        line = [case.op, case.shape, case.dtype, _short(case.mode), _ms(found.get("fastvi"))]
        for other in COLUMNS:
            line += [_ms(found.get(other)), _ratio(case, found, other)]
        lines.append(line)
        for name in (name for name in ALSO_OURS if name in found):
            line = [f"  {ALSO_OURS[name]}", "", "", "", _ms(found[name])]
            for other in COLUMNS:
                line += ["", _ratio(None, {**found, "fastvi": found[name]}, other)]
            lines.append(line)
    return _aligned(lines, left=4)


def share_table(cases: Sequence[Case], rows: Sequence[Row]) -> str:
    """Each kernel's share of the card's copy bandwidth; empty without such rows."""
    lines = [["work", "shape", "dtype", "pass", "fastvi", "eager", "compile", "target"]]
    for case in cases:
        shares = medians(rows, case, "bandwidth_share")
        if not shares:
            continue
        target = SHARE_TARGETS.get(case.op)
        line = [case.op, case.shape, case.dtype, _short(case.mode)]
        line += [f"{shares[name]:.0%}" if name in shares else "" for name in _OURS_AND_OTHERS]
        lines.append([*line, f"{target:.0%}" if target else ""])
    return _aligned(lines, left=4) if len(lines) > 1 else ""


_OURS_AND_OTHERS = ("fastvi", "eager", "compile")


def memory_table(cases: Sequence[Case], rows: Sequence[Row]) -> str:
    """The most memory that a forward and backward pass holds beside its inputs, in MiB."""
    providers = (*_OURS_AND_OTHERS, "checkpoint", "networks")
    lines = [["work", "shape", "dtype", *providers]]
    for case in cases:
        held = medians(rows, case, "memory")
        if held:
            values = [f"{held[name]:.2f}" if name in held else "" for name in providers]
            lines.append([case.op, case.shape, case.dtype, *values])
    return _aligned(lines, left=3) if len(lines) > 1 else ""


def missed(cases: Sequence[Case], rows: Sequence[Row]) -> list[str]:
    """The targets that were not reached, in words."""
    found = []
    for case in cases:
        times = medians(rows, case)
        for other, least in case.targets.items():
            if "fastvi" in times and other in times and times[other] / times["fastvi"] < least:
                ratio = times[other] / times["fastvi"]
                found.append(
                    f"{case.op} {case.shape} {case.mode}: {ratio:.2f} x {other}, wanted {least:.2f}"
                )
    return found


def _short(mode: str) -> str:
    return {"forward": "fwd", "forward+backward": "fwd+bwd"}[mode]


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _ratio(case: Case | None, found: dict[str, float], other: str) -> str:
    if "fastvi" not in found or other not in found:
        return ""
    ratio = found[other] / found["fastvi"]
    if case is None or other not in case.targets:
        return f"{ratio:.2f}"
    least = case.targets[other]
    return f"{ratio:.2f} ({'ok' if ratio >= least else 'below'} {least:.2f})"


def _aligned(lines: list[list[str]], left: int) -> str:
    keep = [
        column
        for column in range(len(lines[0]))
        if column < left or any(line[column] for line in lines[1:])
    ]
    lines = [[line[column] for column in keep] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(keep))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
