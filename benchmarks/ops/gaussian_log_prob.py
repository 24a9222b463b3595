"""The Gaussian log-likelihood with a learned scale for each feature."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from torch.distributions import Normal

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork

LOG_2PI = math.log(2.0 * math.pi)


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    value = normal(sizes["B"], sizes["F"])
    return value, normal(sizes["K"], sizes["B"], sizes["F"]), 0.5 * normal(sizes["F"])


def fused(_: int, value: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    return fastvi.ops.gaussian_log_prob(value, loc, log_var=log_var)


def eager(_: int, value: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    scale = (0.5 * log_var).exp()
    return Normal(loc, scale, validate_args=False).log_prob(value).sum(-1)


def density(value: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    """The least arithmetic: the normaliser leaves the sum over K and B."""
    scaled = ((value - loc).square() * (-log_var).exp()).sum(-1)
    return -0.5 * (scaled + log_var.sum(-1) + value.shape[-1] * LOG_2PI)


def by_hand(compile_: Compile, _: int) -> Function:
    return compile_(density)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    loc = sizes["K"] * sizes["B"] * sizes["F"] * element
    value = sizes["B"] * sizes["F"] * element
    log_var = sizes["F"] * element
    log_prob = sizes["K"] * sizes["B"] * max(element, 4)
    return value + loc + log_var + log_prob, value + 2 * loc + 2 * log_var + log_prob


GAUSSIAN_LOG_PROB = OpWork(
    name="gaussian_log_prob",
    draw=draw,
    trained=(1, 2),
    fastvi=fused,
    eager=eager,
    compiled={"by hand": by_hand},
    traffic=traffic,
)
