"""The Bernoulli log-density from probabilities, in blocks, so that few log-odds are in memory.

Probabilities that a network computes, as by a sigmoid, are as large as the logits would be. A block
of them is turned into log-odds and evaluated while it is in cache, in the forward and the backward
pass. The derivative is :math:`x/p - (1 - x)/(1 - p)`, without the log-odds, and 0 if torch clamps
the probability.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits

from fastvi import ops
from fastvi._modes import records_graphs
from fastvi.ops._call import transforms_active, with_reference
from fastvi.ops._event import sum_event

# The number of elements in a block: half a mebibyte in float32.
_BLOCK = 2**17


# In four passes, but they can be differentiated any number of times.
_log_odds = functools.partial(probs_to_logits, is_binary=True)


@with_reference(_log_odds)
def log_odds(probs: Tensor) -> Tensor:
    """Return the log-odds in one pass, of probabilities clamped as in torch."""
    return torch.logit(probs, eps=torch.finfo(probs.dtype).eps)


def clamped(probs: Tensor) -> Tensor:
    """Return the probabilities, kept away from 0 and 1 as in torch."""
    eps = torch.finfo(probs.dtype).eps
    return probs.clamp(eps, 1.0 - eps)


def reference(value: Tensor, probs: Tensor, *, event_dims: int) -> Tensor:
    """Compute :func:`log_prob_of_probs` in plain PyTorch, differentiable any number of times."""
    acc = torch.float64 if probs.dtype == torch.float64 else torch.float32
    x, p = value.to(acc), clamped(probs).to(acc)
    return sum_event(x * p.log() + (1.0 - x) * (-p).log1p(), event_dims)


def blocks_of(value: Tensor, probs: Tensor, event_dims: int) -> int:
    """Return how many leading places of ``probs`` make a block; 0 if blocks cannot be used."""
    whole = (
        probs.ndim > max(event_dims, 1)
        and value.ndim <= probs.ndim
        and probs.numel() > 2 * _BLOCK
        and probs.is_contiguous()
        and probs.device.type == "cpu"
        and probs.dtype in (torch.float32, torch.float64)
        and not value.requires_grad
    )
    if not whole or torch.broadcast_shapes(value.shape, probs.shape) != probs.shape:
        return 0
    return max(1, _BLOCK * len(probs) // probs.numel())


@with_reference(reference)
def log_prob_of_probs(
    value: Tensor, probs: Tensor, logits: Tensor | None, event_dims: int
) -> Tensor:
    """Return the log-probability in nats, summed over ``event_dims`` trailing dimensions.

    ``logits`` are those of the probabilities, if they exist already.
    """
    if torch.compiler.is_compiling() or transforms_active():
        return reference(value, probs, event_dims=event_dims)
    block = 0 if logits is not None else blocks_of(value, probs, event_dims)
    logits = None if logits is None else logits.detach()
    if not records_graphs():
        return _evaluate(value, probs, logits, event_dims, block)
    return _LogProb.apply(value, probs, logits, event_dims, block)


def _parts(value: Tensor, probs: Tensor, block: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield blocks of both tensors, with their place.

    The results of all blocks use the same memory: new memory for each would cost more time.
    """
    follows = value.ndim == probs.ndim and value.shape[0] > 1
    for begin in range(0, len(probs), block):
        place = slice(begin, begin + block)
        yield place, value[place] if follows else value, probs[place]


def _evaluate(
    value: Tensor, probs: Tensor, logits: Tensor | None, event_dims: int, block: int
) -> Tensor:
    if block == 0:
        logits = log_odds(probs) if logits is None else logits
        return ops.bernoulli_log_prob(value, logits, event_dims=event_dims)
    result = probs.new_empty(probs.shape[: probs.ndim - event_dims])
    room = torch.empty_like(probs[:block])
    eps = torch.finfo(probs.dtype).eps
    for place, x, p in _parts(value, probs, block):
        logits = torch.logit(p, eps=eps, out=room[: len(p)])
        result[place] = ops.bernoulli_log_prob(x, logits, event_dims=event_dims)
    return result


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, probs: Tensor, logits: Tensor | None, event_dims: int, block: int
    ) -> Tensor:
        ctx.save_for_backward(value, probs)
        ctx.event_dims, ctx.block = event_dims, block
        return _evaluate(value, probs, logits, event_dims, block)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        value, probs = ctx.saved_tensors
        if torch.is_grad_enabled():  # so that it may be differentiated again
            again = _gradients(value, probs, ctx.needs_input_grad, grad, ctx.event_dims)
            return *again, None, None, None
        grad = grad.reshape(*grad.shape, *[1] * ctx.event_dims)
        of_value = None
        if ctx.needs_input_grad[0]:
            of_value = (grad * log_odds(probs)).sum_to_size(value.shape).to(value.dtype)
        if not ctx.needs_input_grad[1]:
            return of_value, None, None, None, None
        if ctx.block == 0:
            shape = torch.broadcast_shapes(value.shape, probs.shape)
            wide = probs.to(grad.dtype).expand(shape)
            found = _derivative(value.to(grad.dtype), wide, torch.empty_like(wide), probs.dtype)
            of_probs = (found * grad).sum_to_size(probs.shape).to(probs.dtype)
            return of_value, of_probs, None, None, None
        result = torch.empty_like(probs)
        for place, x, p in _parts(value, probs, ctx.block):
            _derivative(x, p, result[place], p.dtype).mul_(grad[place])
        return of_value, result, None, None, None


def _derivative(value: Tensor, probs: Tensor, room: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the derivative by the probabilities, with one rounding for outcomes 0 and 1."""
    eps = torch.finfo(dtype).eps
    found = torch.div(value, probs, out=room)
    found.addcdiv_(value - 1.0, 1.0 - probs)
    return found.masked_fill_((probs < eps) | (probs > 1.0 - eps), 0.0)


def _gradients(
    value: Tensor, probs: Tensor, needed: tuple[bool, ...], grad: Tensor, event_dims: int
) -> list[Tensor | None]:
    """Return the gradients of :func:`reference`, which may be differentiated again."""
    # One may be a function of the other, but here both are independent variables.
    inputs = [value.view_as(value), probs.view_as(probs)]
    log_prob = reference(*inputs, event_dims=event_dims)
    wanted = [x for x, each in zip(inputs, needed, strict=False) if each]
    found = iter(torch.autograd.grad(log_prob, wanted, grad, create_graph=True))
    return [next(found) if each else None for each in needed[:2]]
