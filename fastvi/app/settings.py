"""The settings of a run, and settings.json, with all that is needed to run it again."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastvi._checks import MAX_SAMPLES, check_backward_samples
from fastvi._version import __version__
from fastvi.app.images import Images
from fastvi.app.run_folder import SETTINGS
from fastvi.bounds.estimators import IWLB_ESTIMATORS
from fastvi.files._strangers import one_line, read_json

LIKELIHOODS = ("bernoulli", "gaussian")
# A larger number fits in no memory, and the number of weights would overflow.
_MOST = {"num_samples": MAX_SAMPLES, "latent_features": 2**24, "hidden": 2**24}
_COUNTS = ("epochs", "num_samples", "batch_size", "latent_features", "hidden", "held_out")
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*_COUNTS, "seed"), (int,)),
    **dict.fromkeys(("estimator", "likelihood", "device"), (str,)),
    "learning_rate": (int, float),
    "scale": (int, float, type(None)),
    "backward_samples": (int, str, type(None)),
    "variance_growth": (int, float, type(None)),
}
_DATA_KEYS = ("name", "height", "width", "train_images", "held_out_images")
# Older runs have none of these.
_SOURCE_KEYS = ("source", "sha256")
_LATER_SETTINGS = ("backward_samples", "variance_growth")


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a run, under the names that the command line gives them.

    ``scale`` is the Gaussian likelihood's: ``None`` learns it. With the Bernoulli likelihood the
    pixels are drawn as 0 or 1 from their grey levels, again at every training step, but only once
    in the held-out part. So the bound is on the log-probability of a binary image.
    ``backward_samples`` and ``variance_growth`` are those of :func:`fastvi.iwlb_loss`.
    """

    epochs: int = 100
    num_samples: int = 50
    estimator: str = "dreg"
    backward_samples: int | str | None = None
    variance_growth: float | None = None
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
        check_backward_samples("Settings", self.backward_samples, self.variance_growth)
        if self.backward_samples is not None:
            # One sample has no weights to choose by.
            _check(
                "backward_samples",
                self.num_samples > 1,
                "unset for num_samples = 1",
                self.backward_samples,
            )


def not_of_train(path: Path, error: Exception, where: str = "") -> ValueError:
    """Return the error to raise for a file of a run that cannot be read."""
    return ValueError(
        f"{where}expected {path} to be as `fastvi train` writes it, "
        f"got {type(error).__name__}: {one_line(error)}"
    )


def _check_type(name: str, got: object, types: tuple[type, ...]) -> None:
    if not isinstance(got, types) or isinstance(got, bool):
        expected = " or ".join("None" if t is type(None) else t.__name__ for t in types)
        raise TypeError(
            f"Settings: expected {name} to be {expected}, got {type(got).__name__} {got!r}"
        )


def _check(name: str, good: bool, expected: str, got: object) -> None:
    if not good:
        raise ValueError(f"Settings: expected {name} to be {expected}, got {got}")


def describe(images: Images, settings: Settings, processes: int = 1) -> dict:
    """Return all that is needed to run it again, as settings.json holds it."""
    height, width = images.shape
    return {
        "settings": dataclasses.asdict(settings),
        "data": {
            "name": images.name,
            "height": height,
            "width": width,
            "train_images": len(images.train),
            "held_out_images": min(len(images.held_out), settings.held_out),
            "source": images.source,
            "sha256": images.sha256,
        },
        "threads": torch.get_num_threads(),
        "processes": processes,
        "versions": {
            "fastvi": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def read_settings(path: Path) -> tuple[dict[str, Any], Settings]:
    """Read and check settings.json of a run's folder, and the settings in it.

    Raises:
        FileNotFoundError: a folder without settings.
        ValueError: the file differs from those of :func:`describe`: it has other keys, or values of
            another type or out of range.
    """
    file = path / SETTINGS
    described = read_json("load_run", file)
    try:
        _check_keys("the file", described, ("settings", "data"), others=True)
        names = [f.name for f in fields(Settings)]
        _check_keys("settings", described["settings"], names, optional=_LATER_SETTINGS)
        data = described["data"]
        keys = _SOURCE_KEYS if isinstance(data, dict) and "source" in data else ()
        _check_keys("data", data, (*_DATA_KEYS, *keys))
        settings = Settings(**described["settings"])
        for name in ("name", *keys):
            _check_type(name, data[name], (str,))
        for name in ("height", "width", "train_images", "held_out_images"):
            _check_type(name, data[name], (int,))
            _check(name, 1 <= data[name] < 2**63, "from 1 to 2^63 - 1", data[name])
    except (ValueError, TypeError) as error:
        raise not_of_train(file, error, "load_run: ") from error
    return described, settings


def settings_to_resume(
    path: Path, given: Mapping[str, Any], typed: Collection[str]
) -> tuple[dict[str, Any], str | None]:
    """Return the settings of the run in a folder, except for typed ones, and its data.

    Args:
        path: of the run.
        given: all settings by name, also those that were not typed.
        typed: the names of typed settings; a difference from the run is refused later.

    Returns:
        The settings, and the place of the run's data; ``None`` if there is no run yet.

    Raises:
        ValueError: see :func:`read_settings`.
    """
    if not (path / SETTINGS).exists():
        return dict(given), None
    described, settings = read_settings(path)
    merged = {**dataclasses.asdict(settings), **{k: v for k, v in given.items() if k in typed}}
    return merged, described["data"].get("source")


def _check_keys(
    name: str,
    value: object,
    expected: Sequence[str],
    *,
    optional: Sequence[str] = (),
    others: bool = False,
) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"expected {name} to be an object, got {type(value).__name__}")
    missing = [key for key in expected if key not in value and key not in optional]
    extra = [] if others else [key for key in value if key not in expected]
    if missing or extra:
        what = f"no {', '.join(missing)}" if missing else f"also {', '.join(extra)}"
        raise ValueError(f"expected {name} to hold {', '.join(expected)}, got {what}")
