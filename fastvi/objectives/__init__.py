r"""Objectives: what is maximised, as small functions of log-weights. All values are in nats.

The functions take log-weights of shape (K, \*batch) and return the bound of each example, shape
(\*batch,), ready for ``(-bound.mean()).backward()``. The classes take samples of the latents and a
log-joint, and give each part of the log-weights its gradient. The value is always the bound itself;
the estimators differ in the gradient.
"""

from fastvi.objectives.bounds import ciwae, elbo, iwlb, jackknife, miwae, piwae, renyi
from fastvi.objectives.discrete import VIMCO, Reinforce
from fastvi.objectives.latent import Draws, Latent, Term
from fastvi.objectives.named import NamedBound
from fastvi.objectives.objective import Objective
from fastvi.objectives.reparameterised import ELBO, IWLB
from fastvi.objectives.score_function import DecayingAverage, reinforce, vimco
from fastvi.objectives.weighed import CIWAE, MIWAE, PIWAE, Jackknife
from fastvi.objectives.weights import path_weights, reweighted_wake_sleep

__all__ = [
    "CIWAE",
    "DecayingAverage",
    "Draws",
    "ELBO",
    "IWLB",
    "Jackknife",
    "Latent",
    "MIWAE",
    "NamedBound",
    "Objective",
    "PIWAE",
    "Reinforce",
    "Term",
    "VIMCO",
    "ciwae",
    "elbo",
    "iwlb",
    "jackknife",
    "miwae",
    "path_weights",
    "piwae",
    "reinforce",
    "renyi",
    "reweighted_wake_sleep",
    "vimco",
]
