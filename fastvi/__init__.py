"""Fast variational inference for PyTorch."""

from fastvi import ops
from fastvi._version import __version__
from fastvi.diagnosis import Diagnosis, diagnose
from fastvi.diagnostics import effective_sample_size, evidence_gap, gradient_snr, pareto_k
from fastvi.likelihoods import BernoulliLikelihood, GaussianLikelihood
from fastvi.losses import ELBOLoss, IWLBLoss, elbo_loss, iwlb_loss
from fastvi.vae import VAE

__all__ = [
    "BernoulliLikelihood",
    "Diagnosis",
    "ELBOLoss",
    "GaussianLikelihood",
    "IWLBLoss",
    "VAE",
    "__version__",
    "diagnose",
    "effective_sample_size",
    "elbo_loss",
    "evidence_gap",
    "gradient_snr",
    "iwlb_loss",
    "ops",
    "pareto_k",
]
