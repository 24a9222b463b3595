"""The drop-in losses: the negative bound of a Gaussian posterior, as functions and as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvi._loss_arguments import (
    ELBO_GRADIENTS,
    IWLB_GRADIENTS,
    LogLikelihood,
    Prior,
    check_elbo_options,
    check_inputs,
    check_iwlb_options,
    log_px_of,
    loss_of,
)
from fastvi.ops import gaussian_kl, iwlb
from fastvi.ops._arguments import check_prior
from fastvi.ops.gaussian_rsample import rsample


def iwlb_loss(
    loc: Tensor,
    log_var: Tensor,
    log_likelihood: LogLikelihood,
    num_samples: int,
    estimator: str = "dreg",
    *,
    prior: Prior | None = None,
    reduction: str = "mean",
    key: Tensor | None = None,
    validate_args: bool = False,
) -> Tensor:
    r"""Compute the negative importance-weighted lower bound.

    .. math::
        -L_K = -\log \frac{1}{K} \sum_{k=1}^{K} \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)},
        \qquad z_k \sim q(z \mid x) = \mathcal{N}(\mu, \sigma^2)

    The value is the same for every estimator; they differ in the gradient that reaches ``loc`` and
    ``log_var``. With :math:`\tilde w` the normalised weights and :math:`\phi` the encoder:

    - ``"iwae"``: the total derivative. Its signal-to-noise ratio falls as :math:`K^{-1/2}`.
    - ``"stl"``: :math:`\sum_k \tilde w_k\, \partial_z \log w_k\, \partial_\phi z_k`. Low variance,
      biased for K > 1.
    - ``"dreg"``: :math:`\sum_k \tilde w_k^2\, \partial_z \log w_k\, \partial_\phi z_k`. Unbiased;
      its signal-to-noise ratio grows as :math:`K^{1/2}`.

    The decoder and a learned prior always get the plain weight :math:`\tilde w`.

    Args:
        loc: mean :math:`\mu` of q, shape (\*batch, D).
        log_var: :math:`\log \sigma^2` of q; broadcast with ``loc``.
        log_likelihood: a function of z, shape (K, \*batch, D), that returns
            :math:`\log p(x \mid z)` in nats, shape (K, \*batch).
        num_samples: K.
        estimator: ``"dreg"``, ``"iwae"`` or ``"stl"``.
        prior: ``None`` for N(0, I), or (loc, log_var), broadcast to (\*batch, D); may be learned.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
        validate_args: check that the inputs are finite, and that no log-likelihood is NaN or
            ``+inf``.

    Returns:
        The loss in nats: a scalar, or shape (\*batch,) for ``reduction="none"``. float32, or
        float64 where an input is float64.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or different dtypes.
        ValueError: shapes that do not broadcast, ``num_samples`` < 1, an unknown ``estimator`` or
            ``reduction``, a log-likelihood whose shape is not (K, \*batch), the mean of no data.

    Example:
        >>> x, weight = torch.ones(8, 784), torch.zeros(2, 784)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> def log_likelihood(z):
        ...     return fastvi.ops.bernoulli_log_prob(x, z @ weight)
        >>> fastvi.iwlb_loss(loc, log_var, log_likelihood, num_samples=16, reduction="none").shape
        torch.Size([8])

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019),
        | https://arxiv.org/abs/1810.04152
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """
    where = "iwlb_loss"
    check_iwlb_options(where, num_samples, estimator, reduction)
    gradient = IWLB_GRADIENTS[estimator]
    check_inputs(where, loc, log_var, log_likelihood, prior, reduction, key, validate_args)
    z, log_q, log_p = rsample(loc, log_var, "log_var", num_samples, key, 0, prior, gradient)
    log_px = log_px_of(where, log_likelihood, z, validate_args)
    # Low precision is left before the weights meet: a sum of bfloat16 nats is off by whole nats.
    dtype = torch.promote_types(log_px.dtype, log_q.dtype)
    return loss_of(iwlb(log_px.to(dtype), log_p.to(dtype), log_q.to(dtype)), reduction)


def elbo_loss(
    loc: Tensor,
    log_var: Tensor,
    log_likelihood: LogLikelihood,
    num_samples: int = 1,
    kl: str = "analytic",
    beta: float = 1.0,
    *,
    estimator: str = "total",
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
        kl: ``"analytic"`` or ``"monte_carlo"``.
        beta: weight of the divergence, for every K; 1 is the ELBO.
        estimator: ``"total"``, or ``"stl"`` to leave out the score of q, which has mean zero
            (``kl="monte_carlo"`` only; unbiased for every K).
        prior: ``None`` for N(0, I), or (loc, log_var), broadcast to (\*batch, D); may be learned.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
        validate_args: check that the inputs are finite, and that no log-likelihood is NaN or
            ``+inf``.

    Returns:
        The loss in nats: a scalar, or shape (\*batch,) for ``reduction="none"``. float32, or
        float64 where an input is float64.

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
    check_elbo_options(where, num_samples, kl, beta, estimator, reduction)
    check_inputs(where, loc, log_var, log_likelihood, prior, reduction, key, validate_args)
    if kl == "analytic":
        z, _, _ = rsample(loc, log_var, "log_var", num_samples, key, 0, None, "total")
        log_px = log_px_of(where, log_likelihood, z, validate_args)
        divergence = gaussian_kl(loc, log_var, prior)
        dtype = torch.promote_types(log_px.dtype, divergence.dtype)
        return loss_of(log_px.to(dtype).mean(0) - beta * divergence, reduction)
    gradient = ELBO_GRADIENTS[estimator]
    z, log_q, log_p = rsample(loc, log_var, "log_var", num_samples, key, 0, prior, gradient)
    log_px = log_px_of(where, log_likelihood, z, validate_args)
    dtype = torch.promote_types(log_px.dtype, log_q.dtype)
    return loss_of((log_px.to(dtype) - beta * (log_q - log_p)).mean(0), reduction)


class _BoundLoss(nn.Module):
    """What the modules share: the number of samples, the prior, the reduction."""

    prior_loc: Tensor | None
    prior_log_var: Tensor | None

    def __init__(
        self, num_samples: int, prior: Prior | None, reduction: str, validate_args: bool
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.reduction = reduction
        self.validate_args = validate_args
        where = type(self).__name__
        for name, value in zip(("loc", "log_var"), check_prior(where, prior), strict=True):
            if value is None or isinstance(value, nn.Parameter):
                self.register_parameter(f"prior_{name}", value)
            elif value.grad_fn is not None:
                raise ValueError(
                    f"{where}: expected prior {name} to be a Parameter or a constant, got the "
                    f"result of a computation; give a prior that a network computes to the call"
                )
            else:
                self.register_buffer(f"prior_{name}", value)

    @property
    def prior(self) -> Prior | None:
        """(loc, log_var) of p(z), or None for N(0, I)."""
        if self.prior_loc is None or self.prior_log_var is None:
            return None
        return self.prior_loc, self.prior_log_var


class IWLBLoss(_BoundLoss):
    """Measure the negative importance-weighted lower bound: :func:`iwlb_loss` as a module.

    Args:
        num_samples: K.
        estimator: ``"dreg"``, ``"iwae"`` or ``"stl"``; see :func:`iwlb_loss`.
        prior: ``None`` for N(0, I), or (loc, log_var). Parameters are learned with the module,
            other tensors are its buffers.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.

    Example:
        >>> x, decoder = torch.ones(8, 784), torch.nn.Linear(2, 784)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion = fastvi.IWLBLoss(num_samples=64)
        >>> loss = criterion(
        ...     loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(x, decoder(z))
        ... )
        >>> loss.backward()
    """

    def __init__(
        self,
        num_samples: int,
        estimator: str = "dreg",
        *,
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
    ) -> None:
        check_iwlb_options("IWLBLoss", num_samples, estimator, reduction)
        super().__init__(num_samples, prior, reduction, validate_args)
        self.estimator = estimator

    def forward(
        self,
        loc: Tensor,
        log_var: Tensor,
        log_likelihood: LogLikelihood,
        key: Tensor | None = None,
        *,
        prior: Prior | None = None,
    ) -> Tensor:
        """Compute the loss; ``prior`` goes before the module's own. See :func:`iwlb_loss`."""
        return iwlb_loss(
            loc,
            log_var,
            log_likelihood,
            self.num_samples,
            self.estimator,
            prior=self.prior if prior is None else prior,
            reduction=self.reduction,
            key=key,
            validate_args=self.validate_args,
        )

    def extra_repr(self) -> str:
        return (
            f"num_samples={self.num_samples}, estimator={self.estimator!r}, "
            f"reduction={self.reduction!r}"
        )


class ELBOLoss(_BoundLoss):
    """Measure the negative evidence lower bound: :func:`elbo_loss` as a module.

    Args:
        num_samples: K.
        kl: ``"analytic"`` or ``"monte_carlo"``.
        beta: weight of the divergence; assign ``criterion.beta`` to anneal it.
        estimator: ``"total"`` or ``"stl"``; see :func:`elbo_loss`.
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
        kl: str = "analytic",
        beta: float = 1.0,
        *,
        estimator: str = "total",
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
    ) -> None:
        check_elbo_options("ELBOLoss", num_samples, kl, beta, estimator, reduction)
        super().__init__(num_samples, prior, reduction, validate_args)
        self.kl = kl
        self.beta = beta
        self.estimator = estimator

    def forward(
        self,
        loc: Tensor,
        log_var: Tensor,
        log_likelihood: LogLikelihood,
        key: Tensor | None = None,
        *,
        prior: Prior | None = None,
    ) -> Tensor:
        """Compute the loss; ``prior`` goes before the module's own. See :func:`elbo_loss`."""
        return elbo_loss(
            loc,
            log_var,
            log_likelihood,
            self.num_samples,
            self.kl,
            self.beta,
            estimator=self.estimator,
            prior=self.prior if prior is None else prior,
            reduction=self.reduction,
            key=key,
            validate_args=self.validate_args,
        )

    def extra_repr(self) -> str:
        return (
            f"num_samples={self.num_samples}, kl={self.kl!r}, beta={self.beta}, "
            f"estimator={self.estimator!r}, reduction={self.reduction!r}"
        )
