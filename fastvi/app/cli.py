"""The command line: ``fastvi train``, ``compare``, ``diagnose`` and ``info``."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import torch

from fastvi._devices import check_count
from fastvi._optional import need
from fastvi.app.cli_compare import compare_command
from fastvi.app.cli_diagnose import diagnose_command
from fastvi.app.images import Images, load_images
from fastvi.app.info import print_info
from fastvi.app.networks import refuse_too_large
from fastvi.app.ranks import Ranks, joined
from fastvi.app.run_folder import BOUND, LOGS, RECONSTRUCTIONS, SAMPLES, WANDB, RunFolder
from fastvi.app.run_report import draw, show_tables
from fastvi.app.settings import Settings, describe, settings_to_resume
from fastvi.app.training import evaluate, held_out_pixels, train
from fastvi.callbacks import (
    Beginning,
    Callback,
    Epoch,
    ProgressBar,
    TensorBoardLog,
    WandbLog,
)
from fastvi.chunks.few import GROWTH

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from fastvi.models.vae import VAE
else:
    typer = need("typer", "the command line")

EVALUATED = (1, 50, 5000)
_DEFAULTS = Settings()
_DIGITS_EPOCHS, _OTHER_EPOCHS = _DEFAULTS.epochs, 20
# Errors that a user can correct: they are shown as one line, without a traceback.
_USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fast variational inference for PyTorch.",
)


def main() -> None:
    """Run the command line; errors that a user can correct are one line, not a traceback."""
    try:
        app()
    except _USER_ERRORS as error:
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator has no error type of its own.
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
    """Treat SIGTERM and a hang-up, which end a process by default, as Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    # Under nohup a hang-up stays ignored.
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
    ctx: typer.Context,
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
        bool,
        typer.Option(
            "--resume", help="Go on with a run of the same name, if there is one, by its settings."
        ),
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
    backward_samples: Annotated[
        str | None,
        typer.Option(
            help="m, how many of an image's samples run backward, a number or auto; the gradient "
            "keeps its mean.  [default: all]"
        ),
    ] = None,
    variance_growth: Annotated[
        float | None,
        typer.Option(
            help="By what factor --backward-samples auto may raise the variance over the samples.  "
            f"[default: {GROWTH}]"
        ),
    ] = None,
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
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard or wandb (offline), into the run's folder; may be given twice."
        ),
    ] = None,
) -> None:
    """Train a VAE on images with the importance-weighted bound.

    Under torchrun the images of a batch are shared among the processes.
    Writes metrics, weights and three pictures to RUNS/NAME, and ends with the held-out bound.
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "num_samples": num_samples,
        "estimator": estimator,
        "backward_samples": _number_or_auto("--backward-samples", backward_samples),
        "variance_growth": variance_growth,
        "likelihood": likelihood,
        "scale": scale,
        "batch_size": batch_size,
        "latent_features": latent_features,
        "hidden": hidden,
        "learning_rate": learning_rate,
        "held_out": held_out,
        "seed": seed,
        "device": device,
    }
    if overwrite and resume:
        raise ValueError("expected --overwrite or --resume, got both")
    if threads is not None:
        check_count("--threads", threads)
        torch.set_num_threads(threads)
    name = _name_of(data) if name is None else name
    typed = {
        key
        for key in ctx.params
        if (source := ctx.get_parameter_source(key)) is not None and source.name != "DEFAULT"
    }
    need("matplotlib", "drawing pictures")
    need("safetensors", "saving weights")
    rich = need("rich.console", "the progress bar")

    def begin() -> tuple[RunFolder, Settings, str]:
        folder = RunFolder(runs, name, overwrite=overwrite, resume=resume)
        source = None
        if resume:
            settings, source = settings_to_resume(folder.path, given, typed)
            given.update(settings)
        where = data if source is None or "data" in typed else source
        if given["epochs"] is None:
            given["epochs"] = _DIGITS_EPOCHS if where == "digits" else _OTHER_EPOCHS
        return folder, Settings(**given), where

    with joined() as ranks:
        folder, settings, where = ranks.from_first(begin)
        ranks.take_device(settings.device)
        console = rich.Console(markup=False, quiet=not ranks.is_first)
        _run(console, load_images(where), settings, folder, log or [], ranks)


def _run(
    console: Console,
    images: Images,
    settings: Settings,
    folder: RunFolder,
    log: list[str],
    ranks: Ranks,
) -> None:
    refuse_too_large(images, settings, ranks.size)
    heard = _Heard()
    callbacks = [heard, ProgressBar(console), *_loggers(log, folder)]
    ranks.from_first(folder.create)
    try:
        with _interrupted_by_signals():
            _say_what_begins(console, images, folder)
            vae = train(images, settings, folder, callbacks, ranks)
            _finish(console, vae, images, settings, folder, heard.epochs, ranks)
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # after a hang-up there is no terminal
            kept = ", ".join(sorted(path.name for path in folder.path.iterdir()))
            console.print(
                f"\nInterrupted after {len(heard.epochs)} of {settings.epochs} epochs. "
                f"Kept in {folder.path}: {kept}. The same command with --resume goes on.",
                soft_wrap=True,
            )
        # The exit status that a shell gives for a signal.
        raise SystemExit(128 + (error.args[0] if error.args else signal.SIGINT)) from None


def _number_or_auto(option: str, text: str | None) -> int | str | None:
    """Return what was typed for an option that takes a number or auto."""
    if text in (None, "auto"):
        return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected {option} to be a number or 'auto', got {text!r}") from None


app.command("diagnose")(diagnose_command)
app.command("compare")(compare_command)


def _name_of(data: str) -> str:
    return Path(data).expanduser().resolve().name.split(".")[0] or "run"


class _Heard(Callback):
    """Keep the epochs of a run, with those before an interruption."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []

    def on_begin(self, run: Beginning) -> None:
        self.epochs.extend(run.past)

    def on_epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


def _loggers(names: list[str], folder: RunFolder) -> list[Callback]:
    for name in names:
        if name not in LOGS:
            raise ValueError(f"expected --log to be {' or '.join(LOGS)}, got {name!r}")
    # wandb makes a folder with its own name.
    return [
        WandbLog(folder.path, name=folder.path.name)
        if name == WANDB
        else TensorBoardLog(folder.path / name)
        for name in dict.fromkeys(names)
    ]


def _say_what_begins(console: Console, images: Images, folder: RunFolder) -> None:
    console.print(
        f"Training on {len(images.train)} images of {images.name}, "
        f"{images.shape[0]} x {images.shape[1]} pixels; writing to {folder.path}",
        soft_wrap=True,
    )
    if images.note:
        console.print(f"Note: {images.note}", soft_wrap=True)


def _finish(
    console: Console,
    vae: VAE,
    images: Images,
    settings: Settings,
    folder: RunFolder,
    history: list[Epoch],
    ranks: Ranks,
) -> None:
    pixels = held_out_pixels(images, settings)
    with console.status("Evaluating on held-out images"):
        rows = evaluate(vae, pixels, EVALUATED, ranks)
    if not ranks.is_first:
        return
    folder.write_evaluation([dataclasses.asdict(row) for row in rows])
    draw(vae, images, pixels, settings, folder, history)
    show_tables(console, rows, describe(images, settings, ranks.size), history[-1].seconds)
    console.print(
        f"Written to {folder.path}: {BOUND}, {RECONSTRUCTIONS}, {SAMPLES} and the rest.",
        soft_wrap=True,
    )


@app.command()
def info() -> None:
    """Print versions, devices, the build, and whether a better build exists."""
    print_info()
