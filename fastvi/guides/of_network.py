"""The guide of a network that has an encoder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastvi.guides.guide import Guide
from fastvi.objectives.latent import Draws, Latent


class NetworkGuide(Guide):
    """Draw what a network draws: its ``latents(x, num_samples)``, given the first part of a batch.

    Example:
        >>> vae = fastvi.VAE(torch.nn.Linear(5, 4), torch.nn.Linear(2, 5))
        >>> _, guide = vae.as_model_and_guide()
        >>> guide.latents((torch.zeros(8, 5),), 16)[0].value.shape
        torch.Size([16, 8, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> Sequence[Latent]:
        """Draw samples of each latent."""
        if not data:
            raise ValueError(
                f"{type(self.network).__name__}: expected a batch with the data x, got none"
            )
        return self.network.latents(data[0], num_samples)  # type: ignore[operator]

    def draws(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> Draws | Sequence[Latent]:
        """Return a function that draws ranges of the samples from one key."""
        if not data:
            return self.latents(data, num_samples, path=path)
        return self.network.draws(data[0], path=path)  # type: ignore[operator]
