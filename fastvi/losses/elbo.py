"""The evidence lower bound as a loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._checks import check_chunks, plain
from fastvi._gradients import weighed
from fastvi._loss_arguments import (
    LogLikelihood,
    Prior,
    check_elbo_options,
    check_inputs,
    log_px_of,
    loss_of,
)
from fastvi.bounds.estimators import ELBO_ESTIMATORS
from fastvi.bounds.weighers import Renyi
from fastvi.chunks import Cut, GaussianSource, SampleGroup
from fastvi.chunks.chunk_size import remembering
from fastvi.losses._module import BoundLoss
from fastvi.ops import gaussian_kl, new_key
from fastvi.ops.gaussian_rsample import rsample


def elbo_loss(
    loc: Tensor,
    log_var: Tensor,
    log_likelihood: LogLikelihood,
    num_samples: int = 1,
    *,
    kl: str = "auto",
    beta: float = 1.0,
    estimator: str = "iwae",
    chunk_size: int | Literal["auto"] | None = None,
    memory_budget: int | None = None,
    group: Any = None,
    prior: Prior | None = None,
    reduction: str = "mean",
    key: Tensor | None = None,
    validate_args: bool = False,
) -> Tensor:
    r"""Compute the negative evidence lower bound, with weight beta on the divergence.

    .. math::
        -\frac{1}{K} \sum_{k=1}^{K} \log p(x \mid z_k) + \beta\, \mathrm{KL}(q \,\|\, p),
        \qquad z_k \sim q(z \mid x) = \mathcal{N}(\mu, \sigma^2)

    More samples make this bound less noisy, not tighter: :func:`iwlb_loss` is the one that
    tightens with K. ``kl="monte_carlo"`` replaces the divergence by the mean of
    :math:`\log q(z_k) - \log p(z_k)` over the same samples.

    Args:
        loc: mean :math:`\mu` of q, shape (\*batch, D).
        log_var: :math:`\log \sigma^2` of q; broadcast with ``loc``.
        log_likelihood: a function of z, shape (K, \*batch, D), that returns
            :math:`\log p(x \mid z)` in nats, shape (K, \*batch).
        num_samples: K.
        kl: ``"analytic"`` for the closed form, or ``"monte_carlo"``. ``"auto"`` is the closed
            form, unless the estimator has no use for one.
        beta: weight of the divergence, for every K; 1 is the ELBO.
        estimator: ``"iwae"``, the total derivative, or ``"stl"``, which leaves out the score of q.
            The score has mean zero, so both are unbiased for every K. ``"stl"`` takes the
            divergence from the samples, and refuses ``kl="analytic"``.
        chunk_size: samples at a time; ``None`` for all, ``"auto"`` for what ``memory_budget``
            allows; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        prior: ``None`` for N(0, I), or (loc, log_var), broadcast to (\*batch, D); may be learned.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
        validate_args: check that the inputs are finite, and that no log-likelihood is NaN or
            ``+inf``.

    Returns:
        The loss in nats: a scalar, or shape (\*batch,) for ``reduction="none"``. float32, or
        float64 if an input is float64.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or different dtypes.
        ValueError: shapes that do not broadcast, ``num_samples`` < 1, an unknown ``kl``,
            ``estimator`` or ``reduction``, a ``beta`` that is negative or not finite, a
            log-likelihood whose shape is not (K, \*batch), the mean of no data.

    Example:
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> fastvi.elbo_loss(loc, log_var, lambda z: torch.full_like(z[..., 0], -2.0))
        tensor(2.)

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
    """
    where = "elbo_loss"
    num_samples, chunk_size, beta = plain(num_samples), plain(chunk_size), plain(beta)
    check_elbo_options(where, num_samples, kl, beta, estimator, reduction)
    check_chunks(where, num_samples, chunk_size, memory_budget)
    check_inputs(where, loc, log_var, log_likelihood, prior, reduction, key, validate_args)
    analytic = kl != "monte_carlo" and estimator != "stl"
    divergence = gaussian_kl(loc, log_var, prior) if analytic else None
    how = ELBO_ESTIMATORS[estimator]
    if chunk_size is None and group is None:
        sampled_prior = None if analytic else prior
        z, log_q, log_p = rsample(
            loc, log_var, "log_var", num_samples, key, 0, sampled_prior, how.fused or "total"
        )
        log_px = log_px_of(where, log_likelihood, z, validate_args)
        dtype = torch.promote_types(log_px.dtype, log_q.dtype)
        bound = log_px.to(dtype)
        bound = (bound if analytic else bound - weighed(beta, log_q - log_p)).mean(0)
    else:
        source = GaussianSource(
            where,
            log_likelihood,
            loc,
            log_var,
            None if analytic else prior,
            new_key(loc.device) if key is None else key,
            Renyi(num_samples, estimator, 1.0),
            beta=0.0 if analytic else beta,
            own_key=key is None,
            alike={"estimator": estimator, "kl": kl, "reduction": reduction},
            validate_args=validate_args,
        )
        sample_group = None if group is None else SampleGroup(where, group)
        bound = source.bound(Cut(chunk_size, memory_budget, sample_group))
        if sample_group is not None and divergence is not None:
            divergence = sample_group.shared(divergence)
    if divergence is not None:
        bound = bound.to(torch.promote_types(bound.dtype, divergence.dtype)) - weighed(
            beta, divergence
        )
    return loss_of(bound, reduction)


class ELBOLoss(BoundLoss):
    """Measure the negative evidence lower bound: :func:`elbo_loss` as a module.

    Args:
        num_samples: K.
        kl: ``"auto"``, ``"analytic"`` or ``"monte_carlo"``; see :func:`elbo_loss`. For a model
            whose divergence has no closed form, ``"auto"`` takes the samples, and ``"analytic"``
            is refused.
        beta: weight of the divergence; assign ``criterion.beta`` to anneal it.
        estimator: ``"iwae"``, the total derivative, or ``"stl"``; see :func:`elbo_loss`.
        chunk_size: samples at a time; ``None`` for all, ``"auto"`` for what ``memory_budget``
            allows; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        prior: ``None`` for N(0, I), or (loc, log_var). Parameters are learned with the module,
            other tensors are its buffers.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.

    Example:
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion = fastvi.ELBOLoss(beta=4.0)
        >>> criterion(loc, log_var, lambda z: -z.square().sum(-1)).shape
        torch.Size([])
    """

    def __init__(
        self,
        num_samples: int = 1,
        kl: str = "auto",
        *,
        beta: float = 1.0,
        estimator: str = "iwae",
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
    ) -> None:
        num_samples, chunk_size, beta = plain(num_samples), plain(chunk_size), plain(beta)
        check_elbo_options("ELBOLoss", num_samples, kl, beta, estimator, reduction)
        check_chunks("ELBOLoss", num_samples, chunk_size, memory_budget)
        super().__init__(num_samples, prior, reduction, validate_args)
        self.kl = kl
        self.beta = beta
        self.estimator = estimator
        self.chunk_size = remembering(chunk_size)
        self.memory_budget = memory_budget
        self.group = group

    def forward(
        self,
        loc: Tensor,
        log_var: Tensor,
        log_likelihood: LogLikelihood,
        *,
        key: Tensor | None = None,
        prior: Prior | None = None,
    ) -> Tensor:
        """Compute the loss; ``prior`` replaces the module's own. See :func:`elbo_loss`."""
        return elbo_loss(
            loc,
            log_var,
            log_likelihood,
            self.num_samples,
            kl=self.kl,
            beta=self.beta,
            estimator=self.estimator,
            chunk_size=self.chunk_size,
            memory_budget=self.memory_budget,
            group=self.group,
            prior=self.prior if prior is None else prior,
            reduction=self.reduction,
            key=key,
            validate_args=self.validate_args,
        )

    def extra_repr(self) -> str:
        return self._settings("num_samples", "kl", "beta", "estimator", chunk_size=None)
