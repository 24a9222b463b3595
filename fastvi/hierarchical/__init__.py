"""Deeper VAEs: several stochastic layers of Gaussian, Bernoulli or categorical latents."""

from fastvi.hierarchical.layer import StochasticLayer
from fastvi.hierarchical.vae import HierarchicalVAE

__all__ = ["HierarchicalVAE", "StochasticLayer"]
