"""The chart of a run: how many times as fast, and the training step, with the conditions below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.ops.few_step import (
    CHECKPOINTED,
    FASTVI_ALL,
    FEW_STEP,
    FEW_STEP_CHUNKS,
    FORWARD_ALONE,
)
from benchmarks.ops.iwae_step import FASTVI_DREG, FASTVI_SWAPPED, IWAE_STEP, NETWORKS
from benchmarks.ops.jax_step import JAX, NUMPYRO
from benchmarks.ops.sbn_step import SBN_STEP
from benchmarks.rows import Row
from benchmarks.work import MODES, Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHERS = {"eager": ("#3b6fb6", "o"), "compile": ("#d9822b", "D")}
STEP_COLOURS = {
    "fastvi": "#2a9d6f",
    FASTVI_DREG: "#7cc4a4",
    FASTVI_SWAPPED: "#b9dccb",
    FASTVI_ALL: "#7cc4a4",
    FORWARD_ALONE: "#c9cfd6",
    CHECKPOINTED: "#7d9fd0",
    "eager": OTHERS["eager"][0],
    "compile": OTHERS["compile"][0],
    JAX: "#8e6bbf",
    NUMPYRO: "#c3aee0",
    NETWORKS: "#9aa3ad",
}
NAMES = {
    "eager": "eager PyTorch",
    "compile": "torch.compile",
    FASTVI_DREG: "fastvi, DReG",
    FASTVI_SWAPPED: "fastvi, loss swapped alone",
    JAX: "JAX, jitted",
    NUMPYRO: "NumPyro, RenyiELBO, jitted",
    NETWORKS: "networks alone",
    FASTVI_ALL: "fastvi, all backward",
    FORWARD_ALONE: "forward alone",
    CHECKPOINTED: "eager, checkpointed",
}
STEPS = {
    IWAE_STEP.name: "IWAE training step",
    FEW_STEP.name: "M samples backward",
    FEW_STEP_CHUNKS.name: "M samples backward, in chunks",
    SBN_STEP.name: "VIMCO step of a belief network",
}
INK, PALE = "#22272e", "#d7dbe0"
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100, 1000, 10_000)
IN_A_LINE = 3  # steps; more would write into one another
Label = tuple[str, str, str]


def draw_chart(rows: Sequence[Row], cases: Sequence[Case], path: Path) -> Path:
    """Draw the rows of one run into a PNG, with the targets of its cases."""
    from matplotlib.figure import Figure

    times = [row for row in rows if row.metric == "time"]
    ops = [row for row in times if row.op not in STEPS]
    steps = [row for row in times if row.op in STEPS]
    labels = list(dict.fromkeys((row.op, row.shape, row.dtype) for row in ops))
    step_shapes = list(dict.fromkeys((row.op, row.shape) for row in steps))

    heights = []
    if labels:
        heights.append(1.0 + 0.34 * len(labels))
    lines = [step_shapes[i : i + IN_A_LINE] for i in range(0, len(step_shapes), IN_A_LINE)]
    heights += [2.6] * len(lines)
    figure = Figure(figsize=(11.5, 1.3 + sum(heights)), dpi=150, layout="constrained")
    figure.set_facecolor("white")
    title = "How many times as fast is fastvi?" if labels else "How long does a training step take?"
    figure.suptitle(title, fontsize=16, fontweight="bold", color=INK)
    panels = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if labels:
        panel = panels.pop(0)
        axes = panel.subplots(1, 2, sharey=True, squeeze=False)[0]
        for axis, mode in zip(axes, MODES, strict=True):
            targets = {
                (case.op, case.shape, case.dtype): case.targets
                for case in cases
                if case.mode == mode
            }
            _ratios(axis, [row for row in ops if row.mode == mode], labels, targets)
            axis.set_xlim(_limits(ops))
            axis.set_title(mode.replace("+", " + "), fontsize=11, color=INK)
        marks = axes[0].get_legend_handles_labels()
        panel.legend(*marks, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    for line, panel in zip(lines, panels, strict=True):
        axes = panel.subplots(1, len(line), squeeze=False)[0]
        for axis, (op, shape) in zip(axes, line, strict=True):
            _step(axis, [row for row in steps if (row.op, row.shape) == (op, shape)], op, shape)
    figure.supxlabel(_caption(times), fontsize=8, color="#5b6470")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _ratios(
    axis: Axes,
    rows: Sequence[Row],
    labels: Sequence[Label],
    targets: Mapping[Label, Mapping[str, float]],
) -> None:
    by_case = {(row.op, row.shape, row.dtype, row.provider): row for row in rows}
    axis.axvspan(1e-9, 1.0, color="#fbeeee", zorder=0)
    axis.axvline(1.0, color="#b04a4a", linewidth=1, zorder=1)
    for place, label in enumerate(labels):
        ours = by_case.get((*label, "fastvi"))
        if ours is None:
            continue
        for other, (colour, marker) in OTHERS.items():
            theirs = by_case.get((*label, other))
            if theirs is None:
                continue
            wanted = targets.get(label, {}).get(other)
            if wanted is not None:
                axis.plot(wanted, place, marker="|", color=colour, markersize=15, mew=2, zorder=2)
            # The bar is as wide as the rounds made it: both at their slow, or at their fast end.
            axis.plot(
                [theirs.p20 / ours.p80, theirs.p80 / ours.p20],
                [place, place],
                color=colour,
                alpha=0.35,
                linewidth=3,
                zorder=3,
            )
            axis.scatter(
                theirs.p50 / ours.p50,
                place,
                color=colour,
                marker=marker,
                s=34,
                zorder=4,
                edgecolor="white",
                linewidth=0.6,
            )
    for other, (colour, marker) in OTHERS.items():
        axis.scatter([], [], color=colour, marker=marker, s=34, label=f"against {NAMES[other]}")
    axis.plot([], [], marker="|", color=INK, markersize=12, mew=2, linestyle="", label="target")
    axis.set_xscale("log")
    axis.set_xticks(TICKS, [f"{tick:g}×" for tick in TICKS])
    axis.minorticks_off()
    axis.set_yticks(range(len(labels)), [_label(label) for label in labels], fontsize=8)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlabel("time of the other / time of fastvi", fontsize=8.5, color=INK)
    _plain(axis)
    axis.grid(axis="both", color=PALE, linewidth=0.6, zorder=0)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    def case(row: Row) -> tuple[str, ...]:
        return row.op, row.shape, row.dtype, row.mode

    ours = {case(row): row.p50 for row in rows if row.provider == "fastvi"}
    ratios = [
        row.p50 / ours[case(row)] for row in rows if row.provider in OTHERS and case(row) in ours
    ]
    return min([0.5, *(0.7 * ratio for ratio in ratios)]), max([20, *(1.4 * r for r in ratios)])


def _step(axis: Axes, rows: Sequence[Row], op: str, shape: str) -> None:
    found = {row.provider: row for row in rows if row.provider in STEP_COLOURS}
    order = [name for name in STEP_COLOURS if name in found]
    for place, name in enumerate(order):
        row = found[name]
        axis.barh(place, row.p50, color=STEP_COLOURS[name], height=0.68, zorder=2)
        axis.plot([row.p20, row.p80], [place, place], color=INK, linewidth=1, zorder=3)
        digits = max(0, 2 - int(math.log10(max(row.p50, 1.0))))
        axis.text(
            row.p80, place, f"  {row.p50:.{digits}f} ms", va="center", fontsize=8.5, color=INK
        )
    axis.set_yticks(range(len(order)), [NAMES.get(name, name) for name in order], fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.3 * max(row.p80 for row in rows))
    sizes = ", ".join(f"{part[0]} = {part[1:]}" for part in shape.split("x"))
    axis.set_title(f"{STEPS[op]}\n{sizes}", fontsize=11, color=INK)
    axis.set_xlabel("milliseconds, forward + backward", fontsize=8.5, color=INK)
    _plain(axis)
    axis.grid(axis="x", color=PALE, linewidth=0.6, zorder=0)


def _label(label: Label) -> str:
    op, shape, dtype = label
    return f"{op}  {shape.replace('x', ' × ')}" + ("" if dtype == "float32" else f"  {dtype}")


def _plain(axis: Axes) -> None:
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(PALE)
    axis.tick_params(colors=INK, length=0, labelsize=8)


def _caption(rows: Sequence[Row]) -> str:
    row = rows[0]
    cuda = f", CUDA {row.cuda}" if row.cuda else ""
    machine = f"{row.device} · torch {row.torch}{cuda} · fastvi {row.fastvi} ({row.commit})"
    rounds = sorted({row.rounds for row in rows})
    many = str(rounds[0]) if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    return (
        f"{machine} · {row.date}\n"
        f"Medians of {many} alternated rounds, each provider in a process of its own; "
        "bars: 20th to 80th percentile. float32 unless said; forward under no_grad.\n"
        "Eager: torch.distributions, validation off. torch.compile: the same mathematics by hand, "
        "its fastest variant. The step leaves out the optimiser."
    )
