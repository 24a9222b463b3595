"""The importance-weighted lower bound: log-mean-exp over K."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    return (3.0 * normal(sizes["K"], sizes["B"]) - 90.0,)


def fused(_: int, log_w: Tensor) -> Tensor:
    return fastvi.ops.iwlb(log_w)


def eager(num_samples: int, log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(num_samples)


def logsumexp(compile_: Compile, num_samples: int) -> Function:
    log_samples = math.log(num_samples)

    def run(log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - log_samples

    return compile_(run)


def by_hand(compile_: Compile, num_samples: int) -> Function:
    log_samples = math.log(num_samples)

    def run(log_w: Tensor) -> Tensor:
        largest = log_w.detach().amax(0)
        return (log_w - largest).exp().sum(0).log() + (largest - log_samples)

    return compile_(run)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    log_w = sizes["K"] * sizes["B"] * element
    bound = sizes["B"] * max(element, 4)
    return log_w + bound, 2 * log_w + 2 * bound


IWLB = OpWork(
    name="iwlb",
    draw=draw,
    trained=(0,),
    fastvi=fused,
    eager=eager,
    compiled={"logsumexp": logsumexp, "by hand": by_hand},
    traffic=traffic,
)
