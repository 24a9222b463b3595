"""``fastvi diagnose``: the diagnosis of a finished run by its importance weights."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch

from fastvi._devices import check_count, check_device
from fastvi._optional import need
from fastvi.app.diagnosis_report import (
    FEW_HEAD,
    FOLDER,
    PAGE,
    bounds_table,
    few_table,
    refuse_if_there,
    snr_table,
    summary,
    write_report,
)
from fastvi.app.images import Images, load_images
from fastvi.app.model_report import latent_advice, sections
from fastvi.app.networks import load_run
from fastvi.app.run_folder import METRICS
from fastvi.app.settings import Settings, read_settings
from fastvi.app.training import held_out_pixels
from fastvi.callbacks import Epoch
from fastvi.callbacks.loggers import read_csv_log
from fastvi.diagnostics.diagnosis import Diagnosis, diagnose
from fastvi.diagnostics.latents import measure_latents
from fastvi.files._strangers import one_line
from fastvi.ops import new_key

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from fastvi.models.vae import VAE
else:
    typer = need("typer", "the command line")

_DEFAULT_SAMPLES, _DEFAULT_BATCH = 5000, 200


def diagnose_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/digits.")],
    num_samples: Annotated[
        int, typer.Option(help="K, importance samples per image.")
    ] = _DEFAULT_SAMPLES,
    data: Annotated[
        str | None,
        typer.Option(help="As for train; its held-out part is used.  [default: the run's data]"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Most held-out images to look at.")] = _DEFAULT_BATCH,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a diagnosis of the same run.")
    ] = False,
) -> None:
    """Tell whether a run's bound is tight, whether more samples would help, and what to change.

    Writes a page, pictures and tables to RUN/diagnosis, and prints the advice.
    """
    for name, value in (("--num-samples", num_samples), ("--batch", batch)):
        check_count(name, value)
    if not 0 <= seed < 2**63:
        raise ValueError(f"expected --seed to be from 0 to 2^63 - 1, got {seed}")
    check_device(device)
    need("matplotlib", "drawing pictures")
    console = need("rich.console", "the tables").Console(markup=False)
    folder = run / FOLDER
    vae, settings, described = _load(run, device)
    refuse_if_there(folder, overwrite=overwrite)
    images = _images_of(run, data, described)
    pixels = held_out_pixels(images, settings)[:batch]
    torch.manual_seed(seed)
    key = new_key(pixels.device)
    with console.status(f"Weighing {num_samples} samples of each of {len(pixels)} images"):
        found = diagnose(vae, pixels, num_samples=num_samples, key=key)
    facts = {
        "Run": run.resolve().name,
        "data": f"{len(pixels)} held-out images of {images.name}{_other(images, described)}",
        "K": num_samples,
        "seed": seed,
        "trained with": _objective(settings),
    }
    with console.status("Drawing"):
        latents = measure_latents(vae, pixels)
        advice = [*found.advice(), *latent_advice(latents)]
        history = _history(console, run)
        more = list(sections(vae, latents, images, pixels, settings, history))
        write_report(folder, found, facts, overwrite=overwrite, advice=advice, more=more)
    _show(console, found, advice)
    console.print(f"Written to {folder}: {PAGE}, its pictures and tables.", soft_wrap=True)


def _objective(settings: Settings) -> str:
    """Say what a run was trained with."""
    said = f"K = {settings.num_samples}, {settings.estimator}"
    if settings.backward_samples is not None:
        said += f", backward_samples = {settings.backward_samples}"
    if settings.variance_growth is not None:
        said += f", variance_growth = {settings.variance_growth:g}"
    return said


def _history(console: Console, run: Path) -> list[Epoch]:
    """Return the epochs of a run; a fault in their table costs one picture, and gives a note."""
    try:
        return read_csv_log(run / METRICS)
    except (FileNotFoundError, ValueError) as error:
        console.print(f"Note: no picture of the epochs, {one_line(error)}", soft_wrap=True)
        return []


def _load(run: Path, device: str) -> tuple[VAE, Settings, dict[str, Any]]:
    """Load the model of a run and its settings; an error in the folder becomes one line."""
    if not run.is_dir():
        raise FileNotFoundError(f"expected RUN to be the folder of a run, got {run}, which is none")
    try:
        vae = load_run(run, device).eval()
        described, settings = read_settings(run)
        settings = dataclasses.replace(settings, device=device)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected {run} to be the folder of a run of 'fastvi train': {error}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"expected {run} to hold the settings and weights of a run, got files that do not "
            f"fit: {error}"
        ) from error
    return vae, settings, described


def _images_of(run: Path, data: str | None, described: dict[str, Any]) -> Images:
    """Return the images of a run, from their old place or from ``data``."""
    stored = described["data"]
    again = f"fastvi diagnose {shlex.quote(str(run))} --data"
    source, sha256 = stored.get("source"), stored.get("sha256")
    if data is None and source is None:
        raise ValueError(
            f"expected --data, the path of {one_line(stored['name'])}, for a run of a version that "
            f"did not keep it, got none: {again} PATH"
        )
    try:
        images = load_images(source if data is None else data)
    except (FileNotFoundError, ValueError) as error:
        if data is not None:
            raise
        raise type(error)(
            f"expected the data of {run} at {one_line(source)}, of sha256 {sha256[:12]}, got what "
            f"cannot be loaded ({one_line(error)}); if they were moved: {again} PATH"
        ) from error
    size = (stored["height"], stored["width"])
    if images.shape != size:
        raise ValueError(
            f"expected {'--data' if data else one_line(source)} to have images of "
            f"{size[0]} x {size[1]} pixels, as the run's, "
            f"got {images.shape[0]} x {images.shape[1]}"
        )
    if data is None and images.sha256 != sha256:
        raise ValueError(
            f"expected {one_line(source)} to hold the data of {run}, of sha256 {sha256[:12]}, got "
            f"other data, of sha256 {images.sha256[:12]}; the old data from elsewhere: {again} "
            f"PATH; these all the same: {again} {shlex.quote(source)}"
        )
    return images


def _other(images: Images, described: dict[str, Any]) -> str:
    same = described["data"].get("sha256") in (None, images.sha256)
    return "" if same else ", which are not the run's data"


def _show(console: Console, found: Diagnosis, advice: list[str]) -> None:
    tables, box = need("rich.table", "the tables"), need("rich.box", "the tables")

    def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        console.print(f"\n{title}")
        grid = tables.Table(box=box.SIMPLE_HEAD)
        for index, heading in enumerate(head):
            grid.add_column(heading, justify="right" if index else "left")
        for row in rows:
            grid.add_row(*row)
        console.print(grid)

    table("The weights", ("", "median image", "5% to 95%"), summary(found))
    table("The bound, mean of all images, nats", ("K", "L_K"), bounds_table(found))
    if rows := few_table(found):
        table("Samples that have to run backward, mean of all images", FEW_HEAD, rows)
    if found.snr:
        head = ("part", "estimator", *(f"K = {k}" for k in found.snr_samples))
        table("Signal-to-noise ratio of the gradients", head, snr_table(found))
    console.print("What to do")
    for sentence in advice:
        console.print(f"- {sentence}", highlight=False)
