"""Stochastic variational inference for any model and guide."""

from fastvi.svi.fitting import Epoch
from fastvi.svi.inference import SVI

__all__ = ["SVI", "Epoch"]
