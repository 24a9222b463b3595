"""One stochastic layer of a deeper VAE: its family, its guide and its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi._checks import check_callable, check_num_samples
from fastvi.models.hierarchical.families import FAMILIES
from fastvi.models.hierarchical.laws import Given, in_rows
from fastvi.models.priors import diagonal, prior_module, prior_of

Network = Callable[[Tensor], "Tensor | tuple[Tensor, ...] | Distribution"]
LayerPrior = Tensor | tuple[Tensor, ...] | Distribution | nn.Module


class StochasticLayer(nn.Module):
    r"""Describe one group of latents of a :class:`HierarchicalVAE`, and its two networks.

    .. math::
        q(h \mid \text{guide inputs}), \qquad p(h \mid \text{model inputs})

    A network sees its inputs joined along the last dimension and flattened to (rows, inputs), and
    returns the parameters of the family, each of D numbers, or all joined in one tensor:

    - ``"gaussian"`` (loc, log_var), ``"laplace"`` (loc, log_scale);
    - ``"bernoulli"`` logits; ``"categorical"`` the logits of D classes, of which one goes into
      other networks as a vector that is one there and zero elsewhere;
    - ``"poisson"`` log_rate, ``"negative_binomial"`` (log_mean, log_dispersion),
      ``"zero_inflated_negative_binomial"`` (log_mean, log_dispersion, gate_logits).

    Each network may return a ``torch.distributions.Distribution`` instead, of event shape
    (D,) and batch shape (rows,): a full covariance, a flow, a family without a name here. The
    two need not be of one family.

    Args:
        family: one of these names; ``None`` if both networks return distributions.
        features: D, latents or classes.
        guide: a module (or function) for q.
        model: a module (or function) for p; ``None`` if p depends on no other latent.
        prior: p if it depends on nothing: ``None`` for parameters of zero, N(0, I) or equal
            odds (N(0, I) without a family); or the family's parameters, each of shape (D,), of
            which an ``nn.Parameter`` is learned with the model and other tensors are its buffers.
            Or a distribution of event shape (D,), which is not learned; or a module that returns
            one when it is called, which is, as for :class:`fastvi.VAE`.
        name: other layers and error messages use it; ``None`` for h1, h2, ...
        guide_inputs: names of the layers before, or ``"x"``, on which q depends; ``None`` for the
            layer before, and the data for the first.
        model_inputs: names of the layers on which p depends; ``None`` for the layer after.

    Raises:
        TypeError: networks that cannot be called, a prior of the wrong kind.
        ValueError: an unknown family, ``features`` < 1, a prior of the wrong shape, or one beside
            a model.

    Example:
        >>> fastvi.StochasticLayer("bernoulli", 200, guide=torch.nn.Linear(784, 200))
        StochasticLayer(
          family='bernoulli', features=200
          (guide): Linear(in_features=784, out_features=200, bias=True)
        )
    """

    def __init__(
        self,
        family: str | None,
        features: int,
        *,
        guide: Network,
        model: Network | None = None,
        prior: LayerPrior | None = None,
        name: str | None = None,
        guide_inputs: Sequence[str] | None = None,
        model_inputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        where = "StochasticLayer" if name is None else f"StochasticLayer {name!r}"
        if family is not None and family not in FAMILIES:
            names = ", ".join(repr(known) for known in FAMILIES)
            raise ValueError(
                f"{where}: expected family to be one of {names}, or None where the networks "
                f"return distributions, got {family!r}"
            )
        check_num_samples(where, features, "features")
        for role, network in (("guide", guide), ("model", model)):
            if role == "guide" or network is not None:
                check_callable(where, role, network)
        if model is not None and prior is not None:
            raise ValueError(f"{where}: expected a model or a prior, got both")
        self.family = family
        self.features = features
        self.guide = guide
        self.model = model
        self.name = name
        self.guide_inputs = _names(where, "guide_inputs", guide_inputs)
        self.model_inputs = _names(where, "model_inputs", model_inputs)
        self._keep_prior(where, prior)

    def _keep_prior(self, where: str, prior: LayerPrior | None) -> None:
        names = _parameters(self.family)
        self.prior_module: nn.Module | None = None
        values: Sequence[Tensor | None] = [None] * len(names)
        if isinstance(prior, (Distribution, nn.Module)):
            self.prior_module = prior_module(where, prior)
        elif prior is not None:
            values = [prior] if isinstance(prior, Tensor) else list(prior)
            if not names or len(values) != len(names) or not _all_tensors(values):
                expected = f"{_of_names(names)}, as tensors, or " if names else ""
                raise TypeError(
                    f"{where}: expected prior to be {expected}a distribution, or a module that "
                    f"returns one, got {type(prior).__name__}"
                )
        for name, value in zip(names, values, strict=True):
            if value is not None and value.shape != (self.features,):
                raise ValueError(
                    f"{where}: expected prior {name} to have shape ({self.features},), "
                    f"got {tuple(value.shape)}"
                )
            if value is None or isinstance(value, nn.Parameter):
                self.register_parameter(f"prior_{name}", value)
            else:
                self.register_buffer(f"prior_{name}", value.detach())

    def prior(self, like: Tensor) -> Given:
        """Return p if it depends on nothing: its parameters, (D,) each, or its distribution."""
        if self.prior_module is not None:
            where = f"StochasticLayer {self.name!r}"
            return prior_of(where, self.prior_module, self.features, "features")
        if self.family is None:
            zeros = like.new_zeros(self.features)
            return diagonal(zeros, zeros)
        values = [getattr(self, f"prior_{name}") for name in _parameters(self.family)]
        return tuple(like.new_zeros(self.features) if v is None else v for v in values)

    def parameters_of(
        self, role: str, output: object, *, where: str, rows: torch.Size | None = None
    ) -> Given:
        r"""Return a network's output as the family's parameters; its inputs are (\*rows, ...)."""
        if isinstance(output, Distribution):
            return in_rows(where, role, self.name, output, self.features, rows)
        names = _parameters(self.family)
        if not names:
            raise TypeError(
                f"{where}: expected the {role} of layer {self.name!r}, which has no family, to "
                f"return a torch.distributions.Distribution, got {type(output).__name__}"
            )
        count = len(names)
        parts: Sequence[object]
        if isinstance(output, Tensor) and count > 1:
            parts = output.chunk(count, -1) if output.ndim else [output]
        else:
            parts = output if isinstance(output, (tuple, list)) else [output]
        tensors = tuple(part for part in parts if isinstance(part, Tensor))
        right = len(tensors) == len(parts) == count and all(
            part.ndim > 0 and part.shape[-1] == self.features for part in tensors
        )
        leading = tensors[0].shape[:-1] if rows is None and right else rows
        if not right or any(part.shape[:-1] != leading for part in tensors):
            if isinstance(output, Tensor) and count > 1:
                got = f"a tensor of shape {tuple(output.shape)}"
            else:
                got = ", ".join(
                    str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__
                    for p in parts
                )
            joined = f", or one tensor of {count * self.features}" if count > 1 else ""
            if rows is not None:
                joined += f", for each of {math.prod(rows)} rows"
            raise ValueError(
                f"{where}: expected the {role} of layer {self.name!r} to return "
                f"{_of_names(names)} of {self.features} features{joined}, got {got}"
            )
        return tensors

    def extra_repr(self) -> str:
        return f"family={self.family!r}, features={self.features}"


def _names(where: str, argument: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{where}: expected {argument} to be a sequence of names, got {names!r}")
    return tuple(names)


def _parameters(family: str | None) -> tuple[str, ...]:
    return () if family is None else FAMILIES[family].parameters


def _all_tensors(values: Sequence[object]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _of_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
