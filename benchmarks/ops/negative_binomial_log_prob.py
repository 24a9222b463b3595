"""The negative binomial log-likelihood of gene counts, with a dispersion for each gene."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    """Counts of which most are 0, means, and the logarithm of the dispersions."""
    counts = (2.0 * normal(sizes["B"], sizes["F"])).exp().mul_(0.3).floor_()
    mean = normal(sizes["K"], sizes["B"], sizes["F"]).exp_()
    return counts, mean, normal(sizes["F"])


def fused(_: int, value: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    return fastvi.ops.negative_binomial_log_prob(value, mean, log_dispersion=log_dispersion)


def density(value: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """As scvi-tools writes it, but for the epsilons: it is the formula that people copy."""
    theta = log_dispersion.exp()
    log_total = torch.log(theta + mean)
    return (
        theta * (torch.log(theta) - log_total)
        + value * (torch.log(mean) - log_total)
        + torch.lgamma(value + theta)
        - torch.lgamma(theta)
        - torch.lgamma(value + 1)
    ).sum(-1)


def eager(_: int, value: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    return density(value, mean, log_dispersion)


def by_hand(compile_: Compile, _: int) -> Function:
    return compile_(density)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    value = sizes["B"] * sizes["F"] * element
    mean = sizes["K"] * value
    dispersion = sizes["F"] * element
    log_prob = sizes["K"] * sizes["B"] * max(element, 4)
    return value + mean + dispersion + log_prob, value + 2 * mean + 2 * dispersion + log_prob


NEGATIVE_BINOMIAL_LOG_PROB = OpWork(
    name="negative_binomial_log_prob",
    draw=draw,
    trained=(1, 2),
    fastvi=fused,
    eager=eager,
    compiled={"by hand": by_hand},
    traffic=traffic,
)
