"""The importance-weighted lower bound: log-mean-exp over K, in one pass."""

from __future__ import annotations

import math
from typing import Any, overload

import torch
from torch import Tensor

from fastvi.ops._arguments import check_tensor
from fastvi.ops._call import kernel, transforms_active, with_reference

_iwlb = kernel("iwlb")


def reference(
    log_w: Tensor,
    *terms: Tensor,
    dim: int = 0,
    alpha: float = 0.0,
) -> Tensor:
    """Compute :func:`iwlb` in plain PyTorch, differentiable any number of times."""
    if terms:
        log_pz, log_qz = terms
        log_w = log_w + log_pz - log_qz
    if log_w.dtype in (torch.float16, torch.bfloat16):
        log_w = log_w.float()
    if alpha == 1.0:
        return log_w.mean(dim)
    bound = torch.logsumexp((1.0 - alpha) * log_w, dim) - math.log(log_w.shape[dim])
    return bound / (1.0 - alpha)


def _check_numbers(dim: object, alpha: object) -> None:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"iwlb: expected dim to be an int, got {type(dim).__name__}")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError(f"iwlb: expected alpha to be a float, got {type(alpha).__name__}")


@overload
def iwlb(log_w: Tensor, dim: int = 0, alpha: float = 0.0) -> Tensor: ...
@overload
def iwlb(
    log_w: Tensor, log_pz: Tensor, log_qz: Tensor, /, *, dim: int = 0, alpha: float = 0.0
) -> Tensor: ...
@with_reference(reference)
def iwlb(log_w: Tensor, *rest: Any, dim: int = 0, alpha: float = 0.0) -> Tensor:
    r"""Reduce log-weights to the importance-weighted lower bound.

    .. math::
        L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k, \qquad
        L_K^{(\alpha)} = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^{K} w_k^{1 - \alpha}

    The gradient with respect to ``log_w`` is the normalised weight
    :math:`\tilde w_k = \operatorname{softmax}_k (1 - \alpha) \log w_k`. A column of nothing but
    ``-inf`` gives ``-inf`` and a zero gradient.

    Args:
        log_w: log-weights in nats, shape (K, \*batch). Or three terms in its place,
            ``iwlb(log_px, log_pz, log_qz)``, for ``log_px + log_pz - log_qz`` in the same pass.
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
    terms: tuple[Tensor, ...] = ()
    if rest and isinstance(rest[0], Tensor):
        terms = rest
        if len(terms) != 2:
            raise TypeError(
                f"iwlb: expected log_w alone or log_px, log_pz, log_qz, got {1 + len(rest)} tensors"
            )
    elif rest:
        # iwlb(log_w, dim, alpha), by position.
        if len(rest) > 2:
            raise TypeError(f"iwlb: expected at most log_w, dim and alpha, got {1 + len(rest)}")
        dim, alpha = rest if len(rest) == 2 else (rest[0], alpha)
    check_tensor("iwlb", "log_w", log_w)
    if terms:
        check_tensor("iwlb", "log_pz", terms[0])
        check_tensor("iwlb", "log_qz", terms[1])
    if type(dim) is not int or type(alpha) is not float:
        _check_numbers(dim, alpha)
    ndim = log_w.ndim
    if not -ndim <= dim < ndim:
        raise ValueError(
            f"iwlb: expected dim to be a dimension of log_w, shape {tuple(log_w.shape)}, got {dim}"
        )
    if transforms_active():
        return reference(log_w, *terms, dim=dim, alpha=alpha)
    dim %= ndim
    last = dim == ndim - 1 and ndim > 1
    if dim != 0 and not last:
        log_w = log_w.movedim(dim, 0)
        terms = tuple(term.movedim(dim, 0) if term.ndim == ndim else term for term in terms)
    log_pz, log_qz = terms or (None, None)
    return _iwlb(log_w, log_pz, log_qz, last, float(alpha))[0]
