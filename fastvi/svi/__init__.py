"""Stochastic variational inference for any model and guide."""

from fastvi.callbacks import Epoch
from fastvi.svi.inference import SVI

__all__ = ["SVI", "Epoch"]
