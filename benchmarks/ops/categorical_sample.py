"""Samples of classes with their log-probabilities; an upstream gradient on the latter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Categorical

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    return (normal(sizes["B"], sizes["C"]),)


def fused(num_samples: int, logits: Tensor) -> Tensor:
    return fastvi.ops.categorical_sample(logits, num_samples)[1]


def eager(num_samples: int, logits: Tensor) -> Tensor:
    q = Categorical(logits=logits, validate_args=False)
    return q.log_prob(q.sample(torch.Size((num_samples,))))


def race(logits: Tensor, num_samples: int) -> Tensor:
    """The class whose exponential clock rings first, which the compiler can fuse."""
    normalised = logits.log_softmax(-1)
    with torch.no_grad():
        clocks = torch.empty((num_samples, *logits.shape), device=logits.device).exponential_()
        x = (normalised.exp() / clocks).argmax(-1)
    return normalised.expand(num_samples, *logits.shape).gather(-1, x[..., None])[..., 0]


def by_hand(compile_: Compile, num_samples: int) -> Function:
    compiled = compile_(race)
    return lambda logits: compiled(logits, num_samples)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    """Without the classes, which nobody asks for here."""
    logits = sizes["B"] * sizes["C"] * element
    log_q = sizes["K"] * sizes["B"] * max(element, 4)
    return logits + log_q, 2 * logits + log_q


CATEGORICAL_SAMPLE = OpWork(
    name="categorical_sample",
    draw=draw,
    trained=(0,),
    fastvi=fused,
    eager=eager,
    compiled={"by hand": by_hand},
    traffic=traffic,
)
