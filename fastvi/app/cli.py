"""The command line: ``fastvi train``, ``fastvi diagnose`` and ``fastvi info``."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import torch

from fastvi._devices import check_device
from fastvi._optional import need
from fastvi.app.cli_diagnose import diagnose_command
from fastvi.app.images import Images, load_images
from fastvi.app.info import print_info
from fastvi.app.networks import refuse_too_large
from fastvi.app.run_folder import BOUND, RECONSTRUCTIONS, SAMPLES, RunFolder
from fastvi.app.settings import Settings, describe
from fastvi.app.training import Epoch, Evaluation, evaluate, held_out_pixels, train

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from fastvi.models.vae import VAE
else:
    typer = need("typer", "the command line")

EVALUATED = (1, 50, 5000)
_DEFAULTS = Settings()
_DIGITS_EPOCHS, _OTHER_EPOCHS = _DEFAULTS.epochs, 20
# What a user can put right: shown as one line, without a traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fast variational inference for PyTorch.",
)


def main() -> None:
    """Run the command line; errors that a user can put right are one line, not a traceback."""
    try:
        app()
    except _USER_ERRORS as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator has no type of error of its own.
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "can't allocate memory" not in str(error):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        _fail(f"not enough memory for so many samples at once, or so large a model: {first}")


def _fail(reason: str) -> NoReturn:
    typer.echo(f"fastvi: {reason}", err=True)
    raise SystemExit(2) from None


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Turn what ends a process by default, SIGTERM and a hang-up, into what Ctrl-C is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    # Under nohup a hang-up is ignored, and stays so.
    ending = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) == signal.SIG_DFL
    ]
    for number in ending:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


@app.command("train")
def train_command(
    data: Annotated[
        str,
        typer.Option(help="'digits', a folder of MNIST's IDX files, one IDX file, or an .npz."),
    ] = "digits",
    name: Annotated[
        str | None, typer.Option(help="Name of the run.  [default: that of the data]")
    ] = None,
    runs: Annotated[Path, typer.Option(help="The folder of all runs.")] = Path("runs"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run of the same name.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run of the same name, if there is one.")
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training images.  "
            f"[default: {_DIGITS_EPOCHS} for the digits, else {_OTHER_EPOCHS}]"
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(help="K, importance samples per image.")
    ] = _DEFAULTS.num_samples,
    estimator: Annotated[
        str, typer.Option(help="Gradient of the encoder: dreg, stl, iwae, rws or rws_dreg.")
    ] = _DEFAULTS.estimator,
    likelihood: Annotated[
        str, typer.Option(help="bernoulli (binary pixels) or gaussian (grey pixels).")
    ] = _DEFAULTS.likelihood,
    scale: Annotated[
        float | None, typer.Option(help="Fixed scale of the Gaussian.  [default: learned]")
    ] = _DEFAULTS.scale,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = _DEFAULTS.batch_size,
    latent_features: Annotated[
        int, typer.Option(help="D, latent features.")
    ] = _DEFAULTS.latent_features,
    hidden: Annotated[int, typer.Option(help="H, width of hidden layers.")] = _DEFAULTS.hidden,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's, at the start of a cosine decay to 0.")
    ] = _DEFAULTS.learning_rate,
    held_out: Annotated[
        int, typer.Option(help="Most held-out images to evaluate on.")
    ] = _DEFAULTS.held_out,
    seed: Annotated[int, typer.Option(help="Of weights, order and noise.")] = _DEFAULTS.seed,
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [default: torch's]")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = _DEFAULTS.device,
) -> None:
    """Train a VAE on images with the importance-weighted bound.

    Writes metrics, weights and three pictures to RUNS/NAME, and ends with the held-out bound.
    """
    if epochs is None:
        epochs = _DIGITS_EPOCHS if data == "digits" else _OTHER_EPOCHS
    settings = Settings(
        epochs=epochs,
        num_samples=num_samples,
        estimator=estimator,
        likelihood=likelihood,
        scale=scale,
        batch_size=batch_size,
        latent_features=latent_features,
        hidden=hidden,
        learning_rate=learning_rate,
        held_out=held_out,
        seed=seed,
        device=device,
    )
    check_device(device)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"expected --threads to be at least 1, got {threads}")
        torch.set_num_threads(threads)
    need("matplotlib", "drawing pictures")
    need("safetensors", "saving weights")
    console = need("rich.console", "the progress bar").Console(markup=False)
    if overwrite and resume:
        raise ValueError("expected --overwrite or --resume, got both")
    name = _name_of(data) if name is None else name
    folder = RunFolder(runs, name, overwrite=overwrite, resume=resume)
    images = load_images(data)
    refuse_too_large(images, settings)
    folder.create()
    history: list[Epoch] = []
    try:
        with _interrupted_by_signals():
            vae = _train_with_bar(console, images, settings, folder, history)
            _finish(console, vae, images, settings, folder, history)
    except KeyboardInterrupt as error:
        kept = ", ".join(sorted(path.name for path in folder.path.iterdir()))
        with contextlib.suppress(OSError):  # after a hang-up nobody hears
            console.print(
                f"\nInterrupted after {len(history)} of {settings.epochs} epochs. "
                f"Kept in {folder.path}: {kept}. The same command with --resume goes on.",
                soft_wrap=True,
            )
        # What a shell gives for a signal.
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None


app.command("diagnose")(diagnose_command)


def _name_of(data: str) -> str:
    return Path(data).expanduser().resolve().name.split(".")[0] or "run"


def _train_with_bar(
    console: Console, images: Images, settings: Settings, folder: RunFolder, history: list[Epoch]
) -> VAE:
    progress = need("rich.progress", "the progress bar")
    console.print(
        f"Training on {len(images.train)} images of {images.name}, "
        f"{images.shape[0]} x {images.shape[1]} pixels; writing to {folder.path}",
        soft_wrap=True,
    )
    if images.note:
        console.print(f"Note: {images.note}", soft_wrap=True)
    columns = (
        progress.TextColumn("epoch"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TimeRemainingColumn(elapsed_when_finished=True),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=settings.epochs)

        def show(epoch: Epoch) -> None:
            history.append(epoch)
            text = (
                f"L{settings.num_samples}: training {epoch.train_bound:.2f}, "
                f"held out {epoch.held_out_bound:.2f}"
            )
            bar.update(task, advance=1, description=text)

        return train(images, settings, folder, show)


def _finish(
    console: Console,
    vae: VAE,
    images: Images,
    settings: Settings,
    folder: RunFolder,
    history: list[Epoch],
) -> None:
    pixels = held_out_pixels(images, settings)
    with console.status("Evaluating on held-out images"):
        rows = evaluate(vae, pixels, EVALUATED)
    folder.write_evaluation([dataclasses.asdict(row) for row in rows])
    _draw(vae, images, pixels, settings, folder, history)
    _show_tables(console, rows, describe(images, settings), history[-1].seconds)
    console.print(
        f"Written to {folder.path}: {BOUND}, {RECONSTRUCTIONS}, {SAMPLES} and the rest.",
        soft_wrap=True,
    )


def _draw(
    vae: VAE,
    images: Images,
    pixels: torch.Tensor,
    settings: Settings,
    folder: RunFolder,
    history: list[Epoch],
) -> None:
    from fastvi.app.plots import draw_bound, draw_grid, draw_rows

    draw_bound(
        folder.path / BOUND,
        [row.epoch for row in history],
        [row.train_bound for row in history],
        [row.held_out_bound for row in history],
        num_samples=settings.num_samples,
        title=f"Lower bound on log p(x): {images.name}, K = {settings.num_samples}, "
        f"{settings.estimator}",
    )
    chosen = _one_of_each(images, len(pixels))
    rows = [("image", images.held_out[chosen])]
    if settings.likelihood == "bernoulli":
        rows.append(("drawn 0 or 1", pixels[chosen]))
    rows.append(("reconstruction", vae.reconstruct(pixels[chosen])))
    draw_rows(
        folder.path / RECONSTRUCTIONS, rows, images.shape, title=f"Held-out images: {images.name}"
    )
    draw_grid(
        folder.path / SAMPLES,
        vae.sample(80, mean=True),
        images.shape,
        columns=10,
        title="Mean of p(x given z), z from the prior",
    )


def _one_of_each(images: Images, count: int) -> torch.Tensor:
    """Return ten held-out images: one of each class if there are labels, else the first."""
    if images.held_out_labels is not None:
        labels = images.held_out_labels[:count].tolist()
        classes = sorted(set(labels))
        if len(classes) > 1:
            return torch.tensor([labels.index(label) for label in classes[:10]])
    return torch.arange(min(10, count))


def _show_tables(console: Console, rows: list[Evaluation], described: dict, seconds: float) -> None:
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
        "versions": ", ".join(f"{key} {value}" for key, value in versions.items()),
        "training time": f"{seconds:.1f} s",
    }
    for key, value in facts.items():
        if value is not None:
            table.add_row(key, str(value))
    console.print(table)


@app.command()
def info() -> None:
    """Print versions, devices, what was built, and whether a better build exists."""
    print_info()
