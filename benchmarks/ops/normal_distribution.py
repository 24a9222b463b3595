"""A normal distribution made and evaluated, as a user writes it, without and with the checks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    shape = sizes["B"], sizes["F"]
    return normal(*shape), normal(*shape), (0.5 * normal(*shape)).exp_()


def log_prob(package: object, validate_args: bool) -> Function:
    def run(_: int, value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        return package.Normal(loc, scale, validate_args=validate_args).log_prob(value)  # type: ignore[attr-defined]

    return run


def density(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    return -0.5 * ((value - loc) / scale).square() - scale.log() - HALF_LOG_2PI


def by_hand(compile_: Compile, _: int) -> Function:
    return compile_(density)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    each = sizes["B"] * sizes["F"] * element
    return 4 * each, 6 * each


def _work(name: str, validate_args: bool) -> OpWork:
    return OpWork(
        name=name,
        draw=draw,
        trained=(1, 2),
        fastvi=log_prob(fastvi.distributions, validate_args),
        eager=log_prob(torch.distributions, validate_args),
        # The compiler turns the checks off: it has none to show.
        compiled={"by hand": by_hand},
        traffic=traffic,
    )


NORMAL_DISTRIBUTION = _work("normal_distribution", False)
NORMAL_DISTRIBUTION_CHECKED = _work("normal_distribution_checked", True)
