"""Likelihoods, p(x given z) from a decoder's output: by name, by class or by a function."""

from fastvi.models.likelihoods.by_name import likelihood_of
from fastvi.models.likelihoods.classes import BernoulliLikelihood, CategoricalLikelihood
from fastvi.models.likelihoods.counts import (
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from fastvi.models.likelihoods.likelihood import DistributionLikelihood, Likelihood
from fastvi.models.likelihoods.location_scale import GaussianLikelihood, LaplaceLikelihood

__all__ = [
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "DistributionLikelihood",
    "GaussianLikelihood",
    "LaplaceLikelihood",
    "Likelihood",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "ZeroInflatedNegativeBinomialLikelihood",
    "likelihood_of",
]
