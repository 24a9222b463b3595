"""The held-out bound against the seconds of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.conditions import Conditions
from benchmarks.few_backward.digits import NETWORKS, SETTINGS
from benchmarks.few_backward.training import HELD_OUT_SAMPLES, TrainingRow

COLOURS = {1: "#9aa3ad", 50: "#3b6fb6", 500: "#2a9d6f"}
LINES = {"all": "-", "auto": ":"}


def draw(rows: Sequence[TrainingRow], where: Conditions, path: Path) -> Path:
    """Draw the trainings beside the file of their rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.8), dpi=150, layout="constrained")
    axis = figure.subplots()
    for samples, few in dict.fromkeys((row.num_samples, row.backward) for row in rows):
        points = [row for row in rows if (row.num_samples, row.backward) == (samples, few)]
        label = f"K = {samples}" + ("" if samples == 1 else f", {few} backward")
        axis.errorbar(
            [row.seconds for row in points], [row.held_out_bound for row in points],
            yerr=[row.standard_error for row in points],
            color=COLOURS.get(samples), linestyle=LINES.get(few, "--"), marker="o",
            markersize=4, elinewidth=0.6, label=label,
        )  # fmt: skip
    best = max(row.held_out_bound for row in rows)
    axis.set(
        xscale="log", xlabel="seconds of training, evaluations left out",
        ylabel=f"held-out L_{HELD_OUT_SAMPLES}, nats",
        title="Few samples backward, on scikit-learn's digits",
        ylim=(best - 6.0, best + 0.7),
    )  # fmt: skip
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    figure.text(
        0.5, -0.07,
        f"networks {NETWORKS}, {SETTINGS.batch_size} images a step, the same epochs for all; "
        f"bars are the standard error over the held-out images\n{where.caption}",
        ha="center", fontsize=7.5, color="#555",
    )  # fmt: skip
    figure.savefig(path, bbox_inches="tight")
    return path
