"""The Bernoulli log-likelihood of binary data under logits for each sample."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributions import Bernoulli
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    value = (normal(sizes["B"], sizes["F"]) > 0).to(normal(1).dtype)
    return value, 2.0 * normal(sizes["K"], sizes["B"], sizes["F"])


def fused(_: int, value: Tensor, logits: Tensor) -> Tensor:
    return fastvi.ops.bernoulli_log_prob(value, logits)


def eager(_: int, value: Tensor, logits: Tensor) -> Tensor:
    return Bernoulli(logits=logits, validate_args=False).log_prob(value).sum(-1)


def cross_entropy(value: Tensor, logits: Tensor) -> Tensor:
    target = value.expand_as(logits)
    return -binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)


def with_softplus(value: Tensor, logits: Tensor) -> Tensor:
    return (value * logits - softplus(logits)).sum(-1)


def by_hand(value: Tensor, logits: Tensor) -> Tensor:
    log_normaliser = logits.clamp_min(0.0) + (-logits.abs()).exp().log1p()
    return (value * logits - log_normaliser).sum(-1)


def _compiled(function: Function) -> Function:
    def make(compile_: Compile, _: int) -> Function:
        return compile_(function)

    return make


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    value = sizes["B"] * sizes["F"] * element
    logits = sizes["K"] * sizes["B"] * sizes["F"] * element
    log_prob = sizes["K"] * sizes["B"] * max(element, 4)
    return value + logits + log_prob, value + 2 * logits + log_prob


BERNOULLI_LOG_PROB = OpWork(
    name="bernoulli_log_prob",
    draw=draw,
    trained=(1,),
    fastvi=fused,
    eager=eager,
    compiled={
        "cross entropy": _compiled(cross_entropy),
        "softplus": _compiled(with_softplus),
        "by hand": _compiled(by_hand),
    },
    traffic=traffic,
)
