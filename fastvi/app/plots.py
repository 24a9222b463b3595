"""The three pictures of a run: the bound against the epoch, reconstructions, prior samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastvi.app.axes import BLUE, GREY, GRID, INK, MUTED, Target, figure, panel, save_figure

_TRAIN, _HELD_OUT = GREY, BLUE
_LABEL_APART = 0.12  # of the axis
_GAP = 0.12  # the gap between images, in widths of an image


def draw_bound(
    path: Target,
    epochs: Sequence[int],
    train: Sequence[float],
    held_out: Sequence[float],
    *,
    num_samples: int,
    title: str,
) -> None:
    """Draw the bound of both parts against the epoch, in nats per image."""
    drawing = figure(7.0, 4.2)
    bound = f"$L_{{{num_samples}}}$, nats per image"
    axes = panel(drawing, (0.13, 0.14, 0.73, 0.72), title, "epoch", bound)
    parts = ((train, _TRAIN, MUTED, "training"), (held_out, _HELD_OUT, _HELD_OUT, "held out"))
    for values, colour, _, _ in parts:
        axes.plot(
            epochs,
            values,
            color=colour,
            linewidth=1.8,
            solid_capstyle="round",
            # A single epoch is a point, which a line does not show.
            marker="o" if len(epochs) == 1 else None,
            clip_on=len(epochs) > 1,
        )
    # The first epochs start far below and would flatten the others.
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
    axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(path, drawing)


def draw_rows(
    path: Target,
    rows: Sequence[tuple[str, Tensor]],
    shape: tuple[int, int],
    *,
    title: str,
    heads: Sequence[str] = (),
) -> None:
    """Draw rows of images, each with its name at the left; pixels in [0, 1], shape [N, F].

    ``heads`` are written above the columns.
    """
    columns = len(rows[0][1])
    cell, label, head = 0.62, 1.35, 0.72 if heads else 0.5
    width, height = label + columns * cell + 0.1, head + len(rows) * cell + 0.1
    drawing = figure(width, height)
    drawing.text(0.12 / width, 1 - 0.28 / height, title, fontsize=11, color=INK, va="center")
    for column, text in enumerate(heads):
        middle = label + (column + 0.5 - 0.5 * _GAP) * cell
        drawing.text(
            middle / width, 1 - 0.6 / height, text, fontsize=9, color=MUTED, ha="center",
            va="center",
        )  # fmt: skip
    for row, (name, images) in enumerate(rows):
        bottom = height - head - (row + 1) * cell
        middle = (bottom + cell * (1 - _GAP) / 2) / height
        drawing.text(0.12 / width, middle, name, fontsize=9, color=MUTED, va="center")
        for column in range(columns):
            left = label + column * cell
            _image(drawing, images[column], shape, left, bottom, cell, width, height)
    save_figure(path, drawing)


def draw_grid(
    path: Target, images: Tensor, shape: tuple[int, int], *, columns: int, title: str
) -> None:
    """Draw images in a grid; pixels in [0, 1], shape [N, F]."""
    rows = -(-len(images) // columns)
    cell, margin, head = 0.62, 0.12, 0.5
    width, height = 2 * margin + columns * cell, head + rows * cell + margin
    drawing = figure(width, height)
    drawing.text(margin / width, 1 - 0.28 / height, title, fontsize=11, color=INK, va="center")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        bottom = height - head - (row + 1) * cell
        _image(drawing, image, shape, margin + column * cell, bottom, cell, width, height)
    save_figure(path, drawing)


def _image(
    drawing: Any,
    image: Tensor,
    shape: tuple[int, int],
    left: float,
    bottom: float,
    cell: float,
    width: float,
    height: float,
) -> None:
    side = cell * (1 - _GAP)
    axes = drawing.add_axes((left / width, bottom / height, side / width, side / height))
    axes.imshow(image.reshape(shape).cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GRID)
