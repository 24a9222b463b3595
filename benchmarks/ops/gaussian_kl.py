"""The closed-form KL divergence of a diagonal Gaussian from N(0, I)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributions import Normal, kl_divergence

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork

PRIOR = Normal(0.0, 1.0, validate_args=False)


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    shape = (sizes["B"], sizes["D"])
    return normal(*shape), 0.5 * normal(*shape)


def fused(_: int, loc: Tensor, log_var: Tensor) -> Tensor:
    return fastvi.ops.gaussian_kl(loc, log_var)


def eager(_: int, loc: Tensor, log_var: Tensor) -> Tensor:
    q = Normal(loc, (0.5 * log_var).exp(), validate_args=False)
    return kl_divergence(q, PRIOR).sum(-1)


def divergence(loc: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (log_var.exp() + loc.square() - 1.0 - log_var).sum(-1)


def by_hand(compile_: Compile, _: int) -> Function:
    return compile_(divergence)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    inputs = 2 * sizes["B"] * sizes["D"] * element
    kl = sizes["B"] * max(element, 4)
    return inputs + kl, 2 * inputs + kl


GAUSSIAN_KL = OpWork(
    name="gaussian_kl",
    draw=draw,
    trained=(0, 1),
    fastvi=fused,
    eager=eager,
    compiled={"by hand": by_hand},
    traffic=traffic,
)
