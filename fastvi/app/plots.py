"""The three pictures of a run: the bound against the epoch, reconstructions, prior samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fastvi._optional import need
from fastvi.files import saved as files

_INK, _MUTED, _GRID = "#1f2933", "#6b7785", "#e4e8ec"
_TRAIN, _HELD_OUT = "#9aa5b1", "#1d6fb8"
_DPI = 160
_LABEL_APART = 0.12  # of the axis
_GAP = 0.12  # between images, in widths of one


def _figure(width: float, height: float) -> Any:
    # Not pyplot: it holds global state, and picks a backend that may want a screen.
    figures = need("matplotlib.figure", "drawing pictures")
    return figures.Figure(figsize=(width, height), dpi=_DPI, facecolor="white")


def draw_bound(
    path: str | Path,
    epochs: Sequence[int],
    train: Sequence[float],
    held_out: Sequence[float],
    *,
    num_samples: int,
    title: str,
) -> None:
    """Draw the bound of both parts against the epoch, in nats per image."""
    figure = _figure(7.0, 4.2)
    axes = figure.add_axes((0.13, 0.14, 0.73, 0.72))
    parts = ((train, _TRAIN, _MUTED, "training"), (held_out, _HELD_OUT, _HELD_OUT, "held out"))
    for values, colour, _, _ in parts:
        axes.plot(
            epochs,
            values,
            color=colour,
            linewidth=1.8,
            solid_capstyle="round",
            # One epoch is a point on the axis, of which a line shows nothing.
            marker="o" if len(epochs) == 1 else None,
            clip_on=len(epochs) > 1,
        )
    # The first epochs start far below and would flatten all that follows.
    shown = held_out[min(len(held_out) - 1, len(held_out) // 30) :]
    top = max(*train, *held_out)
    low = min(shown)
    pad = 0.06 * (top - low) or 1.0
    axes.set_ylim(low - pad, top + pad)
    axes.set_xlim(1, max(epochs[-1], 2))
    # The lines often end together: the labels keep a distance, in the order of the lines.
    upper = int(held_out[-1] >= train[-1])
    centre, apart = 0.5 * (train[-1] + held_out[-1]), abs(train[-1] - held_out[-1])
    apart = max(apart, _LABEL_APART * (top - low + 2 * pad))
    for index, (values, _, colour, name) in enumerate(parts):
        axes.annotate(
            f"{name}\n{values[-1]:.2f}".replace("-", "\N{MINUS SIGN}"),
            (epochs[-1], centre + apart * (0.5 if index == upper else -0.5)),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )
    axes.set_xlabel("epoch", color=_INK)
    axes.set_ylabel(f"$L_{{{num_samples}}}$, nats per image", color=_INK)
    axes.set_title(title, loc="left", fontsize=11, color=_INK, pad=12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    save_figure(path, figure)


def save_figure(path: str | Path, figure: Any) -> None:
    """Write a picture that is there whole or not at all."""
    path = Path(path)
    files.replace(path, lambda file: figure.savefig(file, format=path.suffix[1:]))


def draw_rows(
    path: str | Path, rows: Sequence[tuple[str, Tensor]], shape: tuple[int, int], *, title: str
) -> None:
    """Draw rows of images, each with its name at the left; pixels in [0, 1], shape [N, F]."""
    columns = len(rows[0][1])
    cell, label, head = 0.62, 1.35, 0.5
    width, height = label + columns * cell + 0.1, head + len(rows) * cell + 0.1
    figure = _figure(width, height)
    figure.text(0.12 / width, 1 - 0.28 / height, title, fontsize=11, color=_INK, va="center")
    for row, (name, images) in enumerate(rows):
        bottom = height - head - (row + 1) * cell
        middle = (bottom + cell * (1 - _GAP) / 2) / height
        figure.text(0.12 / width, middle, name, fontsize=9, color=_MUTED, va="center")
        for column in range(columns):
            left = label + column * cell
            _image(figure, images[column], shape, left, bottom, cell, width, height)
    save_figure(path, figure)


def draw_grid(
    path: str | Path, images: Tensor, shape: tuple[int, int], *, columns: int, title: str
) -> None:
    """Draw images in a grid; pixels in [0, 1], shape [N, F]."""
    rows = -(-len(images) // columns)
    cell, margin, head = 0.62, 0.12, 0.5
    width, height = 2 * margin + columns * cell, head + rows * cell + margin
    figure = _figure(width, height)
    figure.text(margin / width, 1 - 0.28 / height, title, fontsize=11, color=_INK, va="center")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        bottom = height - head - (row + 1) * cell
        _image(figure, image, shape, margin + column * cell, bottom, cell, width, height)
    save_figure(path, figure)


def _image(
    figure: Any,
    image: Tensor,
    shape: tuple[int, int],
    left: float,
    bottom: float,
    cell: float,
    width: float,
    height: float,
) -> None:
    side = cell * (1 - _GAP)
    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    axes.imshow(image.reshape(shape).cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(_GRID)
