"""Fast variational inference for PyTorch."""

from fastvi import distributions, guides, objectives, ops
from fastvi._version import __version__
from fastvi.chunks import sum_gradients
from fastvi.diagnostics.diagnosis import Diagnosis, diagnose
from fastvi.diagnostics.measures import (
    effective_sample_size,
    evidence_gap,
    gradient_snr,
    needed_backward_samples,
    pareto_k,
)
from fastvi.losses import (
    CIWAELoss,
    ELBOLoss,
    IWLBLoss,
    JackknifeLoss,
    MIWAELoss,
    NamedBoundLoss,
    PIWAELoss,
    elbo_loss,
    iwlb_loss,
)
from fastvi.models.decoders import log_likelihood
from fastvi.models.hierarchical import HierarchicalVAE, StochasticLayer
from fastvi.models.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    DistributionLikelihood,
    GaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    ZeroInflatedNegativeBinomialLikelihood,
)
from fastvi.models.vae import VAE
from fastvi.svi import SVI

__all__ = [
    "BernoulliLikelihood",
    "CIWAELoss",
    "CategoricalLikelihood",
    "Diagnosis",
    "DistributionLikelihood",
    "ELBOLoss",
    "GaussianLikelihood",
    "HierarchicalVAE",
    "IWLBLoss",
    "JackknifeLoss",
    "LaplaceLikelihood",
    "Likelihood",
    "MIWAELoss",
    "NamedBoundLoss",
    "NegativeBinomialLikelihood",
    "PIWAELoss",
    "PoissonLikelihood",
    "SVI",
    "StochasticLayer",
    "VAE",
    "ZeroInflatedNegativeBinomialLikelihood",
    "__version__",
    "diagnose",
    "distributions",
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
    "needed_backward_samples",
    "pareto_k",
]
