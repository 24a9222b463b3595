"""The Bernoulli log-density from probabilities, in blocks: their log-odds never exist as a whole.

Probabilities that a network computes, as by a sigmoid, are as large as the logits would be. A block
of them is turned into log-odds, evaluated, and dropped while it is in cache; backward again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import probs_to_logits

from fastvi import ops
from fastvi.ops._call import transforms_active, with_reference
from fastvi.ops.bernoulli_log_prob import reference

# Elements of a block: half a mebibyte in float32.
_BLOCK = 2**17


# In four passes, but they can be differentiated any number of times.
_log_odds = functools.partial(probs_to_logits, is_binary=True)


@with_reference(_log_odds)
def log_odds(probs: Tensor) -> Tensor:
    """The log-odds in one pass, of probabilities clamped as torch does it."""
    return torch.logit(probs, eps=torch.finfo(probs.dtype).eps)


def blocks_of(value: Tensor, probs: Tensor, event_dims: int) -> int:
    """How many leading places of ``probs`` make a block; 0 where blocks do not serve."""
    whole = (
        probs.ndim > max(event_dims, 1)
        and value.ndim <= probs.ndim
        and probs.numel() > 2 * _BLOCK
        and probs.is_contiguous()
        and probs.device.type == "cpu"
        and probs.dtype in (torch.float32, torch.float64)
        and not value.requires_grad
        and not torch.compiler.is_compiling()
        and not transforms_active()
    )
    if not whole or torch.broadcast_shapes(value.shape, probs.shape) != probs.shape:
        return 0
    return max(1, _BLOCK * len(probs) // probs.numel())


def log_prob_of_probs(value: Tensor, probs: Tensor, event_dims: int, block: int) -> Tensor:
    """The log-probability in nats, summed over ``event_dims`` trailing dimensions."""
    return _LogProb.apply(value, probs, event_dims, block)


def _parts(value: Tensor, probs: Tensor, block: int) -> Any:
    """Blocks of the two, with their place.

    What is made of one goes where there is room: fresh memory for each costs more than the numbers.
    """
    follows = value.ndim == probs.ndim and value.shape[0] > 1
    for begin in range(0, len(probs), block):
        place = slice(begin, begin + block)
        yield place, value[place] if follows else value, probs[place]


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, probs: Tensor, event_dims: int, block: int) -> Tensor:
        ctx.save_for_backward(value, probs)
        ctx.event_dims, ctx.block = event_dims, block
        result = probs.new_empty(probs.shape[: probs.ndim - event_dims])
        room = torch.empty_like(probs[:block])
        eps = torch.finfo(probs.dtype).eps
        for place, x, p in _parts(value, probs, block):
            logits = torch.logit(p, eps=eps, out=room[: len(p)])
            result[place] = ops.bernoulli_log_prob(x, logits, event_dims=event_dims)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        value, probs = ctx.saved_tensors
        eps = torch.finfo(probs.dtype).eps
        if torch.is_grad_enabled():  # so it may be differentiated again
            probs = probs.view_as(probs)
            logits = _log_odds(probs)
            log_prob = reference(value, logits, event_dims=ctx.event_dims)
            (result,) = torch.autograd.grad(log_prob, probs, grad, create_graph=True)
            return None, result, None, None
        result = torch.empty_like(probs)
        grad = grad.reshape(*grad.shape, *[1] * ctx.event_dims)
        for place, x, p in _parts(value, probs, ctx.block):
            # d/d logit is x - p; the logit's own derivative is 0 where it was clamped.
            through = torch.sub(x, p, out=result[place]).mul_(grad[place])
            torch.ops.aten.logit_backward.grad_input(through, p, eps, grad_input=through)
        return None, result, None, None
