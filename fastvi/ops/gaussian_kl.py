"""The Kullback-Leibler divergence between diagonal Gaussians, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi._checks import check_finite, check_prior, check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._scales import half_exp_excess, lift_of, standardised

_gaussian_kl = kernel("gaussian_kl")


def reference(loc: Tensor, log_var: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute :func:`gaussian_kl` in plain PyTorch, differentiable any number of times."""
    acc = torch.float64 if loc.dtype == torch.float64 else torch.float32
    loc, log_var = loc.to(acc), log_var.to(acc)
    if prior is None:
        return ((0.5 * loc) * loc + half_exp_excess(log_var)).sum(-1)
    prior_loc, prior_log_var = prior[0].to(acc), prior[1].to(acc)
    u, _ = standardised(loc, prior_loc, prior_log_var, "log_var")
    return ((0.5 * u) * u + half_exp_excess(log_var - prior_log_var)).sum(-1)


def _kl_of_scales(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    acc = torch.float64 if loc.dtype == torch.float64 else torch.float32
    loc, scale, prior_loc, prior_scale = (x.to(acc) for x in (loc, scale, prior_loc, prior_scale))
    u, log_prior = standardised(loc, prior_loc, prior_scale, "scale")
    # r - 1, which loses no digit if the ratio r is near 1.
    relative, _ = standardised(scale, prior_scale, prior_scale, "scale")
    close = relative.detach().abs() < 0.25
    lift = lift_of(prior_scale.detach())
    ratio = ((scale * lift) / (prior_scale * lift)).detach()
    plain = ~close & (ratio > 2.0**-100) & (ratio < 2.0**100)
    lift_of_scale = lift_of(scale.detach())
    apart = (scale * lift_of_scale).log() - lift_of_scale.log() - log_prior
    # The slopes come from two logarithms, as the ratio's is rounded to zero; its value is better.
    rounded = torch.where(plain, torch.log(torch.where(plain, ratio, 1.0)) - apart, 0.0).detach()
    near_one = torch.log1p(torch.where(close, relative, 0.0))
    log_ratio = torch.where(close, near_one, apart + rounded)
    half_growth = (0.5 * relative) * (relative + 2.0)
    return ((0.5 * u) * u + half_exp_excess(2.0 * log_ratio, half_growth)).sum(-1)


@with_reference(_kl_of_scales)
def kl_of_scales(loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor) -> Tensor:
    """Return the divergence of Gaussians with these scales, shape (*batch, D) to (*batch).

    It is computed from the ratio of the scales, because the exponential of a rounded logarithm
    has many roundings if it is large.
    """
    if transforms_active():
        _gaussian_kl.check(loc, scale, prior_loc, prior_scale, True)
        return _kl_of_scales(loc, scale, prior_loc, prior_scale)
    return _gaussian_kl(loc, scale, prior_loc, prior_scale, True)


@with_reference(reference)
def gaussian_kl(
    loc: Tensor,
    log_var: Tensor,
    prior: tuple[Tensor, Tensor] | None = None,
    *,
    validate_args: bool = False,
) -> Tensor:
    r"""Evaluate KL(q || p) of diagonal Gaussians and sum it over the features.

    .. math::
        \tfrac12 \sum_d e^{v_d - v^p_d} + (\mu_d - \mu^p_d)^2 e^{-v^p_d} - 1 - (v_d - v^p_d)

    Args:
        loc: mean :math:`\mu` of q, shape (\*batch, D).
        log_var: :math:`v = \log \sigma^2` of q; broadcast with ``loc``.
        prior: ``None`` for N(0, I), or (loc, log_var) of p, broadcast to (\*batch, D).
        validate_args: check that all inputs are finite.

    Returns:
        The divergence in nats, shape (\*batch,); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or different dtypes.
        ValueError: shapes that do not broadcast, different devices.

    Example:
        >>> fastvi.ops.gaussian_kl(torch.zeros(4, 2), torch.zeros(4, 2))
        tensor([0., 0., 0., 0.])

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), appendix B,
        | https://arxiv.org/abs/1312.6114
    """
    op = "gaussian_kl"
    check_tensor(op, "loc", loc)
    check_tensor(op, "log_var", log_var)
    prior_loc, prior_log_var = check_prior(op, prior)
    if validate_args:
        check_finite(op, loc=loc, log_var=log_var)
        check_finite(op, **{"prior[0]": prior_loc, "prior[1]": prior_log_var})
    if transforms_active():
        _gaussian_kl.check(loc, log_var, prior_loc, prior_log_var)
        return reference(loc, log_var, prior)
    return _gaussian_kl(loc, log_var, prior_loc, prior_log_var, False)
