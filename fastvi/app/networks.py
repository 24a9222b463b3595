"""The VAE of a run, built from settings or from the folder of a finished run."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from fastvi._optional import need
from fastvi.app.images import Images
from fastvi.app.run_folder import SETTINGS, WEIGHTS
from fastvi.app.settings import Settings, not_of_train, read_settings
from fastvi.files.weights import WeightsFile
from fastvi.models.likelihoods import BernoulliLikelihood, GaussianLikelihood, Likelihood
from fastvi.models.vae import VAE

_FIRST_SCALE = 0.5


def build_vae(features: int, settings: Settings, pixel_mean: Tensor | None = None) -> VAE:
    """Build a VAE of two hidden tanh layers on each side; the last bias starts at a mean image."""
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
        # Pixels that are never set would need an infinite logit.
        bernoulli = settings.likelihood == "bernoulli"
        start = pixel_mean.clamp(1e-3, 1 - 1e-3).logit() if bernoulli else pixel_mean
        with torch.no_grad():
            output.bias.copy_(start)
    return VAE(encoder, decoder, likelihood=likelihood)


def refuse_too_large(images: Images, settings: Settings, processes: int = 1) -> None:
    """Raise a ValueError if the memory is too small for the least that a step needs."""
    features = images.train.shape[1]
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in build_vae(features, settings).parameters())
    batch = -(-min(settings.batch_size, len(images.train)) // processes)
    rows = settings.num_samples * batch
    outputs = rows * (settings.latent_features + 2 * settings.hidden + features)
    if settings.backward_samples is not None:
        # No graph holds the outputs of all samples: a layer's input and output are there at a time.
        outputs = rows * (settings.hidden + features)
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


def load_run(path: str | Path, device: str = "cpu") -> VAE:
    """Rebuild the trained VAE of a run folder, e.g. ``runs/digits``.

    Raises:
        FileNotFoundError: a folder without settings or weights.
        ValueError: settings or weights that no run wrote, or that belong to another run.
    """
    need("safetensors", "loading weights")
    path, where = Path(path), "load_run"
    for name in (SETTINGS, WEIGHTS):
        if not (path / name).exists():
            raise FileNotFoundError(f"{where}: expected {path} to hold {name}, got none")
    described, settings = read_settings(path)
    try:
        features = described["data"]["height"] * described["data"]["width"]
        # The numbers may be anything, so no memory is allocated; the weights come from the file.
        with torch.device("meta"):
            vae = build_vae(features, settings)
    except (ValueError, TypeError, RuntimeError) as error:
        raise not_of_train(path / SETTINGS, error, f"{where}: ") from error
    file = WeightsFile(where, path / WEIGHTS, f"the weights of the model in {SETTINGS}")
    file.check(vae.state_dict())
    # The tensors are assigned, because the model has no memory of its own.
    vae.load_state_dict({name: x.clone() for name, x in file.tensors().items()}, assign=True)
    return vae.to(device)
