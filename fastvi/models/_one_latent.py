"""Models with one latent vector for each example: the prior, and draws from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi._checks import check_prior
from fastvi.chunks.surroundings import uninitialised
from fastvi.losses._module import register_prior
from fastvi.models._latent_widths import first_width, input_width, prior_width
from fastvi.models._random import seed_from, seeded
from fastvi.models._saving import SavedModel
from fastvi.models.base import LatentVariableModel, Values
from fastvi.models.priors import GaussianPrior, diagonal, prior_module, prior_of
from fastvi.ops import gaussian_rsample, new_key

LATENT = "z"


class OneLatentModel(LatentVariableModel):
    """A model whose only latent is ``"z"``, with the same prior for all examples."""

    prior_loc: Tensor | None
    prior_log_var: Tensor | None
    prior_module: nn.Module | None
    latent_features: int | None

    def _keep_prior(self, prior: Any, latent_features: int | None) -> None:
        self.prior_module = prior_module("VAE", prior)
        if self.prior_module is not None:
            prior = None
        for name, value in zip(("loc", "log_var"), check_prior("VAE", prior), strict=True):
            if value is not None and value.ndim > 1:
                raise ValueError(
                    f"VAE: expected prior {name} to be of shape (D,), one for all data, "
                    f"got {tuple(value.shape)}"
                )
        register_prior(self, "VAE", prior)
        width = prior_width(self._gaussian_prior)
        if None not in (latent_features, width) and latent_features != width:
            raise ValueError(
                f"VAE: expected prior to be of shape ({latent_features},), as latent_features "
                f"says, got ({width},)"
            )
        self.latent_features = latent_features or width

    @property
    def prior(self) -> GaussianPrior | nn.Module | None:
        """(loc, log_var) of p(z), None for N(0, I), or the module that makes p(z)."""
        return self._gaussian_prior if self.prior_module is None else self.prior_module

    @property
    def _gaussian_prior(self) -> GaussianPrior | None:
        if self.prior_loc is None or self.prior_log_var is None:
            return None
        return self.prior_loc, self.prior_log_var

    def _prior_of(self, z: Tensor) -> Distribution:
        if self.prior_module is not None:
            return prior_of("VAE", self.prior_module, z.shape[-1])
        zero = z.new_zeros(z.shape[-1])
        loc, log_var = self._gaussian_prior or (zero, zero)
        return diagonal(loc.expand(z.shape[-1:]), log_var.expand(z.shape[-1:]))

    def _decoder_input(self, values: Tensor | Values) -> Tensor:
        return values if isinstance(values, Tensor) else values[LATENT]

    def _from_prior(self, num_samples: int, generator: torch.Generator | None) -> Tensor:
        if self.prior_module is not None:
            prior = prior_of("VAE.sample", self.prior_module, None)
            self._check_width(prior.event_shape[0])
            device = prior.sample().device if generator is None else generator.device
            with seeded(seed_from(generator), device):
                return prior.sample(torch.Size((num_samples,)))
        loc, log_var = self._prior_for_one()
        key = new_key(loc.device, generator)
        z, _, _ = gaussian_rsample(loc, log_var=log_var, num_samples=num_samples, key=key)
        return z

    def _check_width(self, features: int | None) -> None:
        own = self._decodes_in_its_own_way()
        expected = None if own else input_width(self.decoder)
        if None not in (features, expected) and features != expected:
            raise ValueError(
                f"VAE.sample: expected the decoder to take the {features} latent features of the "
                f"model, got one that takes {expected}"
            )

    def _prior_for_one(self) -> GaussianPrior:
        """(loc, log_var) of the prior, each of shape (D,)."""
        features = self.latent_features or first_width(self.decoder)
        self._check_width(features)
        if features is None:
            lazy = uninitialised(self.decoder)
            known_by = f"the decoder's {lazy} has not seen any input; " if lazy else ""
            raise ValueError(
                f"VAE.sample: expected latent_features to be known, got none: {known_by}give "
                f"VAE(..., latent_features=D) or encode a batch first"
            )
        if self._gaussian_prior is not None:
            loc, log_var = self._gaussian_prior
            return loc.expand(features), log_var.expand(features)
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        # A parameter of a lazy layer has a type and a device, but no shape yet.
        like = torch.zeros(()) if first is None else first
        zeros = torch.zeros(features, dtype=like.dtype, device=like.device)
        return zeros, zeros

    def _prior_settings(self) -> Any:
        """Return the settings from which a prior of the same shapes can be made."""
        if self.prior_module is not None:
            return type(self.prior_module).__name__
        if self._gaussian_prior is None:
            return None
        return {
            name: [list(value.shape), isinstance(value, nn.Parameter)]
            for name, value in zip(("loc", "log_var"), self._gaussian_prior, strict=True)
        }

    def _prior_words(self) -> str:
        if self.prior_module is not None:
            return type(self.prior_module).__name__
        if self._gaussian_prior is None:
            return "N(0, I)"
        learned = any(isinstance(v, nn.Parameter) for v in self._gaussian_prior)
        return f"N(loc, exp(log_var)), {'learned' if learned else 'fixed'}"


def prior_like(saved: SavedModel, pair: dict[str, Any] | None) -> GaussianPrior | None:
    """Return a prior of the saved shapes, into which the saved values are loaded later."""
    if pair is None:
        return None
    try:
        parts = []
        for name in ("loc", "log_var"):
            (shape, learned) = pair[name]
            value = torch.zeros([int(size) for size in shape])
            parts.append(nn.Parameter(value) if learned else value)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise saved.refused("the setting prior of another kind") from error
    return parts[0], parts[1]
