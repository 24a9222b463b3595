"""The two loops, SVI.fit and `fastvi train`, of a small run, and a callback that hears all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import fastvi
from fastvi.callbacks import Beginning, Callback, Epoch

X = torch.linspace(-2, 2, 20, dtype=torch.float64)


def svi() -> fastvi.SVI:
    torch.manual_seed(0)
    slope = nn.Linear(1, 1).double()

    def guide(x):
        return Normal(slope(x[:, None])[:, 0], 0.5)

    def model(z, x):
        return Normal(0.0, 1.0).log_prob(z) + Normal(z, 0.5).log_prob(x)

    optimizer = torch.optim.Adam(slope.parameters(), lr=0.05)
    return fastvi.SVI(model, guide, optimizer, fastvi.objectives.IWLB(4))


def fit(on_epoch, epochs=3, **options):
    return svi().fit(X, epochs, batch_size=6, held_out=X, on_epoch=on_epoch, **options)


def train(tmp_path, on_epoch, epochs=3, resume=False):
    """The other loop: 3 epochs of 3 steps."""
    pytest.importorskip("sklearn")
    from fastvi.app.images import load_images
    from fastvi.app.run_folder import RunFolder
    from fastvi.app.settings import Settings
    from fastvi.app.training import train

    folder = RunFolder(tmp_path, "run", resume=resume)
    folder.create()
    settings = Settings(
        epochs=epochs, num_samples=2, hidden=4, latent_features=2, batch_size=500, held_out=20
    )
    train(load_images("digits"), settings, folder, on_epoch)


class Everything(Callback):
    def __init__(self) -> None:
        self.heard: list = []

    def on_begin(self, run) -> None:
        assert isinstance(run, Beginning)
        self.heard.append(("begin", run.epochs, len(run.past)))
        self.settings = run.settings

    def on_step(self, number, bound) -> None:
        assert bound.ndim == 0 and not bound.requires_grad
        self.heard.append(("step", number))

    def on_epoch(self, epoch) -> None:
        assert isinstance(epoch, Epoch)
        self.heard.append(("epoch", epoch.number, epoch.steps))

    def on_end(self, error) -> None:
        self.heard.append(("end", type(error)))
