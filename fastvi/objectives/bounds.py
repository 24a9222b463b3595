"""Bounds on the evidence as functions of log-weights. Each is a few lines over the ops."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi import ops
from fastvi._checks import check_log_w, check_share, plain


def elbo(log_w: Tensor) -> Tensor:
    r"""Compute the evidence lower bound: the mean of the log-weights.

    .. math::
        \frac{1}{K} \sum_{k=1}^{K} \log w_k

    More samples make it less noisy, not tighter.

    Args:
        log_w: log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)` in nats, shape (K, \*batch).

    Returns:
        The bound in nats, shape (\*batch,).

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: no dimension, or K = 0.

    Example:
        >>> fastvi.objectives.elbo(torch.tensor([[1.0], [3.0]]))
        tensor([2.])

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
    """
    return renyi(log_w, 1.0)


def iwlb(log_w: Tensor) -> Tensor:
    r"""Compute the importance-weighted lower bound: the log-mean-exp of the log-weights.

    .. math::
        L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k

    Args:
        log_w: log-weights in nats, shape (K, \*batch).

    Returns:
        The bound in nats, shape (\*batch,).

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: no dimension, or K = 0.

    Example:
        >>> fastvi.objectives.iwlb(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.6931])

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    """
    return renyi(log_w, 0.0)


def renyi(log_w: Tensor, alpha: float) -> Tensor:
    r"""Compute the Rényi bound of order alpha: 0 is the IWLB, 1 the ELBO.

    .. math::
        \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^{K} w_k^{1 - \alpha}

    For alpha from 0 to 1 it is a lower bound in expectation. Below 0 it is not, for any finite K.

    Args:
        log_w: log-weights in nats, shape (K, \*batch).
        alpha: the order; finite.

    Returns:
        The bound in nats, shape (\*batch,).

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor, ``alpha`` not a float.
        ValueError: no dimension, K = 0, or an ``alpha`` that is not finite.

    Example:
        >>> fastvi.objectives.renyi(torch.tensor([[1.0], [3.0]]), alpha=1.0)
        tensor([2.])

    References:
        | Rényi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311
    """
    check_log_w("renyi", log_w)
    return ops.iwlb(log_w, alpha=plain(alpha))


def jackknife(log_w: Tensor) -> Tensor:
    r"""Compute the jackknife estimate of the evidence, JVI-1: the IWLB without its first bias.

    .. math::
        K L_K - (K - 1) \frac{1}{K} \sum_{k=1}^{K} L_{K-1}^{(-k)}

    The bias of :math:`L_K` is :math:`O(K^{-1})`; this removes that term and leaves
    :math:`O(K^{-2})`. The rest may have either sign: unlike the IWLB this is no lower bound.

    Args:
        log_w: log-weights in nats, shape (K, \*batch), K at least 2.

    Returns:
        The estimate of :math:`\log p(x)` in nats, shape (\*batch,).

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: no dimension, or K < 2.

    Example:
        >>> fastvi.objectives.jackknife(torch.tensor([[1.0], [3.0]]).log())
        tensor([0.8370])

    References:
        | Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        | Variational Inference (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb
    """
    check_log_w("jackknife", log_w, at_least=2)
    num_samples = log_w.shape[0]
    bound = ops.iwlb(log_w)
    # This is L_K + (K - 1) (L_K - mean). The two are close, and K times either would round more.
    correction = (num_samples - 1) * (bound - ops.leave_one_out(log_w)).mean(0)
    # If no sample is possible, the bound is -inf, not NaN from -inf - -inf.
    return bound + torch.where(torch.isneginf(bound), 0.0, correction)


def miwae(log_w: Tensor) -> Tensor:
    r"""Compute the mean of M independent importance-weighted bounds of K samples each.

    .. math::
        \frac{1}{M} \sum_{m=1}^{M} \log \frac{1}{K} \sum_{k=1}^{K} w_{m,k}

    The weights are normalised over K, the second dimension. M = 1 is the IWLB, K = 1 the ELBO.

    Args:
        log_w: log-weights in nats, shape (M, K, \*batch).

    Returns:
        The bound in nats, shape (\*batch,).

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: fewer than two dimensions, M = 0 or K = 0.

    Example:
        >>> fastvi.objectives.miwae(torch.zeros(4, 16, 8)).shape
        torch.Size([8])

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """
    check_log_w("miwae", log_w, groups=True)
    return ops.iwlb(log_w, dim=1).mean(0)


def piwae(log_w: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute the two objectives of a partially importance-weighted autoencoder.

    .. math::
        \text{model: } \log \frac{1}{MK} \sum_{m=1}^{M} \sum_{k=1}^{K} w_{m,k}, \qquad
        \text{guide: } \frac{1}{M} \sum_{m=1}^{M} \log \frac{1}{K} \sum_{k=1}^{K} w_{m,k}

    The model is trained by the tighter bound, the guide by the one with less noisy gradients. Each
    objective is for its own parameters, so take its gradient with respect to those alone:
    ``torch.autograd.grad(-model.mean(), model_parameters, retain_graph=True)``, and the same of
    the guide. The gradient of their sum would train each part by both objectives.

    Args:
        log_w: log-weights in nats, shape (M, K, \*batch).

    Returns:
        The bound for the model and the bound for the guide in nats, shape (\*batch,) each. The
        first is the one to report.

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: fewer than two dimensions, M = 0 or K = 0.

    Example:
        >>> model, guide = fastvi.objectives.piwae(torch.randn(4, 16, 8))
        >>> bool((model >= guide).all())
        True

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """
    check_log_w("piwae", log_w, groups=True)
    return ops.iwlb(log_w.flatten(0, 1)), miwae(log_w)


def ciwae(log_w: Tensor, beta: float) -> Tensor:
    r"""Compute a convex combination of the ELBO and the importance-weighted bound.

    .. math::
        \beta\, \frac{1}{K} \sum_{k=1}^{K} \log w_k + (1 - \beta)\, L_K

    Args:
        log_w: log-weights in nats, shape (K, \*batch).
        beta: the share of the ELBO, from 0 to 1.

    Returns:
        The bound in nats, shape (\*batch,).

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor, ``beta`` not a float.
        ValueError: no dimension, K = 0, or a ``beta`` outside [0, 1].

    Example:
        >>> fastvi.objectives.ciwae(torch.tensor([[1.0], [3.0]]), beta=1.0)
        tensor([2.])

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """
    check_log_w("ciwae", log_w)
    beta = plain(beta)
    check_share("ciwae", "beta", beta)
    # At the ends only one bound is computed: 0 times a bound of -inf would be NaN.
    if beta in (0, 1):
        return renyi(log_w, float(beta))
    mean = elbo(log_w)
    bound = beta * mean + (1 - beta) * iwlb(log_w)
    # If the mean is -inf, no direction improves the sum, even if one improves the other part.
    return torch.where(torch.isneginf(mean), mean, bound)
