"""``torch.distributions`` with the densities of :mod:`fastvi.ops`, and draws that take a key.

Each class is a subclass of torch's own with the same constructor, and can replace it everywhere:
``expand``, ``kl_divergence``, ``cdf``, transforms, Pyro. There are three differences: ``log_prob``
runs one kernel, checks of arguments cost less, and a key can draw samples with their log-density.
If a kernel cannot be used (forward-mode derivatives, ``torch.jit.trace``, a value of another type),
the op's reference runs. No number depends on whether arguments are checked.
"""

from fastvi.distributions.bernoulli import Bernoulli
from fastvi.distributions.categorical import Categorical
from fastvi.distributions.independent import DiagNormal, Independent
from fastvi.distributions.laplace import Laplace
from fastvi.distributions.negative_binomial import NegativeBinomial
from fastvi.distributions.normal import Normal
from fastvi.distributions.poisson import Poisson
from fastvi.distributions.zero_inflated_negative_binomial import ZeroInflatedNegativeBinomial

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiagNormal",
    "Independent",
    "Laplace",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
]
