"""Objectives: what is maximised, as small functions of log-weights. All values are in nats.

Each takes log-weights of shape (K, *batch) and returns the bound of each datum, shape (*batch,),
ready for ``(-bound.mean()).backward()``. The value is always the bound itself; what differs between
estimators is the gradient.
"""

from fastvi.objectives.bounds import ciwae, elbo, iwlb, jackknife, miwae, piwae, renyi
from fastvi.objectives.score_function import DecayingAverage, reinforce, vimco

__all__ = [
    "DecayingAverage",
    "ciwae",
    "elbo",
    "iwlb",
    "jackknife",
    "miwae",
    "piwae",
    "reinforce",
    "renyi",
    "vimco",
]
