"""Fast variational inference for PyTorch."""

from fastvi import ops
from fastvi._version import __version__
from fastvi.decoders import log_likelihood
from fastvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from fastvi.losses import (
    CIWAELoss,
    ELBOLoss,
    IWLBLoss,
    JackknifeLoss,
    MIWAELoss,
    PIWAELoss,
    elbo_loss,
    iwlb_loss,
)
from fastvi.streaming import sum_gradients
from fastvi.vae import VAE

__all__ = [
    "BernoulliLikelihood",
    "CIWAELoss",
    "ELBOLoss",
    "GaussianLikelihood",
    "IWLBLoss",
    "JackknifeLoss",
    "MIWAELoss",
    "PIWAELoss",
    "VAE",
    "__version__",
    "elbo_loss",
    "iwlb_loss",
    "log_likelihood",
    "ops",
    "sum_gradients",
]
