"""The bound without each sample: the [K, K] form in eager, by hand in O(K) for the compiler."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    return (3.0 * normal(sizes["K"], sizes["B"]) - 90.0,)


def fused(_: int, log_w: Tensor) -> Tensor:
    return fastvi.ops.leave_one_out(log_w)


def eager(num_samples: int, log_w: Tensor) -> Tensor:
    itself = torch.eye(num_samples, dtype=torch.bool, device=log_w.device)[..., None]
    others = log_w.expand(num_samples, *log_w.shape).masked_fill(itself, -math.inf)
    return others.logsumexp(1) - math.log(num_samples - 1)


def largest_apart(compile_: Compile, num_samples: int) -> Function:
    log_others = math.log(num_samples - 1)

    def run(log_w: Tensor) -> Tensor:
        first = log_w.detach().amax(0)
        top = log_w == first
        second = log_w.detach().masked_fill(top, -math.inf).amax(0)
        weights = (log_w.masked_fill(top, -math.inf) - second).exp()
        total = weights.sum(0)
        largest = (log_w - first).masked_fill(~top, -math.inf).exp().sum(0)
        without = largest + (second - first).exp() * (total - weights)
        shift = torch.where(top, second, first)
        return shift + torch.where(top, total, without).log() - log_others

    return compile_(run)


def from_both_ends(compile_: Compile, num_samples: int) -> Function:
    log_others = math.log(num_samples - 1)

    def run(log_w: Tensor) -> Tensor:
        none = torch.full_like(log_w[:1], -1e30)
        before = torch.cat([none, log_w[:-1]]).logcumsumexp(0)
        after = torch.cat([none, log_w.flip(0)[:-1]]).logcumsumexp(0).flip(0)
        return torch.logaddexp(before, after) - log_others

    return compile_(run)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    log_w = sizes["K"] * sizes["B"] * element
    out = sizes["K"] * sizes["B"] * max(element, 4)
    return log_w + out, 2 * log_w + out


LEAVE_ONE_OUT = OpWork(
    name="leave_one_out",
    draw=draw,
    trained=(0,),
    fastvi=fused,
    eager=eager,
    compiled={"largest apart": largest_apart, "from both ends": from_both_ends},
    traffic=traffic,
)
