"""The importance-weighted lower bound as a loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._checks import check_chunks, plain
from fastvi._loss_arguments import (
    LogLikelihood,
    Prior,
    check_inputs,
    check_iwlb_options,
    log_px_of,
    loss_of,
)
from fastvi._modes import records_graphs
from fastvi.bounds.estimators import IWLB_ESTIMATORS
from fastvi.bounds.weighers import Renyi
from fastvi.chunks import Cut, Few, GaussianSource, SampleGroup
from fastvi.chunks.chunk_size import remembering
from fastvi.losses._module import BoundLoss
from fastvi.ops import iwlb, new_key
from fastvi.ops.gaussian_rsample import rsample


def iwlb_loss(
    loc: Tensor,
    log_var: Tensor,
    log_likelihood: LogLikelihood,
    num_samples: int,
    *,
    estimator: str = "dreg",
    chunk_size: int | Literal["auto"] | None = None,
    group: Any = None,
    backward_samples: int | Literal["auto"] | None = None,
    variance_growth: float | None = None,
    prior: Prior | None = None,
    reduction: str = "mean",
    alpha: float = 0.0,
    memory_budget: int | None = None,
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
    - ``"rws"``: the wake phase of reweighted wake-sleep, :math:`\sum_k \tilde w_k\, \partial_\phi
      \log q(z_k)` at fixed samples: towards the posterior instead of up the bound.
    - ``"rws_dreg"``: the same expectation, :math:`\sum_k \tilde w_k (1 - \tilde w_k)\,
      \partial_z \log w_k\, \partial_\phi z_k`.

    The decoder and a learned prior always get the plain weight :math:`\tilde w`.

    With ``alpha`` the bound is Rényi's, :math:`\frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k
    w_k^{1 - \alpha}`, the weights are the normalised :math:`w_k^{1 - \alpha}`, and ``"dreg"``
    gives the path the weight :math:`\alpha \tilde w + (1 - \alpha) \tilde w^2`.

    With ``chunk_size`` no more than that many samples' activations exist at a time, in the forward
    and the backward pass, and memory does not grow with K. Value and gradient are those of all K
    samples, and the noise is the same for every chunk size. The price is a second run of
    ``log_likelihood`` in the backward pass, for all chunks but the last; it must be a function of z
    and of torch's global generators alone.

    With ``backward_samples`` all samples run forward, and m of each datum's run backward, which are
    chosen by their weights. The value is that of all K, and the mean of the gradient over the
    choice is the gradient of all K; docs/backward_samples.md says when it pays. Then
    ``log_likelihood`` must draw no noise at all.

    Args:
        loc: mean :math:`\mu` of q, shape (\*batch, D).
        log_var: :math:`\log \sigma^2` of q; broadcast with ``loc``.
        log_likelihood: a function of z, shape (K, \*batch, D), that returns
            :math:`\log p(x \mid z)` in nats, shape (K, \*batch).
        num_samples: K.
        estimator: ``"dreg"``, ``"iwae"``, ``"stl"``, ``"rws"`` or ``"rws_dreg"``.
        chunk_size: samples at a time; ``None`` for all; ``"auto"`` tries a few samples, takes as
            many as ``memory_budget`` allows, and tells the logger ``"fastvi"`` how many.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them. Every rank draws a
            range of its own, and gets the bound of all K. The ranks send two numbers for each
            example. Without a key, all of them use the first rank's. If ranks differ in an
            argument, or in loc or log_var by more than rounding, or if ``log_likelihood`` raises on
            one of them, all ranks raise an error. The data that ``log_likelihood`` holds are
            compared only if the function comes from :func:`fastvi.log_likelihood` or from a VAE.
        backward_samples: how many samples of each example run backward, m; ``None`` for all.
            ``"auto"`` takes as many as ``variance_growth`` needs, and tells the logger
            ``"fastvi"`` how many.
        variance_growth: the factor by which the variance of the gradient over the samples may
            grow with ``backward_samples="auto"``; 1.1 by default.
        prior: ``None`` for N(0, I), or (loc, log_var), broadcast to (\*batch, D); may be learned.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        alpha: order of the Rényi bound: 0 is the IWLB, 1 the ELBO.
        memory_budget: bytes for ``chunk_size="auto"``; by default a quarter of what is free, and on
            a CPU no more than 256 MiB.
        key: from :func:`fastvi.ops.new_key`; ``None`` draws one.
        validate_args: check that the inputs are finite, and that no log-likelihood is NaN or
            ``+inf``.

    Returns:
        The loss in nats: a scalar, or shape (\*batch,) for ``reduction="none"``. float32, or
        float64 if an input is float64.

    Raises:
        TypeError: an argument that is not a floating-point tensor, or different dtypes.
        ValueError: shapes that do not broadcast, ``num_samples`` < 1, an unknown ``estimator`` or
            ``reduction``, a log-likelihood whose shape is not (K, \*batch), the mean of no data, a
            ``chunk_size`` below 1 or above ``num_samples``, ranks that disagree.
        RuntimeError: with ``chunk_size``, a ``log_likelihood`` that changes between the passes;
            with ``group``, a rank that has failed.

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
        | Reweighted Wake-Sleep (Bornschein & Bengio, 2015), https://arxiv.org/abs/1406.2751
        | Rényi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """
    where = "iwlb_loss"
    num_samples, chunk_size, alpha = plain(num_samples), plain(chunk_size), plain(alpha)
    check_iwlb_options(where, num_samples, estimator, alpha, reduction)
    check_chunks(where, num_samples, chunk_size, memory_budget)
    check_inputs(where, loc, log_var, log_likelihood, prior, reduction, key, validate_args)
    how = IWLB_ESTIMATORS[estimator]
    weigher = Renyi(num_samples, estimator, float(alpha))
    few = Few.of(where, backward_samples, variance_growth, weigher)
    at_once = chunk_size is None and group is None and (few is None or not records_graphs())
    # The sampler's own backward weighs the path by the IWLB's weights, not by Renyi's.
    if at_once and how.fused is not None and (alpha == 0.0 or how.path_weight is None):
        z, log_q, log_p = rsample(loc, log_var, "log_var", num_samples, key, 0, prior, how.fused)
        log_px = log_px_of(where, log_likelihood, z, validate_args)
        # The weights are not computed in low precision: a sum in bfloat16 is wrong by whole nats.
        if log_px.dtype != log_q.dtype:
            dtype = torch.promote_types(log_px.dtype, log_q.dtype)
            log_px, log_p, log_q = log_px.to(dtype), log_p.to(dtype), log_q.to(dtype)
        return loss_of(iwlb(log_px, log_p, log_q, alpha=alpha), reduction)
    source = GaussianSource(
        where,
        log_likelihood,
        loc,
        log_var,
        prior,
        new_key(loc.device) if key is None else key,
        weigher,
        own_key=key is None,
        alike={"estimator": estimator, "reduction": reduction},
        validate_args=validate_args,
    )
    sample_group = None if group is None else SampleGroup(where, group)
    return loss_of(source.bound(Cut(chunk_size, memory_budget, sample_group, few=few)), reduction)


class IWLBLoss(BoundLoss):
    """Measure the negative importance-weighted lower bound: :func:`iwlb_loss` as a module.

    Args:
        num_samples: K.
        estimator: ``"dreg"``, ``"iwae"``, ``"stl"``, ``"rws"`` or ``"rws_dreg"``; see
            :func:`iwlb_loss`.
        chunk_size: samples at a time; ``None`` for all, ``"auto"`` for what ``memory_budget``
            allows; see :func:`iwlb_loss`.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: how many samples run backward, ``None`` for all; see :func:`iwlb_loss`.
        variance_growth: see :func:`iwlb_loss`.
        prior: ``None`` for N(0, I), or (loc, log_var). Parameters are learned with the module,
            other tensors are its buffers.
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        alpha: order of the Rényi bound: 0 is the IWLB.
        memory_budget: bytes for ``chunk_size="auto"``.
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
        chunk_size: int | Literal["auto"] | None = None,
        group: Any = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
        prior: Prior | None = None,
        reduction: str = "mean",
        alpha: float = 0.0,
        memory_budget: int | None = None,
        validate_args: bool = False,
    ) -> None:
        num_samples, chunk_size, alpha = plain(num_samples), plain(chunk_size), plain(alpha)
        check_iwlb_options("IWLBLoss", num_samples, estimator, alpha, reduction)
        check_chunks("IWLBLoss", num_samples, chunk_size, memory_budget)
        super().__init__(num_samples, prior, reduction, validate_args)
        self.estimator = estimator
        self.alpha = alpha
        self.chunk_size = remembering(chunk_size)
        self.memory_budget = memory_budget
        self.group = group
        self._keep_few(backward_samples, variance_growth, self.weigher())

    def weigher(self) -> Renyi:
        """Return the bound, with the estimator of its gradient."""
        return Renyi(self.num_samples, self.estimator, float(self.alpha))

    def forward(
        self,
        loc: Tensor,
        log_var: Tensor,
        log_likelihood: LogLikelihood,
        *,
        key: Tensor | None = None,
        prior: Prior | None = None,
    ) -> Tensor:
        """Compute the loss; ``prior`` replaces the module's own. See :func:`iwlb_loss`."""
        return iwlb_loss(
            loc,
            log_var,
            log_likelihood,
            self.num_samples,
            estimator=self.estimator,
            alpha=self.alpha,
            chunk_size=self.chunk_size,
            memory_budget=self.memory_budget,
            group=self.group,
            backward_samples=self.backward_samples,
            variance_growth=self.variance_growth,
            prior=self.prior if prior is None else prior,
            reduction=self.reduction,
            key=key,
            validate_args=self.validate_args,
        )

    def extra_repr(self) -> str:
        return self._settings(
            "num_samples", "estimator", alpha=0.0, chunk_size=None, backward_samples=None
        )
