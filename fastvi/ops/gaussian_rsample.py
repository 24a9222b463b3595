"""Reparameterised Gaussian samples with both log-densities, in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi._checks import check_event_dims, check_finite, check_positive, check_prior, check_tensor
from fastvi.ops._arguments import check_draw, log_scale_of, one_spread
from fastvi.ops._call import kernel, transforms_active, with_reference
from fastvi.ops._noise import standard_normal
from fastvi.ops._scales import standardised
from fastvi.ops.new_key import new_key

_gaussian_rsample = kernel("gaussian_rsample")

# The gradients of the samples' parameters: the total derivative; only the path through z
# (STL); the path, weighted by the normalised importance weights (DReG).
GRADIENTS = ("total", "path", "path_weighted")
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class _WeightPath(torch.autograd.Function):
    """The identity, whose backward scales all gradients by the weights from log_q.

    In the bound, d L / d log_q[k, b] = -w[k, b] times the gradient of L[b], so dividing by the sum
    over k leaves the normalised weight.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return z.clone(), log_q.clone(), log_p.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
        pass

    @staticmethod
    def backward(ctx, grad_z, grad_log_q, grad_log_p):  # noqa: ANN001, ANN205
        weight = path_weight(grad_log_q)
        return grad_z * weight[..., None], grad_log_q * weight, grad_log_p * weight

    @staticmethod
    def jvp(ctx, *tangents):  # noqa: ANN001, ANN002, ANN205
        raise RuntimeError(
            "gaussian_rsample: expected a reverse-mode gradient for estimator 'dreg', got a "
            "forward-mode one: its weights are known once the gradient comes back; use 'iwae'"
        )


class Together(torch.autograd.Function):
    """Return the first of two equal numbers, with the sum of both gradients.

    It is x + (y - y.detach()), except for infinities, whose difference is NaN.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
        pass

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN001
        return grad, grad

    @staticmethod
    def jvp(ctx, x_tangent: Tensor, y_tangent: Tensor) -> Tensor:  # noqa: ANN001
        return x_tangent + y_tangent


def path_weight(grad_log_q: Tensor) -> Tensor:
    """Return the normalised weights, shape (K, *batch), from the gradient of log_q."""
    total = grad_log_q.sum(0, keepdim=True)
    return torch.where(total == 0, 0.0, grad_log_q / total)


def _plain(
    loc: Tensor,
    spread: Tensor,
    kind: str,
    num_samples: int,
    key: Tensor,
    sample_offset: int,
    prior: tuple[Tensor, Tensor] | None,
    gradient: str,
    event_dims: int = 1,
    sample_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = loc.dtype
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    loc, log_sigma = torch.broadcast_tensors(loc.to(acc), log_scale_of(spread.to(acc), kind))
    batch, features = loc.shape[:-1], loc.shape[-1]
    data = math.prod(batch)
    eps = standard_normal(key, num_samples, data, features, sample_offset, sample_index)
    eps = eps.to(acc).reshape(num_samples, *loc.shape)
    sigma = spread.to(acc).expand_as(loc) if kind == "scale" else log_sigma.exp()
    z = loc + sigma * eps
    # (z - loc) / sigma is the noise; the difference itself would lose digits to loc.
    noise, log_width = eps, log_sigma
    if gradient != "total":
        # The same as a function of z alone, with constant loc and sigma.
        constant = sigma.detach().clamp(min=torch.finfo(acc).smallest_normal * torch.finfo(acc).eps)
        moved = sigma / constant if kind == "scale" else (log_sigma - log_sigma.detach()).exp()
        noise = (loc - loc.detach()) / constant + eps * moved
        log_width = log_sigma.detach()
    log_q = (-0.5 * noise) * noise - log_width - _HALF_LOG_2PI
    if event_dims == 0:
        return z.to(dtype), log_q, log_q.new_empty(0)
    log_q = log_q.sum(-1)

    def log_prior(z: Tensor, prior_loc: Tensor, prior_log_var: Tensor) -> Tensor:
        u, log_scale = standardised(z, prior_loc, prior_log_var, "log_var")
        return ((-0.5 * u) * u - log_scale - _HALF_LOG_2PI).sum(-1)

    if prior is None:
        zero = torch.zeros((), dtype=acc, device=loc.device)
        prior = (zero, zero)
    prior_loc, prior_log_var = prior[0].to(acc), prior[1].to(acc)
    if gradient == "path_weighted":
        log_p = log_prior(z, prior_loc.detach(), prior_log_var.detach())
        z, log_q, log_p = _WeightPath.apply(z, log_q, log_p)
        # A learned prior is part of the model: it keeps the plain weight.
        model = log_prior(z.detach(), prior_loc, prior_log_var)
        log_p = Together.apply(log_p, model)
    else:
        log_p = log_prior(z, prior_loc, prior_log_var)
    return z.to(dtype), log_q, log_p


def reference(
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    log_var: Tensor | None = None,
    num_samples: int | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    prior: tuple[Tensor, Tensor] | None = None,
    path_only: bool = False,
    event_dims: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`gaussian_rsample` in plain PyTorch, differentiable any number of times."""
    op = "gaussian_rsample"
    spread, kind = one_spread(op, scale, log_scale, log_var)
    num_samples, _ = check_draw(op, num_samples, sample_offset, sample_index, key)
    if key is None:
        key = new_key(loc.device)
    gradient = "path" if path_only else "total"
    return _plain(
        loc, spread, kind, num_samples, key, sample_offset, prior, gradient, event_dims,
        sample_index,
    )  # fmt: skip


def rsample(
    loc: Tensor,
    spread: Tensor,
    kind: str,
    num_samples: int,
    key: Tensor | None,
    sample_offset: int,
    prior: tuple[Tensor, Tensor] | None,
    gradient: str,
    event_dims: int = 1,
    sample_index: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`gaussian_rsample` with any of ``GRADIENTS``, for the losses."""
    if key is None:
        key = new_key(loc.device)
    prior_loc, prior_log_var = prior or (None, None)
    arguments = (
        loc, spread, kind, key, num_samples, sample_offset, prior_loc, prior_log_var, gradient,
        event_dims, sample_index,
    )  # fmt: skip
    if transforms_active():
        _gaussian_rsample.check(*arguments)
        return _plain(
            loc, spread, kind, num_samples, key, sample_offset, prior, gradient, event_dims,
            sample_index,
        )  # fmt: skip
    return _gaussian_rsample(*arguments)


@with_reference(reference)
def gaussian_rsample(
    loc: Tensor,
    *,
    scale: Tensor | None = None,
    log_scale: Tensor | None = None,
    log_var: Tensor | None = None,
    num_samples: int | None = None,
    key: Tensor | None = None,
    sample_offset: int = 0,
    sample_index: Tensor | None = None,
    prior: tuple[Tensor, Tensor] | None = None,
    path_only: bool = False,
    event_dims: int = 1,
    validate_args: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draw reparameterised samples of a diagonal Gaussian, with log q and log p in the same pass.

    .. math::
        z_k = \mu + \sigma \epsilon_k, \qquad
        \log q = \log \mathcal{N}(z_k; \mu, \sigma^2), \qquad
        \log p = \log \mathcal{N}(z_k; \mu_p, \sigma_p^2)

    The noise is a function of the key and of the place (k, b, d). The backward pass computes it
    again instead of storing it.

    Args:
        loc: mean :math:`\mu`, shape (\*batch, D). float32, float64, bfloat16 or float16.
        scale: standard deviation :math:`\sigma`. Exactly one of the three; broadcast with ``loc``.
        log_scale: :math:`\log \sigma`.
        log_var: :math:`\log \sigma^2`.
        num_samples: K; optional with a ``sample_index``.
        key: from :func:`new_key`; ``None`` draws one.
        sample_offset: the number of the first sample: samples 0..9 are those of a call for 0..4
            and a call with offset 5 for the rest.
        sample_index: the numbers of the samples, counted from the offset: int64 of shape
            (K, \*batch), in any order, with repetitions. Example b of sample k has the bits of
            sample ``sample_index[k, b]`` of the whole draw; nothing else is drawn.
        prior: ``None`` for N(0, I), or (loc, log_var), broadcast to (\*batch, D).
        path_only: hold the parameters of log q constant, so that gradients reach ``loc`` and the
            scale through z alone ("sticking the landing").
        event_dims: 1 sums the log-densities over D. 0 gives log q of each element and an empty
            log p; it takes no ``prior`` and no ``path_only``.
        validate_args: check that all inputs are finite, that ``scale`` is positive, and on any
            device that no number of ``sample_index`` is negative; a CPU always checks this.

    Returns:
        z of shape (K, \*batch, D) in the dtype of ``loc``, and log q and log p in nats, each of
        shape (K, \*batch), float32 (float64 for float64).

    Raises:
        TypeError: not floating-point, different dtypes, or a ``sample_index`` that is not int64.
        ValueError: shapes that do not broadcast, different devices, ``num_samples`` < 1, none or
            several of the three scales, negative numbers in ``sample_index``, ``event_dims``
            neither 0 nor 1.

    Example:
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> z, log_q, log_p = fastvi.ops.gaussian_rsample(loc, log_var=log_var, num_samples=16)
        >>> z.shape, log_q.shape
        (torch.Size([16, 8, 2]), torch.Size([16, 8]))

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
    """
    op = "gaussian_rsample"
    check_tensor(op, "loc", loc)
    spread, kind = one_spread(op, scale, log_scale, log_var)
    num_samples, sample_offset = check_draw(
        op, num_samples, sample_offset, sample_index, key, validate_args
    )
    check_prior(op, prior)
    check_event_dims(op, event_dims)
    if event_dims == 0 and (prior is not None or path_only):
        raise ValueError(
            f"{op}: expected event_dims to be 1 with a prior or path_only, got 0: there is no log p"
        )
    if validate_args:
        check_finite(op, loc=loc)
        check_positive(op, kind, spread)
        if prior is not None:
            check_finite(op, **{"prior[0]": prior[0], "prior[1]": prior[1]})
    gradient = "path" if path_only else "total"
    return rsample(
        loc, spread, kind, num_samples, key, sample_offset, prior, gradient, event_dims,
        sample_index,
    )  # fmt: skip
