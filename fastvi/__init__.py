"""Fast variational inference for PyTorch."""

from fastvi import distributions, objectives, ops
from fastvi._version import __version__
from fastvi.decoders import log_likelihood
from fastvi.diagnosis import Diagnosis, diagnose
from fastvi.diagnostics import effective_sample_size, evidence_gap, gradient_snr, pareto_k
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
    "Diagnosis",
    "ELBOLoss",
    "GaussianLikelihood",
    "IWLBLoss",
    "JackknifeLoss",
    "MIWAELoss",
    "PIWAELoss",
    "VAE",
    "__version__",
    "diagnose",
    "distributions",
    "effective_sample_size",
    "elbo_loss",
    "evidence_gap",
    "gradient_snr",
    "iwlb_loss",
    "log_likelihood",
    "objectives",
    "ops",
    "sum_gradients",
    "pareto_k",
]
