"""The number of latent features of a VAE, found from its prior or its decoder."""

from __future__ import annotations

from torch import Tensor, nn

from fastvi.chunks.surroundings import is_uninitialised


def prior_width(prior: tuple[Tensor, Tensor] | None) -> int | None:
    """Return D if the prior has it; a prior of shape () or (1,) broadcasts to any D."""
    width = max((value.shape[0] for value in prior or () if value.ndim), default=1)
    return width if width > 1 else None


def input_width(decoder: object) -> int | None:
    """Return D if z is the input of a linear layer."""
    first = decoder[0] if type(decoder) is nn.Sequential and len(decoder) else decoder
    return first.in_features if type(first) is nn.Linear else None


def first_width(decoder: object) -> int | None:
    """Return the number of inputs of the first linear or convolutional layer, if there is one."""
    if isinstance(decoder, nn.Module):
        for module in decoder.modules():
            if is_uninitialised(module):
                return None
            for name in ("in_features", "in_channels"):
                width = getattr(module, name, None)
                if isinstance(width, int) and width > 0:
                    return width
                if width == 0 and isinstance(module, nn.LazyLinear):
                    # Its weights were loaded, and it has not run since.
                    return module.weight.shape[-1]
                if width == 0:
                    return None
    return None
