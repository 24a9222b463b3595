"""A decoder's last layer and the Bernoulli log-likelihood under its outputs as logits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear

import fastvi
from benchmarks.ops import bernoulli_log_prob as unfused
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    hidden = normal(sizes["K"], sizes["B"], sizes["H"])
    weight = normal(sizes["F"], sizes["H"]) / sizes["H"] ** 0.5
    value = (normal(sizes["B"], sizes["F"]) > 0).to(normal(1).dtype)
    return hidden, weight, normal(sizes["F"]), value


def fused(_: int, hidden: Tensor, weight: Tensor, bias: Tensor, value: Tensor) -> Tensor:
    return fastvi.ops.linear_bernoulli_log_prob(hidden, weight, bias, value)


def eager(_: int, hidden: Tensor, weight: Tensor, bias: Tensor, value: Tensor) -> Tensor:
    return unfused.cross_entropy(value, linear(hidden, weight, bias))


def _compiled(log_prob: Function) -> Function:
    def function(hidden: Tensor, weight: Tensor, bias: Tensor, value: Tensor) -> Tensor:
        return log_prob(value, linear(hidden, weight, bias))

    def make(compile_: Compile, _: int) -> Function:
        return compile_(function)

    return make


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    hidden = sizes["K"] * sizes["B"] * sizes["H"] * element
    parameters = (sizes["F"] * sizes["H"] + sizes["F"]) * element
    value = sizes["B"] * sizes["F"] * element
    log_prob = sizes["K"] * sizes["B"] * max(element, 4)
    forward = hidden + parameters + value + log_prob
    return forward, forward + hidden + parameters


LINEAR_BERNOULLI_LOG_PROB = OpWork(
    name="linear_bernoulli_log_prob",
    draw=draw,
    trained=(0, 1, 2),
    fastvi=fused,
    eager=eager,
    compiled={
        "cross entropy": _compiled(unfused.cross_entropy),
        "softplus": _compiled(unfused.with_softplus),
        "by hand": _compiled(unfused.by_hand),
    },
    traffic=traffic,
)
