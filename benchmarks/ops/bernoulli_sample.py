"""Bernoulli samples with the log-probability of each row; an upstream gradient on the latter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Bernoulli
from torch.nn.functional import binary_cross_entropy_with_logits

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    return (normal(sizes["B"], sizes["D"]),)


def fused(num_samples: int, logits: Tensor) -> Tensor:
    return fastvi.ops.bernoulli_sample(logits, num_samples)[1]


def eager(num_samples: int, logits: Tensor) -> Tensor:
    q = Bernoulli(logits=logits, validate_args=False)
    return q.log_prob(q.sample(torch.Size((num_samples,)))).sum(-1)


def compared(logits: Tensor, num_samples: int) -> Tensor:
    logits = logits.expand(num_samples, *logits.shape)
    x = (torch.rand_like(logits) < logits.detach().sigmoid()).to(logits.dtype)
    return -binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def by_hand(compile_: Compile, num_samples: int) -> Function:
    compiled = compile_(compared)
    return lambda logits: compiled(logits, num_samples)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    """Without the samples, which nobody asks for here."""
    logits = sizes["B"] * sizes["D"] * element
    log_q = sizes["K"] * sizes["B"] * max(element, 4)
    return logits + log_q, 2 * logits + log_q


BERNOULLI_SAMPLE = OpWork(
    name="bernoulli_sample",
    draw=draw,
    trained=(0,),
    fastvi=fused,
    eager=eager,
    compiled={"by hand": by_hand},
    traffic=traffic,
)
