"""Measures of each latent feature of a Gaussian posterior: information and position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi._checks import check_rows
from fastvi.models.vae import VAE
from fastvi.ops import gaussian_kl

# The threshold of Burda et al.: a smaller variance is a chance effect.
ACTIVE = 0.01
_AT_ONCE = 4096  # data
_NODES, _MOST_COMPONENTS = 32, 256


@dataclass(frozen=True)
class LatentFeatures:
    r"""Hold the results of :func:`measure_latents` for N data and D features, float64, on the CPU.

    Attributes:
        loc: mean of q of each example, shape (N, D).
        scale: standard deviation of q, shape (N, D).
        kl: :math:`\mathrm{KL}(q(z_d \mid x) \| p(z_d))` of each example and feature, shape (N, D).
        activity: variance of the means over the data, shape (D,); NaN for a single example.
        prior_loc: mean of the prior, shape (D,).
        prior_scale: standard deviation of the prior, shape (D,).
        marginal_kl: :math:`\mathrm{KL}(q(z_d) \| p(z_d))` of the aggregated posterior
            :math:`q(z_d) = \frac1N \sum_n q(z_d \mid x_n)`, shape (D,): the part of the
            divergence that is no information about an example. From the first 256 data.
    """

    loc: Tensor
    scale: Tensor
    kl: Tensor
    activity: Tensor
    prior_loc: Tensor
    prior_scale: Tensor
    marginal_kl: Tensor

    @property
    def active(self) -> Tensor:
        """Return whether the mean has a variance over the data above 0.01, shape (D,)."""
        return self.activity > ACTIVE

    @property
    def order(self) -> list[int]:
        """Return the features, those with the largest mean divergence first."""
        return self.kl.mean(0).argsort(descending=True).tolist()

    def density(self, feature: int, z: Tensor) -> Tensor:
        """Return the density of the aggregated posterior of a feature at z, of shape (G,)."""
        apart = (z[:, None] - self.loc[:, feature]) / self.scale[:, feature]
        each = torch.exp(-0.5 * apart.square()) / self.scale[:, feature]
        return each.mean(1) / math.sqrt(2 * math.pi)


@torch.no_grad()
def measure_latents(vae: VAE, x: Tensor) -> LatentFeatures:
    r"""Measure each latent feature of a VAE with a diagonal Gaussian posterior and prior.

    Args:
        vae: the model; its encoder returns (loc, log_var).
        x: data, shape (N, \*event).

    Returns:
        The measures of each feature; see :class:`LatentFeatures`.

    Raises:
        TypeError: an encoder that returns a distribution; x that is not a tensor.
        ValueError: no data, or a prior that is no pair.

    Example:
        >>> from fastvi.diagnostics.latents import measure_latents
        >>> vae = fastvi.VAE(torch.nn.Linear(9, 4), torch.nn.Linear(2, 9))
        >>> found = measure_latents(vae, torch.rand(5, 9))
        >>> found.kl.shape, found.active.shape
        (torch.Size([5, 2]), torch.Size([2]))

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | ELBO Surgery (Hoffman & Johnson, 2016)
    """
    where = "measure_latents"
    check_rows(where, x)
    if vae.prior_module is not None:
        raise ValueError(f"{where}: expected a prior that is a pair (loc, log_var), got a module")
    parts = [vae.encode(part) for part in x.split(_AT_ONCE)]
    loc, log_var = (torch.cat([p[i] for p in parts]).double().cpu() for i in (0, 1))
    log_var = log_var.expand_as(loc)
    pair = vae._gaussian_prior or (loc.new_zeros(()), loc.new_zeros(()))
    prior = [part.detach().double().cpu().expand(loc.shape[-1]) for part in pair]
    # Each feature is a row of its own, so that the divergence is not summed over features.
    of_each = (prior[0][:, None], prior[1][:, None])
    kl = gaussian_kl(loc[..., None], log_var[..., None], of_each)
    activity = loc.var(0) if len(loc) > 1 else torch.full_like(loc[0], math.nan)
    prior_loc, prior_scale = prior[0], (0.5 * prior[1]).exp()
    scale = (0.5 * log_var).exp()
    marginal = _marginal_kl(loc, scale, prior_loc, prior_scale)
    return LatentFeatures(loc, scale, kl, activity, prior_loc, prior_scale, marginal)


def _marginal_kl(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """Return the divergence of the mixture of each feature, by Gauss and Hermite's quadrature."""
    loc, scale = loc[:_MOST_COMPONENTS], scale[:_MOST_COMPONENTS]
    nodes, weights = _hermite(_NODES)
    result = []
    for d in range(loc.shape[1]):
        # At the nodes of every component, [n, nodes, 1], all components are added up.
        z = (loc[:, d, None] + scale[:, d, None] * nodes)[..., None]
        each = -0.5 * ((z - loc[:, d]) / scale[:, d]).square() - scale[:, d].log()
        log_q = torch.logsumexp(each, -1) - math.log(len(loc))
        z = z[..., 0]
        log_p = -0.5 * ((z - prior_loc[d]) / prior_scale[d]).square() - prior_scale[d].log()
        result.append(((log_q - log_p) * weights).sum(-1).mean())
    return torch.stack(result)


def _hermite(count: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights for the mean of a function of a standard normal variable."""
    # Golub and Welsch: the eigenvalues of the recurrence's matrix, and the squares of the first
    # components of its eigenvectors.
    beside = torch.arange(1, count, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return nodes, vectors[0].square()
