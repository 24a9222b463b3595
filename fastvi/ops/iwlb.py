"""The importance-weighted lower bound: log-mean-exp over K, in one pass."""

from __future__ import annotations

import math
from typing import Any, overload

import torch
from torch import Tensor

from fastvi._checks import check_float, check_integer, check_tensor, plain
from fastvi.ops._call import kernel, transforms_active, with_reference

_iwlb = kernel("iwlb")


def _of_weights(log_w: Any, dim: Any = 0, alpha: Any = 0.0) -> tuple[Any, None, None, Any, Any]:
    return log_w, None, None, dim, alpha


def _of_terms(
    log_px: Any, log_pz: Any, log_qz: Any, *, dim: Any = 0, alpha: Any = 0.0
) -> tuple[Any, Any, Any, Any, Any]:
    return log_px, log_pz, log_qz, dim, alpha


_TERMS = ("log_px", "log_pz", "log_qz")


def _parse(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any, Any, int, float]:
    """Return the arguments of either form, which has a second tensor, names of terms or neither."""
    second = len(args) > 1 and isinstance(args[1], Tensor)
    of_terms = second or (bool(named) and any(name in named for name in _TERMS))
    try:
        x, z, q, dim, alpha = (_of_terms if of_terms else _of_weights)(*args, **named)
    except TypeError:
        names = "".join(f", {name}" for name in named)
        raise TypeError(
            "iwlb: expected (log_w, dim=0, alpha=0.0) or (log_px, log_pz, log_qz, *, dim=0, "
            f"alpha=0.0), got {len(args)} by position{names}"
        ) from None
    check_tensor("iwlb", "log_px" if of_terms else "log_w", x)
    if of_terms:
        check_tensor("iwlb", "log_pz", z)
        check_tensor("iwlb", "log_qz", q)
    if type(dim) is not int or type(alpha) is not float:
        dim, alpha = _numbers(dim, alpha)
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(
            f"iwlb: expected dim to be a dimension of log_w, shape {tuple(x.shape)}, got {dim}"
        )
    return x, z, q, dim, alpha


def _numbers(dim: object, alpha: object) -> tuple[int, float]:
    alpha = plain(alpha)
    check_integer("iwlb", "dim", dim)
    check_float("iwlb", "alpha", alpha)
    return int(dim), float(alpha)  # type: ignore


# As in csrc/iwlb/iwlb.cpp.
_NEAR = 0.125


def _plain(
    log_w: Tensor, log_pz: Tensor | None, log_qz: Tensor | None, dim: int, alpha: float
) -> Tensor:
    result = torch.float64 if log_w.dtype == torch.float64 else torch.float32
    # Near alpha = 1 the powers, and their roundings, are divided by a small number.
    acc = torch.float64 if 0.0 < abs(1.0 - alpha) <= _NEAR else result
    log_w = log_w.to(acc)
    if log_pz is not None and log_qz is not None:
        log_w = log_w + log_pz.to(acc) - log_qz.to(acc)
    # The dominant sample. If it makes the bound -inf, no direction improves the bound: its column
    # becomes 0, and has the gradient of a constant.
    numbers = log_w.detach()
    extreme = (numbers.amax if alpha < 1.0 else numbers.amin)(dim, keepdim=True)
    impossible = extreme == -math.inf
    log_w = log_w.masked_fill(impossible, 0.0)
    if alpha == 1.0:
        bound = log_w.mean(dim)
    elif alpha == 0.0:
        # The distance from the largest gives an exact weight, and the distance from a rounded
        # logsumexp does not.
        shift = extreme.masked_fill(impossible, 0.0)
        log_mean = (log_w - shift).exp().sum(dim).log() - math.log(log_w.shape[dim])
        shift = shift.squeeze(dim)
        bound = torch.where(shift == math.inf, shift, shift + log_mean)
    else:
        bound = _renyi(log_w, extreme.masked_fill(impossible, 0.0), dim, 1.0 - alpha)
    return bound.masked_fill(impossible.squeeze(dim), -math.inf).to(result)


def _renyi(log_w: Tensor, shift: Tensor, dim: int, c: float) -> Tensor:
    """Return the log of the mean of exp(c log w), over c; ``shift`` is log w at the largest."""
    scaled = c * (log_w - shift)
    log_mean = torch.log(scaled.exp().mean(dim))
    # Near alpha = 1 all powers are close to 1, and only their distances from 1 are exact. The slope
    # stays the logarithm's, because that of expm1 is its result plus 1, which loses a small weight.
    constant = log_mean.detach()
    below = scaled.detach().expm1().mean(dim)
    near = below > -0.5
    log_mean = log_mean + torch.where(
        near, torch.log1p(torch.where(near, below, 0.0)) - constant, 0.0
    )
    shift = shift.squeeze(dim)
    return torch.where(shift == math.inf, shift, shift + log_mean / c)


def reference(*args: Any, **named: Any) -> Tensor:
    """Compute :func:`iwlb` in plain PyTorch, differentiable any number of times."""
    return _plain(*_parse(args, named))


@overload
def iwlb(log_w: Tensor, dim: int = 0, alpha: float = 0.0) -> Tensor: ...
@overload
def iwlb(
    log_px: Tensor, log_pz: Tensor, log_qz: Tensor, *, dim: int = 0, alpha: float = 0.0
) -> Tensor: ...
@with_reference(reference)
def iwlb(*args: Any, **named: Any) -> Tensor:
    r"""Reduce log-weights to the importance-weighted lower bound.

    .. math::
        L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k, \qquad
        L_K^{(\alpha)} = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^{K} w_k^{1 - \alpha}

    The gradient with respect to ``log_w`` is the normalised weight
    :math:`\tilde w_k = \operatorname{softmax}_k (1 - \alpha) \log w_k`. If the bound is
    ``-inf`` its gradient is zero: for a column of ``-inf`` only and, if ``alpha`` is 1 or more, for
    one with a single sample of ``-inf``.

    Args:
        log_w: log-weights in nats, shape (K, \*batch). Or three terms instead,
            ``iwlb(log_px, log_pz, log_qz)``, by position or by name, for
            ``log_px + log_pz - log_qz`` in the same pass.
        dim: the dimension of the K samples.
        alpha: order of the Rényi bound: 0 is the IWLB, 1 the ELBO.

    Returns:
        The bound in nats, shape (\*batch,); float32, or float64 for float64.

    Raises:
        TypeError: not floating-point, or terms of different dtypes.
        ValueError: K = 0, terms of different shapes or devices, an alpha that is not finite.

    Example:
        >>> log_w = torch.tensor([[0.0], [math.log(3.0)]])
        >>> fastvi.ops.iwlb(log_w)
        tensor([0.6931])

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | Rényi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311
    """
    log_w, log_pz, log_qz, dim, alpha = _parse(args, named)
    terms = (log_w, log_pz, log_qz)
    last = False
    if dim != 0:
        ndim = log_w.ndim
        first = dim % ndim
        last = first == ndim - 1 and ndim > 1
        if first != 0 and not last:
            terms = tuple(
                x.movedim(dim, 0) if x is not None and x.ndim == ndim else x for x in terms
            )
    if transforms_active():
        _iwlb.check(*terms, last, alpha)
        return _plain(log_w, log_pz, log_qz, dim, alpha)
    return _iwlb(*terms, last, alpha)[0]
