"""The likelihood that a model is given: by name, as a module, or as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi.models.likelihoods.classes import BernoulliLikelihood, CategoricalLikelihood
from fastvi.models.likelihoods.counts import (
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from fastvi.models.likelihoods.likelihood import DistributionLikelihood, Likelihood
from fastvi.models.likelihoods.location_scale import GaussianLikelihood, LaplaceLikelihood

GivenLikelihood = str | Likelihood | Callable[[Tensor], Distribution]

BY_NAME: dict[str, type[Likelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "categorical": CategoricalLikelihood,
    "gaussian": GaussianLikelihood,
    "laplace": LaplaceLikelihood,
    "negative_binomial": NegativeBinomialLikelihood,
    "poisson": PoissonLikelihood,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomialLikelihood,
}
# Likelihoods with a dispersion for each feature, and how many outputs each feature has.
_DISPERSED = {"negative_binomial": 1, "zero_inflated_negative_binomial": 2}


def likelihood_of(where: str, likelihood: object, decoder: object = None) -> Likelihood:
    """Return the likelihood with this name, or of this function, or the given one itself."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    is_class = isinstance(likelihood, type) and not issubclass(likelihood, Distribution)
    if is_class or not (isinstance(likelihood, str) or callable(likelihood)):
        kind = type(likelihood).__name__
        if isinstance(likelihood, type):
            kind = f"the class {likelihood.__name__}, which is to be called"
        raise TypeError(
            f"{where}: expected likelihood to be a name, a fastvi.Likelihood, or a function from "
            f"the decoder's output to a distribution, got {kind}"
        )
    if not isinstance(likelihood, str):
        return DistributionLikelihood(likelihood)
    if likelihood not in BY_NAME:
        *names, last = (repr(name) for name in BY_NAME)
        raise ValueError(
            f"{where}: expected likelihood to be {', '.join(names)} or {last}, got {likelihood!r}"
        )
    if likelihood in _DISPERSED:
        features = _features(where, likelihood, decoder)
        return BY_NAME[likelihood](torch.ones(features))
    return BY_NAME[likelihood]()


def made_anew(name: str, settings: dict[str, Any]) -> Likelihood:
    """Return a likelihood of a class of this package, made from saved settings.

    Raises:
        ValueError: another class, or settings that are not its own.
    """
    kinds = {kind.__name__: kind for kind in BY_NAME.values()}
    if name not in kinds:
        raise ValueError(f"a likelihood of the class {name}, which is not one of fastvi's")
    arguments = dict(settings)
    for key in ("scale", "dispersion"):
        if isinstance(arguments.get(key), list):
            arguments[key] = torch.ones([int(size) for size in arguments[key]])
    return kinds[name](**arguments)


def _features(where: str, likelihood: str, decoder: object) -> int:
    """Return the number of features of x, from the last layer of the decoder."""
    last = list(decoder.modules())[-1] if isinstance(decoder, nn.Module) else None
    outputs = last.out_features if type(last) is nn.Linear else 0
    heads = _DISPERSED[likelihood]
    if not outputs or outputs % heads:
        kind = BY_NAME[likelihood].__name__
        got = f"one of {outputs} features" if outputs else "one that does not end in a Linear"
        of = f" of {heads} numbers for each feature" if heads > 1 else ""
        raise ValueError(
            f"{where}: expected the decoder to end in a Linear{of} for likelihood={likelihood!r}, "
            f"whose dispersion is a number for each feature, got {got}; give likelihood="
            f"{kind}(dispersion=torch.ones(F))"
        )
    return outputs // heads
