"""Fast variational inference for PyTorch."""

from fastvi import guides, objectives, ops
from fastvi._version import __version__
from fastvi.decoders import log_likelihood
from fastvi.diagnosis import Diagnosis, diagnose
from fastvi.diagnostics import effective_sample_size, evidence_gap, gradient_snr, pareto_k
from fastvi.hierarchical import HierarchicalVAE, StochasticLayer
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
from fastvi.svi import SVI
from fastvi.vae import VAE

__all__ = [
    "BernoulliLikelihood",
    "CIWAELoss",
    "Diagnosis",
    "ELBOLoss",
    "GaussianLikelihood",
    "HierarchicalVAE",
    "IWLBLoss",
    "JackknifeLoss",
    "MIWAELoss",
    "PIWAELoss",
    "SVI",
    "StochasticLayer",
    "VAE",
    "__version__",
    "diagnose",
    "effective_sample_size",
    "elbo_loss",
    "evidence_gap",
    "gradient_snr",
    "guides",
    "iwlb_loss",
    "log_likelihood",
    "objectives",
    "ops",
    "sum_gradients",
    "pareto_k",
]
