"""Fast variational inference for PyTorch."""

from fastvi import objectives, ops
from fastvi._version import __version__
from fastvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from fastvi.losses import ELBOLoss, IWLBLoss, elbo_loss, iwlb_loss
from fastvi.vae import VAE

__all__ = [
    "BernoulliLikelihood",
    "ELBOLoss",
    "GaussianLikelihood",
    "IWLBLoss",
    "VAE",
    "__version__",
    "elbo_loss",
    "iwlb_loss",
    "objectives",
    "ops",
]
