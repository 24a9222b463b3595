"""Colours, figures, axes, labels at the ends of lines and histograms, for all pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastvi._optional import need
from fastvi.files import saved as files

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
BLUE, WARM, GREEN, GREY = "#1d6fb8", "#c4541b", "#2b7a4b", "#9aa5b1"
# Most readers can tell these colours apart, best in this order.
COLOURS = (BLUE, WARM, GREEN, "#7b4fb0", "#b8860b", "#17879c", "#c2407e", "#5b6b2f", GREY, INK)
LINE = {"linewidth": 1.8, "marker": "o", "markersize": 4}
MINUS = "\N{MINUS SIGN}"
Target = str | Path | BinaryIO  # the place of a picture
_DPI = 160
_BINS = 30


def figure(width: float, height: float) -> Any:
    """Return an empty figure of a size in inches."""
    # pyplot is avoided: it has global state, and picks a backend that may need a screen.
    figures = need("matplotlib.figure", "drawing pictures")
    return figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def panel(drawing: Any, box: tuple[float, float, float, float], title: str, x: str, y: str) -> Any:
    """Add axes to a figure, at (left, bottom, width, height) of it, in the look of all pictures."""
    axes = drawing.add_axes(box)
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=12)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    return axes


def one_panel(title: str, x: str, y: str, *, right: float = 0.04) -> tuple[Any, Any]:
    """Return a figure of one panel, with room for labels at its right."""
    drawing = figure(7.0, 4.2)
    return drawing, panel(drawing, (0.12, 0.14, 0.88 - right, 0.72), title, x, y)


def signed(value: float, digits: int = 3) -> str:
    """Return a number as text, with a minus sign as long as a plus sign."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def log_x(axes: Any, first: float, last: float) -> None:
    """Make the horizontal axis logarithmic, from the first number to the last."""
    axes.set_xscale("log")
    axes.set_xlim(first, last)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def label_ends(axes: Any, places: Sequence[tuple[float, str, str]], apart: float) -> None:
    """Label lines at their right ends, in order, with a distance of ``apart`` of the axis."""
    if not places:
        return
    axes.get_ylim()  # fixes the limits, which the transform does not
    to_axes = axes.transData - axes.transAxes
    heights = [to_axes.transform((axes.get_xlim()[1], value))[1] for value, _, _ in places]
    order = sorted(range(len(places)), key=lambda index: heights[index])
    shown: list[float] = []
    for index in order:
        shown.append(max(heights[index], shown[-1] + apart) if shown else heights[index])
    # Labels that were pushed up move down by half of that, so that all are near their lines.
    shift = sum(a - heights[index] for a, index in zip(shown, order, strict=True)) / len(order)
    for height, index in zip(shown, order, strict=True):
        _, colour, text = places[index]
        axes.annotate(
            text,
            (1.0, height - shift),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def histogram(axes: Any, values: Tensor, low: float, high: float) -> None:
    """Draw how many values lie in each part of a range."""
    counts = torch.histc(values, _BINS, low, high).tolist()
    width = (high - low) / _BINS
    lefts = [low + index * width for index in range(_BINS)]
    axes.bar(lefts, counts, 0.92 * width, align="edge", color=BLUE)
    axes.yaxis.get_major_locator().set_params(integer=True)


def say(axes: Any, text: str) -> None:
    """Write a reason into empty axes."""
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, color=MUTED)
    axes.set_yticks([])


def save_figure(path: Target, drawing: Any) -> None:
    """Write a complete picture to a path, or write it to an open file."""
    if isinstance(path, (str, Path)):
        kind = Path(path).suffix[1:]
        files.replace(path, lambda file: drawing.savefig(file, format=kind))
    else:
        drawing.savefig(path, format="png")
