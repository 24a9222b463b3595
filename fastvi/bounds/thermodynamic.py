"""The thermodynamic bound: a sum over temperatures between the guide and the posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi._checks import check_num_samples
from fastvi.bounds.weighers import Weigher, Weights


class Thermodynamic(Weigher):
    r"""The left Riemann sum of the thermodynamic integral, at evenly spaced temperatures.

    .. math::
        \log p(x) = \int_0^1 \mathrm{E}_{\pi_t}[\log w]\, dt \ge
        \frac{1}{T} \sum_{j=0}^{T-1} \sum_{k=1}^{K} s_{jk} \log w_k, \qquad
        s_j = \operatorname{softmax}(t_j \log w), \quad t_j = j / T

    with :math:`\pi_t \propto q\, w^t`. T = 1 is the ELBO.

    References:
        | The Thermodynamic Variational Objective (Masrani et al., 2019),
        | https://arxiv.org/abs/1907.00031
    """

    def __init__(self, num_samples: int, estimator: str, *, temperatures: int = 5) -> None:
        super().__init__(num_samples, estimator)
        check_num_samples("thermodynamic", temperatures, "temperatures")
        self.temperatures = temperatures
        self.gradient = "path" if estimator == "dreg" else "total"
        self.same = self.gradient == "total"
        self.linear = temperatures == 1 or num_samples == 1

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        if signals:
            raise ValueError(
                "Thermodynamic: expected every latent to be reparameterised, got some that are "
                "not; use objectives.VIMCO"
            )
        log_w = log_w.detach()
        exact = log_w.double()
        model, own = torch.zeros_like(exact), torch.zeros_like(exact)
        bound = torch.zeros_like(exact[0])
        impossible = torch.isneginf(exact)
        possible = exact.masked_fill(impossible, 0.0)
        for number in range(self.temperatures):
            t = number / self.temperatures
            share = torch.softmax(possible.mul(t).masked_fill(impossible, -torch.inf), 0)
            share = share.nan_to_num(0.0)
            mean = (share * possible).sum(0)
            slope = 1.0 + t * (possible - mean)
            bound += mean / self.temperatures
            model += share * slope / self.temperatures
            # The path does not get the part that a weight changes of its own derivative.
            own += t * share * ((1.0 - share) * slope + 1.0 - share * slope) / self.temperatures
        # At temperature zero, that of the guide, every sample has a weight, an impossible one too.
        nothing = impossible.any(0)
        bound = bound.masked_fill(nothing, -torch.inf)
        guide = model - own if self.gradient == "path" else model
        model, guide = (each.masked_fill(nothing, 0.0).to(log_w.dtype) for each in (model, guide))
        return Weights(bound.to(log_w.dtype), model, guide, None)
