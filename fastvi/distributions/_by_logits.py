"""The negative binomial log-density from a total count and log-odds, for every finite pair of them.

The kernel takes a mean. With torch's parameters the mean, :math:`\\theta e^\\ell`, is often outside
of its type's range, and the gradient by :math:`\\theta` would be a difference of two numbers that
cancel. So the gradient is computed by the given parameters. If the mean is out of range, the
density is computed at the mean that fits the count best, minus a deviance:

.. math::
    \\log p(x) = \\log \\mathrm{NB}(x; \\mu = x, \\theta)
                 - (x + \\theta)\\, \\mathrm{KL}(x / (x + \\theta) \\,\\|\\, \\sigma(\\ell))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastvi import ops
from fastvi._modes import records_graphs
from fastvi.distributions._fused import can_look, evaluate
from fastvi.ops._event import sum_event

# The numbers of terms of the two series; the last term is below 2^-53 of the first.
_EXPONENTIAL_TERMS = 18
_LOGARITHM_TERMS = 16


def log_prob_of_logits(value: Tensor, theta: Tensor, logits: Tensor, event_dims: int) -> Tensor:
    """Return the log-density in nats, summed over ``event_dims`` trailing dimensions."""
    acc = _accumulation(theta)
    value, theta, logits = value.to(acc), theta.to(acc), logits.to(acc)
    if has_mean(theta, logits):
        by_kernel = _LogProb.apply if records_graphs() else _evaluate
        return by_kernel(value, theta, logits, event_dims)
    return sum_event(elementwise(value, theta, logits), event_dims)


def has_mean(theta: Tensor, logits: Tensor) -> bool:
    """Return whether every mean is known to be a normal number, and its dispersion too."""
    if not can_look(theta) or (theta.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    info = torch.finfo(theta.dtype)
    odds, theta = logits.detach().exp(), theta.detach()
    least, most = (theta * odds).aminmax()
    return (
        least.item() >= info.tiny
        and most.item() < info.max / 4
        and info.tiny <= odds.amin().item()
        and odds.amax().item() < info.max**0.75
        and theta.amin().item() >= info.tiny**0.5
        and theta.amax().item() < info.max / 4
    )


def elementwise(value: Tensor, theta: Tensor, logits: Tensor, *, plain: bool = False) -> Tensor:
    """Return the log-density of each element, with all derivatives; ``plain`` uses no kernel."""
    acc = _accumulation(theta)
    value, theta, logits = torch.broadcast_tensors(value.to(acc), theta.to(acc), logits.to(acc))
    some = value > 0
    # The numbers that replace a count of zero, or a total count of zero, are not used.
    count, total = torch.where(some, value, 1.0), torch.where(theta > 0, theta, 1.0)
    op = ops.negative_binomial_log_prob
    if plain:
        best = op.reference(count, count, total, event_dims=0)  # type: ignore[attr-defined]
    else:
        best = evaluate(op, count, count, total, event_dims=0)
    wide = logits.double()
    found = best - deviance(count.double(), total.double(), wide).to(acc)
    found = torch.where(theta > 0, found, torch.where(theta == 0, -torch.inf, torch.nan))
    none = (theta.double() * logsigmoid(-wide)).to(acc)
    return torch.where(some, found, torch.where(value == 0, none, torch.nan))


def _accumulation(theta: Tensor) -> torch.dtype:
    return torch.float64 if theta.dtype == torch.float64 else torch.float32


def deviance(count: Tensor, theta: Tensor, logits: Tensor) -> Tensor:
    """Return (x + θ) KL(x/(x + θ) ‖ σ(ℓ)), half of the deviance, for x > 0 and θ > 0."""
    total, swap = count + theta, count > theta
    part, rest = torch.where(swap, theta, count), torch.where(swap, count, theta)
    log_ratio = part.log() - rest.log()
    # The logarithms of the shares x/(x + θ) and θ/(x + θ).
    more = -(part / rest).log1p()
    less = log_ratio + more
    far = part * (less - logsigmoid(torch.where(swap, -logits, logits))) + rest * (
        more - logsigmoid(torch.where(swap, logits, -logits))
    )
    # The distance of the smaller share's log-odds from those that fit best.
    delta = torch.where(swap, -logits, logits) - log_ratio
    # Near the best fit, terms of first order cancel. With the smaller share, y, the rest is exact.
    d = delta.clamp(-1.0, 1.0)
    u = part / total * d.expm1()
    near = part * _exponential_rest(d) - total * _logarithm_rest(u)
    return torch.where(delta.abs() < 1, near, far)


def _exponential_rest(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x, for x of at most 1."""
    rest = torch.ones_like(x)
    for n in range(_EXPONENTIAL_TERMS, 2, -1):
        rest = 1 + rest * x / n
    return 0.5 * x * x * rest


def _logarithm_rest(u: Tensor) -> Tensor:
    """Return u - log(1 + u), for u from -0.32 to 0.86, by the series of atanh."""
    s = u / (2 + u)
    square = s * s
    rest = torch.zeros_like(s)
    for n in range(2 * _LOGARITHM_TERMS + 1, 1, -2):
        rest = rest * square + 1 / n
    return s * (u - 2 * square * rest)


def _evaluate(value: Tensor, theta: Tensor, logits: Tensor, event_dims: int) -> Tensor:
    mean = theta * logits.exp()
    return ops.negative_binomial_log_prob(value, mean, theta, event_dims=event_dims)


class _LogProb(torch.autograd.Function):
    """Compute the kernel's density, with the gradient by total count and log-odds."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, theta: Tensor, logits: Tensor, event_dims: int) -> Tensor:
        ctx.save_for_backward(value, theta, logits)
        ctx.event_dims = event_dims
        return _evaluate(value, theta, logits, event_dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or needed[0]:
            return *_gradients(ctx.saved_tensors, needed, grad, ctx.event_dims), None
        value, theta, logits = ctx.saved_tensors
        each = grad.reshape(*grad.shape, *[1] * ctx.event_dims)
        of_theta = of_logits = None
        if needed[2]:
            of_logits = each * (value * (-logits).sigmoid() - theta * logits.sigmoid())
            of_logits = of_logits.sum_to_size(logits.shape)
        if needed[1]:
            # At the mean that fits best, no part of the kernel's derivative cancels.
            with torch.enable_grad():
                leaf = theta.detach().requires_grad_()
                best = ops.negative_binomial_log_prob(value, value, leaf, event_dims=ctx.event_dims)
            (of_theta,) = torch.autograd.grad(best, leaf, grad)
            rest = each * ((value / theta).log1p() + logsigmoid(-logits))
            of_theta = of_theta + rest.sum_to_size(theta.shape)
        return None, of_theta, of_logits, None


def _gradients(
    saved: tuple[Tensor, ...], needed: tuple[bool, ...], grad: Tensor, event_dims: int
) -> list[Tensor | None]:
    """Return the gradients of :func:`elementwise`, which may be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # An input may be a function of another, but here each is an independent variable.
        inputs = [
            x.view_as(x) if again else x.detach().requires_grad_(wanted)
            for x, wanted in zip(saved, needed, strict=True)
        ]
        log_prob = sum_event(elementwise(*inputs, plain=again), event_dims)
    wanted = [x for x, each in zip(inputs, needed, strict=True) if each]
    found = iter(torch.autograd.grad(log_prob, wanted, grad, create_graph=again))
    return [next(found) if each else None for each in needed]
