"""Train a VAE on images with the importance-weighted bound: what ``fastvi train`` runs."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastvi._optional import need
from fastvi._version import __version__
from fastvi.app.images import Images, binarise, binarise_held_out
from fastvi.app.run_folder import SETTINGS, WEIGHTS, RunFolder
from fastvi.bounds.estimators import IWLB_ESTIMATORS
from fastvi.files._strangers import check_regular, one_line, read_json
from fastvi.files.saved import seen_by
from fastvi.losses import IWLBLoss
from fastvi.models.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from fastvi.models.vae import VAE
from fastvi.ops._arguments import MAX_SAMPLES
from fastvi.svi.checkpoint import random_state, set_random_state

LIKELIHOODS = ("bernoulli", "gaussian")
# More is too much for any memory, and the number of weights would overflow.
_MOST = {"num_samples": MAX_SAMPLES, "latent_features": 2**24, "hidden": 2**24}
_FIRST_SCALE = 0.5
_COUNTS = ("epochs", "num_samples", "batch_size", "latent_features", "hidden", "held_out")
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*_COUNTS, "seed"), (int,)),
    **dict.fromkeys(("estimator", "likelihood", "device"), (str,)),
    "learning_rate": (int, float),
    "scale": (int, float, type(None)),
}
_DATA_KEYS = ("name", "height", "width", "train_images", "held_out_images")
_MOST_WEIGHTS_HEADER = 2**20
# A chunk's activations stay in the cache of a CPU, which halves the time of K = 5000.
_IMAGES_AT_ONCE, _SAMPLES_AT_ONCE = 50, 50


@dataclass(frozen=True)
class Settings:
    """What a run can be told; the names are those of the command line.

    ``scale`` is the Gaussian likelihood's: ``None`` learns it. With the Bernoulli likelihood the
    pixels are drawn as 0 or 1 from their grey levels: anew at every training step, once and for
    all in the held-out part. The bound is then one on the log-probability of a binary image, not a
    "likelihood" of grey values that is none.
    """

    epochs: int = 100
    num_samples: int = 50
    estimator: str = "dreg"
    likelihood: str = "bernoulli"
    scale: float | None = None
    batch_size: int = 50
    latent_features: int = 16
    hidden: int = 200
    learning_rate: float = 2e-3
    held_out: int = 1000
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, types in _TYPES.items():
            _check_type(name, getattr(self, name), types)
        for name in _COUNTS:
            _check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        for name, most in _MOST.items():
            _check(name, getattr(self, name) <= most, f"at most {most}", getattr(self, name))
        _check("learning_rate", 0 < self.learning_rate < math.inf, "positive", self.learning_rate)
        _check("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1", self.seed)
        if self.scale is not None:
            _check("scale", 0 < self.scale < math.inf, "positive", self.scale)
            _check("scale", self.likelihood == "gaussian", "unset for bernoulli", self.scale)
        for name, choices in (("estimator", tuple(IWLB_ESTIMATORS)), ("likelihood", LIKELIHOODS)):
            value = getattr(self, name)
            _check(name, value in choices, f"one of {', '.join(choices)}", repr(value))


def _check_type(name: str, got: object, types: tuple[type, ...]) -> None:
    if not isinstance(got, types) or isinstance(got, bool):
        expected = " or ".join("None" if t is type(None) else t.__name__ for t in types)
        raise TypeError(
            f"Settings: expected {name} to be {expected}, got {type(got).__name__} {got!r}"
        )


def _check(name: str, good: bool, expected: str, got: object) -> None:
    if not good:
        raise ValueError(f"Settings: expected {name} to be {expected}, got {got}")


@dataclass(frozen=True)
class Epoch:
    """A line of metrics.csv: bounds in nats per image."""

    epoch: int
    train_bound: float
    held_out_bound: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """Held-out L_K in nats per image, and its standard error over the images."""

    num_samples: int
    bound: float
    standard_error: float
    images: int


def build_vae(features: int, settings: Settings, pixel_mean: Tensor | None = None) -> VAE:
    """Two hidden tanh layers either way; the last bias starts at the mean image, if given."""
    hidden, latent = settings.hidden, settings.latent_features
    encoder = nn.Sequential(
        nn.Linear(features, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, 2 * latent),
    )
    output = nn.Linear(hidden, features)
    decoder = nn.Sequential(
        nn.Linear(latent, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), output
    )
    likelihood: Likelihood
    if settings.likelihood == "bernoulli":
        likelihood = BernoulliLikelihood()
    else:
        likelihood = GaussianLikelihood(
            settings.scale or _FIRST_SCALE, learned=settings.scale is None
        )
    if pixel_mean is not None:
        # Pixels that are never set would ask for an infinite logit.
        bernoulli = settings.likelihood == "bernoulli"
        start = pixel_mean.clamp(1e-3, 1 - 1e-3).logit() if bernoulli else pixel_mean
        with torch.no_grad():
            output.bias.copy_(start)
    return VAE(encoder, decoder, likelihood=likelihood)


def held_out_pixels(images: Images, settings: Settings) -> Tensor:
    """The held-out images as the model sees them: at most ``settings.held_out``, drawn once."""
    pixels = images.held_out[: settings.held_out]
    if settings.likelihood == "bernoulli":
        pixels = binarise_held_out(pixels)
    return pixels.to(settings.device)


def refuse_too_large(images: Images, settings: Settings) -> None:
    """Raise a ValueError where the memory cannot hold what a step holds at the least."""
    features = images.train.shape[1]
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in build_vae(features, settings).parameters())
    rows = settings.num_samples * min(settings.batch_size, len(images.train))
    outputs = rows * (settings.latent_features + 2 * settings.hidden + features)
    # Each weight with its gradient and Adam's two moments; each output of the decoder's layers.
    needed = torch.float32.itemsize * (4 * weights + outputs)
    device = torch.device(settings.device)
    if device.type == "cuda":
        there = torch.cuda.get_device_properties(device).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"expected num_samples, batch_size, hidden and latent_features to fit the memory, "
            f"{there / 1e9:.1f} GB, got {weights:,} weights and {rows:,} samples in a step, "
            f"which take {needed / 1e9:.3g} GB"
        )


def train(
    images: Images,
    settings: Settings,
    folder: RunFolder,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> VAE:
    """Train a VAE, and keep metrics and weights in the folder while it goes on.

    The weights are written after every epoch, and when an epoch is interrupted. Those of the last
    epoch with a finite bound stay where the bound is not finite any more. After every epoch, and
    before anything else of it, all that the rest depends on is saved too: a run that is killed at
    any moment and resumed ends with the same bits as one that was not.

    Args:
        images: from :func:`fastvi.app.images.load_images`.
        settings: of the run.
        folder: a created :class:`fastvi.app.run_folder.RunFolder`; with its ``resume`` the run
            goes on from the last epoch that it has saved.
        on_epoch: called after each epoch, those before a resumption too, e.g. to show progress.

    Returns:
        The trained model, on ``settings.device``.

    Raises:
        FloatingPointError: the bound is not finite any more.
        OSError: a file cannot be written; what was saved before is as it was.
        ValueError: a checkpoint of other settings or images, or a file that is none.
    """
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    pixels, held_out = images.train.to(device), held_out_pixels(images, settings)
    vae = build_vae(pixels.shape[1], settings, images.train.mean(0)).to(device)
    criterion = IWLBLoss(settings.num_samples, settings.estimator)
    optimizer = torch.optim.Adam(vae.parameters(), lr=settings.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    run = _Run(vae, optimizer, schedule, _of_run(images, settings))
    if (saved := folder.load_state()) is not None:
        run.load(folder.path, saved)
    folder.write_settings(describe(images, settings))
    if run.rows:
        # A kill may have come between the state and these.
        folder.save_weights(vae.state_dict())
        folder.write_metrics([_shown(row) for row in run.rows])
        for row in run.rows:
            on_epoch(row)
    began = time.perf_counter() - (run.rows[-1].seconds if run.rows else 0.0)
    try:
        for epoch in range(len(run.rows) + 1, settings.epochs + 1):
            rate = float(schedule.get_last_lr()[0])
            train_bound = _train_epoch(vae, criterion, optimizer, pixels, settings)
            schedule.step()
            with torch.no_grad():
                held_out_bound = -_mean_loss(vae, criterion, held_out, settings)
            if not math.isfinite(train_bound + held_out_bound):
                raise FloatingPointError(
                    f"the bound is {train_bound} on the training part and {held_out_bound} on the "
                    f"held-out part after epoch {epoch}; try a smaller learning rate"
                )
            seconds = time.perf_counter() - began
            row = Epoch(epoch, round(train_bound, 4), round(held_out_bound, 4), rate, seconds)
            run.rows.append(row)
            folder.save_state(run.state())
            # Before the metrics: whoever reads a line of them finds weights.
            folder.save_weights(vae.state_dict())
            folder.append_metrics(_shown(row))
            on_epoch(row)
    except KeyboardInterrupt:
        folder.save_weights(vae.state_dict())
        raise
    return vae


def _shown(row: Epoch) -> dict[str, object]:
    """A line of metrics.csv."""
    short = {"learning_rate": f"{row.learning_rate:.3g}", "seconds": f"{row.seconds:.2f}"}
    return dataclasses.asdict(row) | short


def _of_run(images: Images, settings: Settings) -> dict[str, Any]:
    """What a run that goes on has to have in common with that before, by name."""
    data = {"training images": images.train, "held-out images": images.held_out}
    return dataclasses.asdict(settings) | {name: seen_by(part) for name, part in data.items()}


@dataclass
class _Run:
    """All that the rest of a run depends on."""

    vae: VAE
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    of: dict[str, Any]
    rows: list[Epoch] = dataclasses.field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {
            "of": self.of,
            "vae": self.vae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": random_state([]),
            "epochs": [dataclasses.astuple(row) for row in self.rows],
        }

    def load(self, path: Path, state: Mapping[str, Any]) -> None:
        try:
            self._check(path, state["of"])
            self.rows = [Epoch(*row) for row in state["epochs"]]
            self.vae.load_state_dict(state["vae"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            set_random_state(state["random"], [])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"train: expected the checkpoint in {path} to be as `fastvi train` writes it, got "
                f"{type(error).__name__}: {error}"
            ) from error

    def _check(self, path: Path, of: Mapping[str, Any]) -> None:
        for name, value in self.of.items():
            if name not in of or of[name] != value:
                raise ValueError(
                    f"train: expected to go on with the {name} of the run in {path}, "
                    f"{of.get(name)}, got {value}; --overwrite begins anew"
                )


def _train_epoch(
    vae: VAE,
    criterion: IWLBLoss,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    settings: Settings,
) -> float:
    """One pass over the data in random order; the mean bound over it."""
    total = torch.zeros((), dtype=torch.float64, device=pixels.device)
    for rows in torch.randperm(len(pixels), device=pixels.device).split(settings.batch_size):
        x = pixels[rows]
        if settings.likelihood == "bernoulli":
            x = binarise(x)
        optimizer.zero_grad(set_to_none=True)
        loss = vae.loss(x, criterion)
        loss.backward()
        optimizer.step()
        total -= loss.detach() * len(rows)
    return total.item() / len(pixels)


def _mean_loss(vae: VAE, criterion: IWLBLoss, pixels: Tensor, settings: Settings) -> float:
    parts = pixels.split(settings.batch_size)
    return sum(vae.loss(x, criterion).item() * len(x) for x in parts) / len(pixels)


def evaluate(vae: VAE, pixels: Tensor, nums_samples: Sequence[int]) -> list[Evaluation]:
    """Estimate held-out L_K for each K, on pixels as :func:`held_out_pixels` gives them."""
    rows = []
    for num_samples in nums_samples:
        parts, chunk_size = pixels.split(_IMAGES_AT_ONCE), min(num_samples, _SAMPLES_AT_ONCE)
        bounds = torch.cat(
            [vae.log_evidence(x, num_samples, chunk_size=chunk_size) for x in parts]
        ).double()
        # One image alone has no standard error.
        error = bounds.std().item() / math.sqrt(len(bounds)) if len(bounds) > 1 else math.nan
        rows.append(Evaluation(num_samples, bounds.mean().item(), error, len(bounds)))
    return rows


def describe(images: Images, settings: Settings) -> dict:
    """All that one needs to run it again, as it stands in settings.json."""
    height, width = images.shape
    return {
        "settings": dataclasses.asdict(settings),
        "data": {
            "name": images.name,
            "height": height,
            "width": width,
            "train_images": len(images.train),
            "held_out_images": min(len(images.held_out), settings.held_out),
        },
        "threads": torch.get_num_threads(),
        "versions": {
            "fastvi": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def load_run(path: str | Path, device: str = "cpu") -> VAE:
    """Rebuild the trained VAE of a run folder, e.g. ``runs/digits``.

    Raises:
        FileNotFoundError: a folder without settings or weights.
        ValueError: settings or weights that no run wrote, or of another run.
    """
    safetensors = need("safetensors.torch", "loading weights")
    path, where = Path(path), "load_run"
    for name in (SETTINGS, WEIGHTS):
        if not (path / name).exists():
            raise FileNotFoundError(f"{where}: expected {path} to hold {name}, got none")
    described, settings = read_settings(path)
    try:
        features = described["data"]["height"] * described["data"]["width"]
        # Without memory: the numbers may be anything, and the weights come from the file.
        with torch.device("meta"):
            vae = build_vae(features, settings)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{where}: expected {path / SETTINGS} to be as `fastvi train` writes it, "
            f"got {type(error).__name__}: {one_line(error)}"
        ) from error
    expected = vae.state_dict()
    most = sum(value.nbytes for value in expected.values()) + _MOST_WEIGHTS_HEADER
    check_regular(where, path / WEIGHTS)
    if (size := (path / WEIGHTS).stat().st_size) > most:
        raise ValueError(
            f"{where}: expected {path / WEIGHTS} to hold the weights of the model in {SETTINGS}, "
            f"at most {most} bytes, got {size}"
        )
    try:
        state = safetensors.load((path / WEIGHTS).read_bytes())
        # By assignment a tensor keeps the file's type, which the model does not check.
        for name in expected.keys() & state.keys():
            if state[name].dtype != expected[name].dtype:
                raise TypeError(f"{name} of {state[name].dtype}")
        vae.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    except Exception as error:
        # safetensors has an error type of its own, torch a RuntimeError.
        raise ValueError(
            f"{where}: expected {path / WEIGHTS} to hold the weights of the model in {SETTINGS}, "
            f"got {one_line(error)}"
        ) from error
    return vae.to(device)


def read_settings(path: Path) -> tuple[dict[str, Any], Settings]:
    """What settings.json of a run folder says, and the settings in it, all of them checked.

    Raises:
        FileNotFoundError: a folder without settings.
        ValueError: another file than :func:`describe` makes: keys too many or too few, values of
            another type or out of range.
    """
    file = path / SETTINGS
    described = read_json("load_run", file)
    try:
        _check_keys("the file", described, ("settings", "data"), others=True)
        _check_keys("settings", described["settings"], [f.name for f in fields(Settings)])
        _check_keys("data", described["data"], _DATA_KEYS)
        settings, data = Settings(**described["settings"]), described["data"]
        _check_type("name", data["name"], (str,))
        for name in ("height", "width", "train_images", "held_out_images"):
            _check_type(name, data[name], (int,))
            _check(name, 1 <= data[name] < 2**63, "from 1 to 2^63 - 1", data[name])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"load_run: expected {file} to be as `fastvi train` writes it, "
            f"got {type(error).__name__}: {one_line(error)}"
        ) from error
    return described, settings


def _check_keys(name: str, value: object, expected: Sequence[str], *, others: bool = False) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"expected {name} to be an object, got {type(value).__name__}")
    missing = [key for key in expected if key not in value]
    extra = [] if others else [key for key in value if key not in expected]
    if missing or extra:
        what = f"no {', '.join(missing)}" if missing else f"also {', '.join(extra)}"
        raise ValueError(f"expected {name} to hold {', '.join(expected)}, got {what}")
