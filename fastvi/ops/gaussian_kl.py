"""The Kullback-Leibler divergence between diagonal Gaussians, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi.ops._arguments import check_finite, check_prior, check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference

_gaussian_kl = kernel("gaussian_kl")


def reference(loc: Tensor, log_var: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute :func:`gaussian_kl` in plain PyTorch, differentiable any number of times."""
    acc = torch.float64 if loc.dtype == torch.float64 else torch.float32
    loc, log_var = loc.to(acc), log_var.to(acc)
    if prior is None:
        terms = log_var.exp() + loc**2 - 1.0 - log_var
    else:
        prior_loc, prior_log_var = prior[0].to(acc), prior[1].to(acc)
        gap = log_var - prior_log_var
        terms = gap.exp() + (loc - prior_loc) ** 2 * torch.exp(-prior_log_var) - 1.0 - gap
    return 0.5 * terms.sum(-1)


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
    return _gaussian_kl(loc, log_var, prior_loc, prior_log_var)
