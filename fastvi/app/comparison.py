"""A comparison of runs: common and different settings, and progress."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvi.app.axes import COLOURS, INK, MUTED, figure, panel, save_figure, signed
from fastvi.app.run_folder import EVALUATION, METRICS
from fastvi.app.settings import Settings, not_of_train, read_settings
from fastvi.app.training import Evaluation
from fastvi.callbacks import Epoch
from fastvi.callbacks.loggers import read_csv_log
from fastvi.files._strangers import check_regular, one_line

_MOST_RUNS = len(COLOURS)
_MOST_BYTES = 2**20  # of an evaluation, which has three lines


@dataclass(frozen=True)
class Run:
    """Hold the content of a run's folder."""

    name: str
    settings: Settings
    data: dict[str, Any]
    epochs: list[Epoch]
    evaluation: list[Evaluation]  # empty for an unfinished run


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the folders of runs, and refuse those that cannot be compared, by name.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: fewer than two runs, or more than there are colours; files that no run wrote;
            runs with bounds on different data, or on different kinds of pixels.
    """
    if not 2 <= len(paths) <= _MOST_RUNS:
        raise ValueError(
            f"expected RUN to be two to {_MOST_RUNS} folders of runs, got {len(paths)}"
        )
    if len(set(path.resolve() for path in paths)) < len(paths):
        raise ValueError(
            f"expected RUN to be folders of different runs, got one twice among "
            f"{', '.join(map(str, paths))}"
        )
    last = [path.resolve().name for path in paths]
    names = last if len(set(last)) == len(last) else [str(path) for path in paths]
    runs = [_read(path, one_line(name)) for path, name in zip(paths, names, strict=True)]
    for what, value in (
        ("data", _data),
        ("likelihood", lambda run: run.settings.likelihood),
        ("number of held-out images", lambda run: run.data["held_out_images"]),
    ):
        groups: dict[Any, list[str]] = {}
        for run in runs:
            groups.setdefault(value(run), []).append(run.name)
        if len(groups) > 1:
            named = "; ".join(f"{', '.join(group)}: {key}" for key, group in groups.items())
            raise ValueError(
                f"expected runs of one {what}, because bounds on others cannot be compared, got "
                f"{named}"
            )
    return runs


def _data(run: Run) -> str:
    sha256 = run.data.get("sha256")
    known = f"sha256 {sha256[:12]}" if sha256 else "of a version that kept no hash"
    return f"{one_line(run.data['name'])} ({known})"


def _read(path: Path, name: str) -> Run:
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected RUN to be the folder of a run, got {path}, which is none"
        )
    described, settings = read_settings(path)
    epochs = read_csv_log(path / METRICS)
    if not epochs:
        raise ValueError(f"expected {name} to have finished an epoch, got none in {METRICS}")
    return Run(name, settings, described["data"], epochs, _evaluation(path / EVALUATION))


def _evaluation(path: Path) -> list[Evaluation]:
    if not path.exists():
        return []
    check_regular("compare", path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file.read(_MOST_BYTES).splitlines()))
        return [
            Evaluation(
                int(row["num_samples"]), float(row["bound"]), float(row["standard_error"]),
                int(row["images"]),
            )
            for row in rows
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise not_of_train(path, error) from error


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the names of the settings in which the runs differ."""
    described = [dataclasses.asdict(run.settings) for run in runs]
    return [key for key in described[0] if len({str(one[key]) for one in described}) > 1]


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Return heads, with a column for each run, the best first, and rows; a dash means unknown.

    The rows are the different settings, the progress of each run, and its bounds in nats per
    image with their standard errors.
    """
    ordered = sorted(runs, key=_rank, reverse=True)
    rows = [
        [name.replace("_", " "), *(str(getattr(run.settings, name)) for run in ordered)]
        for name in differing(runs)
        if name != "epochs"
    ]
    last = [(run, run.epochs[-1]) for run in ordered]
    rows.append(["epochs", *(f"{epoch.number} of {run.settings.epochs}" for run, epoch in last)])
    rows.append(["steps", *(str(epoch.steps) for _, epoch in last)])
    rows.append(["seconds", *(f"{epoch.seconds:.1f}" for _, epoch in last)])
    rows.append(["L_K of training's K", *(_number(epoch.held_out) for _, epoch in last)])
    for k in sorted({row.num_samples for run in runs for row in run.evaluation}):
        known = [{row.num_samples: row for row in run.evaluation}.get(k) for run in ordered]
        rows.append(
            [
                f"L_{k}",
                *(f"{row.bound:.2f} ± {row.standard_error:.2f}" if row else "–" for row in known),
            ]
        )
    return ["", *(run.name for run in ordered)], rows


def _rank(run: Run) -> tuple[bool, float]:
    """Return the key for sorting: the bound of most samples, and unfinished runs last."""
    bound = run.evaluation[-1].bound if run.evaluation else run.epochs[-1].held_out
    known = bound is not None and not math.isnan(bound)
    return bool(run.evaluation), bound if bound is not None and known else -math.inf


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def draw_runs(path: str | Path, runs: Sequence[Run]) -> None:
    """Draw the held-out bound against step and seconds, and the last bound with its error."""
    drawing = figure(13.0, 4.6)
    boxes = [(0.055, 0.26, 0.26, 0.6), (0.365, 0.26, 0.26, 0.6), (0.725, 0.26, 0.255, 0.6)]
    samples = sorted({run.settings.num_samples for run in runs})
    of = f"$L_{{{samples[0]}}}$" if len(samples) == 1 else "$L_K$, each run's own K"
    panels = [
        panel(drawing, boxes[0], "Held-out bound against step", "step", f"{of}, nats per image"),
        panel(drawing, boxes[1], "Held-out bound against time", "seconds", ""),
    ]
    for axes, horizontal in zip(panels, ("steps", "seconds"), strict=True):
        for run, colour in zip(runs, COLOURS, strict=False):
            x = [getattr(epoch, horizontal) for epoch in run.epochs]
            y = [epoch.held_out for epoch in run.epochs]
            axes.plot(
                x,
                y,
                color=colour,
                linewidth=1.8,
                solid_capstyle="round",
                marker="o" if len(x) == 1 else None,
                label=f"{run.name} (K = {run.settings.num_samples})",
            )
        _leave_out_the_start(axes, runs)
        axes.set_xlim(left=0)
    names = panels[0].get_legend_handles_labels()
    drawing.legend(
        *names, loc="lower left", bbox_to_anchor=(0.04, 0.0), ncols=min(len(runs), 4),
        frameon=False, fontsize=9, labelcolor=INK,
    )  # fmt: skip
    _draw_last(panel(drawing, boxes[2], *_last_title(runs)), runs)
    save_figure(path, drawing)


def _leave_out_the_start(axes: Any, runs: Sequence[Run]) -> None:
    """Set the range so that the low bounds of the first epochs do not flatten the others."""
    rows = [[epoch.held_out for epoch in run.epochs if epoch.held_out is not None] for run in runs]
    low = min(value for row in rows for value in row[min(len(row) - 1, len(row) // 20) :])
    high = max(value for row in rows for value in row)
    pad = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - pad, high + pad)


def _last_title(runs: Sequence[Run]) -> tuple[str, str, str]:
    last = {run.evaluation[-1].num_samples for run in runs if run.evaluation}
    of = f"$L_{{{last.pop()}}}$" if len(last) == 1 else "$L_K$"
    return "Held-out bound, and its standard error", f"{of}, nats per image", ""


def _draw_last(axes: Any, runs: Sequence[Run]) -> None:
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    shown = sorted(zip(runs, COLOURS, strict=False), key=lambda one: _rank(one[0]))
    for height, (run, colour) in enumerate(shown):
        if not run.evaluation:
            axes.text(
                0.02, height, "not over: no evaluation", color=MUTED, fontsize=9, va="center",
                transform=axes.get_yaxis_transform(),
            )  # fmt: skip
            continue
        last = run.evaluation[-1]
        error = 0.0 if math.isnan(last.standard_error) else last.standard_error
        axes.errorbar(last.bound, height, xerr=error, color=colour, marker="o", capsize=4)
        axes.annotate(
            signed(last.bound, 2), (last.bound, height), xytext=(0, 7), color=colour,
            textcoords="offset points", ha="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(shown)), [run.name for run, _ in shown])
    axes.set_ylim(-0.6, len(shown) - 0.3)
    axes.margins(x=0.12)
