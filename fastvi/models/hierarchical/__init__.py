"""Deeper VAEs: several stochastic layers of Gaussian, Bernoulli or categorical latents."""

from fastvi.models.hierarchical.layer import StochasticLayer
from fastvi.models.hierarchical.vae import HierarchicalVAE

__all__ = ["HierarchicalVAE", "StochasticLayer"]
