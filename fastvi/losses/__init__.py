"""The drop-in losses: the negative bound of a Gaussian posterior, as functions and as modules."""

from fastvi.losses.elbo import ELBOLoss, elbo_loss
from fastvi.losses.iwlb import IWLBLoss, iwlb_loss
from fastvi.losses.multi_sample import CIWAELoss, JackknifeLoss, MIWAELoss, PIWAELoss
from fastvi.losses.named import NamedBoundLoss

__all__ = [
    "CIWAELoss",
    "ELBOLoss",
    "IWLBLoss",
    "JackknifeLoss",
    "MIWAELoss",
    "NamedBoundLoss",
    "PIWAELoss",
    "elbo_loss",
    "iwlb_loss",
]
