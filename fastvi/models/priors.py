"""Priors p(z) of a model: a pair, a distribution, or a module that returns one when called."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from fastvi.distributions import Normal
from fastvi.distributions._parts import tensors_of, with_tensors
from fastvi.models._random import seeded

GaussianPrior = tuple[Tensor, Tensor]
Prior = GaussianPrior | Distribution | nn.Module


class FixedPrior(nn.Module):
    """Hold the tensors of a distribution as buffers, so that they move with the model.

    Args:
        distribution: its tensors must not require a gradient.

    Raises:
        ValueError: a tensor requires a gradient: for a prior that is learned, a module has to make
            the distribution anew in each step.
    """

    def __init__(self, where: str, distribution: Distribution) -> None:
        super().__init__()
        self._template = distribution
        self._places: list[tuple[tuple[str | int, ...], str]] = []
        learned = (
            f"{where}: expected a prior that is learned to be a module that returns the "
            f"distribution when it is called, got {type(distribution).__name__}, whose"
        )
        for number, (place, tensor) in enumerate(tensors_of(distribution)):
            if tensor.requires_grad:
                raise ValueError(f"{learned} {'.'.join(map(str, place))} requires a gradient")
            self.register_buffer(f"tensor_{number}", tensor.clone())
            self._places.append((place, f"tensor_{number}"))
        if _has_hidden_parameters(distribution):
            raise ValueError(f"{learned} density requires a gradient")

    def forward(self) -> Distribution:
        values = {place: getattr(self, name) for place, name in self._places}
        return with_tensors(self._template, values)

    def extra_repr(self) -> str:
        return type(self._template).__name__


def _has_hidden_parameters(distribution: Distribution) -> bool:
    """Return whether the density has learned parameters, such as those of a flow's networks."""
    try:
        with seeded(0, torch.device("cpu")), torch.enable_grad():
            return distribution.log_prob(distribution.sample()).requires_grad
    except (NotImplementedError, ValueError):
        return False


def prior_module(where: str, prior: object) -> nn.Module | None:
    """Return the module that makes the prior, or None for a pair and for N(0, I)."""
    if prior is None or isinstance(prior, (tuple, list)):
        return None
    if isinstance(prior, Distribution):
        module: nn.Module = FixedPrior(where, prior)
        event_of(where, "prior", prior)
        return module
    if isinstance(prior, nn.Module):
        return prior
    raise TypeError(
        f"{where}: expected prior to be None for N(0, I), a pair (loc, log_var), a distribution, "
        f"or a module that returns a distribution when it is called, got {type(prior).__name__}"
    )


def event_of(where: str, name: str, distribution: object) -> Distribution:
    """Return the distribution with its last dimension as the event: of vectors, shape (D,)."""
    if not isinstance(distribution, Distribution):
        raise TypeError(
            f"{where}: expected {name} to return a torch.distributions.Distribution, "
            f"got {type(distribution).__name__}"
        )
    event = distribution.event_shape
    if len(event) == 1:
        return distribution
    if not event and distribution.batch_shape:
        return Independent(distribution, 1, validate_args=False)
    raise ValueError(
        f"{where}: expected {name} to be a distribution of vectors, event shape (D,), got batch "
        f"shape {list(distribution.batch_shape)} and event shape {list(event)}"
    )


def prior_of(
    where: str, module: nn.Module, features: int | None, of: str = "latent features, as the encoder"
) -> Distribution:
    """Return the prior that the module returns now, after a check of its features."""
    prior = event_of(where, "prior", module())
    if prior.batch_shape:
        raise ValueError(
            f"{where}: expected prior to be one distribution for all data, of batch shape (), got "
            f"batch shape {list(prior.batch_shape)}"
        )
    if features is not None and prior.event_shape != (features,):
        raise ValueError(
            f"{where}: expected prior to be of {features} {of}, got {prior.event_shape[0]}"
        )
    return prior


def diagonal(loc: Tensor, log_var: Tensor) -> Independent:
    """Return N(loc, diag exp(log_var)), with the last dimension as the event."""
    base = Normal(loc, (0.5 * log_var).exp(), validate_args=False)
    return Independent(base, 1, validate_args=False)
