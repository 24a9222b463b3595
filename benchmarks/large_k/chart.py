"""Memory and time of a training step against K."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.conditions import Conditions
from benchmarks.large_k.step import (
    CHECKPOINTED,
    COMPILED,
    EAGER,
    FASTVI,
    FASTVI_AT_ONCE,
    FASTVI_FEW,
)

STYLES = {
    FASTVI: ("#2a9d6f", "o", "-"),
    FASTVI_FEW: ("#14573c", "^", "-"),
    FASTVI_AT_ONCE: ("#7cc4a4", "o", "--"),
    CHECKPOINTED: ("#3b6fb6", "s", "-"),
    EAGER: ("#3b6fb6", "s", "--"),
    COMPILED: ("#d9822b", "D", "--"),
}


def draw(
    found: Mapping[tuple[str, int, int, int], Mapping[str, Any]],
    where: Conditions,
    rows: Path,
) -> Path:
    """Draw the points, by (provider, K, B, chunk), beside the file of their rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    figure.suptitle("A training step with very many samples", fontsize=15, fontweight="bold")
    left, right = figure.subplots(1, 2)
    for provider, (colour, marker, line) in STYLES.items():
        points = sorted((k, v) for (name, k, _, _), v in found.items() if name == provider)
        if not points:
            continue
        for axis, key, scale in ((left, "bytes", 2.0**-20), (right, "seconds", 1.0)):
            axis.plot(
                [k for k, _ in points], [max(scale * v[key], 1e-3) for _, v in points],
                color=colour, marker=marker, linestyle=line, label=provider, markersize=5,
            )  # fmt: skip
    for axis, title in (
        (left, "memory beside the model, MiB"), (right, "seconds for a step"),
    ):  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="K, samples for each of 8 images", title=title)
        axis.grid(alpha=0.3)
    left.set_ylim(bottom=1)
    right.legend(frameon=False, fontsize=9)
    figure.text(
        0.5, -0.08,
        f"networks 784-200-200-50-200-200-784, 500 samples at a time; lines end where the next "
        f"point was not measured or would not fit 24 GiB\n{where.caption}",
        ha="center", fontsize=7.5, color="#555",
    )  # fmt: skip
    path = rows.with_suffix(".png")
    figure.savefig(path, bbox_inches="tight")
    return path
