"""The report of ``fastvi train`` on a finished run: three pictures and two tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastvi._optional import need
from fastvi.app.axes import Target
from fastvi.app.images import Images
from fastvi.app.plots import draw_bound, draw_grid, draw_rows
from fastvi.app.run_folder import BOUND, RECONSTRUCTIONS, SAMPLES, RunFolder
from fastvi.app.settings import Settings
from fastvi.app.training import Evaluation
from fastvi.callbacks import Epoch
from fastvi.models.vae import VAE

if TYPE_CHECKING:
    from rich.console import Console


def draw(
    vae: VAE,
    images: Images,
    pixels: torch.Tensor,
    settings: Settings,
    folder: RunFolder,
    history: Sequence[Epoch],
) -> None:
    """Draw the bound, reconstructions and samples into the run's folder."""
    for name, draw_to in pictures(vae, images, pixels, settings, history).items():
        draw_to(folder.path / name)


def pictures(
    vae: VAE,
    images: Images,
    pixels: torch.Tensor,
    settings: Settings,
    history: Sequence[Epoch],
) -> dict[str, Callable[[Target], None]]:
    """Return the functions that draw the three pictures, by the names of their files."""
    bound = functools.partial(
        draw_bound,
        epochs=[row.number for row in history],
        train=[row.bound for row in history],
        # A run of `fastvi train` always has held-out data.
        held_out=[row.held_out or 0.0 for row in history],
        num_samples=settings.num_samples,
        title=f"Lower bound on log p(x): {images.name}, K = {settings.num_samples}, "
        f"{settings.estimator}",
    )
    chosen = _one_of_each(images, len(pixels))
    rows = [("image", images.held_out[chosen])]
    if settings.likelihood == "bernoulli":
        rows.append(("drawn 0 or 1", pixels[chosen]))
    rows.append(("reconstruction", vae.reconstruct(pixels[chosen])))
    reconstructions = functools.partial(
        draw_rows, rows=rows, shape=images.shape, title=f"Held-out images: {images.name}"
    )
    samples = functools.partial(
        draw_grid,
        images=vae.sample(80, mean=True),
        shape=images.shape,
        columns=10,
        title="Mean of p(x given z), z from the prior",
    )
    return {BOUND: bound, RECONSTRUCTIONS: reconstructions, SAMPLES: samples}


def _one_of_each(images: Images, count: int) -> torch.Tensor:
    """Return ten held-out images: one of each class if there are labels, else the first."""
    if images.held_out_labels is not None:
        labels = images.held_out_labels[:count].tolist()
        classes = sorted(set(labels))
        if len(classes) > 1:
            return torch.tensor([labels.index(label) for label in classes[:10]])
    return torch.arange(min(10, count))


def show_tables(
    console: Console, rows: Sequence[Evaluation], described: dict[str, Any], seconds: float
) -> None:
    """Print the held-out bounds and the settings."""
    tables, box = need("rich.table", "the tables"), need("rich.box", "the tables")
    console.print(f"\nLower bound L_K on log p(x), mean of {rows[0].images} held-out images, nats")
    bounds = tables.Table(box=box.SIMPLE_HEAD)
    for heading in ("K", "L_K", "± standard error"):
        bounds.add_column(heading, justify="right")
    for row in rows:
        bounds.add_row(str(row.num_samples), f"{row.bound:.3f}", f"{row.standard_error:.3f}")
    console.print(bounds)
    console.print("Settings")
    table = tables.Table(box=box.SIMPLE, show_header=False)
    data, versions = described["data"], described["versions"]
    facts = {
        "data": f"{data['name']}, {data['height']} x {data['width']} pixels, "
        f"{data['train_images']} for training, {data['held_out_images']} held out",
        **{key.replace("_", " "): value for key, value in described["settings"].items()},
        "held out": f"at most {described['settings']['held_out']} images",
        "threads": described["threads"],
        "processes": described["processes"] if described["processes"] > 1 else None,
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "training time": f"{seconds:.1f} s",
    }
    for key, value in facts.items():
        if value is not None:
            table.add_row(key, str(value))
    console.print(table)
