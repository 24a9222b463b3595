"""Reparameterised Laplace samples with log q; upstream gradients on both."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Laplace

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork

Samples = tuple[Tensor, Tensor]


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    shape = (sizes["B"], sizes["D"])
    return normal(*shape), (0.5 * normal(*shape)).exp_()


def fused(num_samples: int, loc: Tensor, scale: Tensor) -> Samples:
    return fastvi.ops.laplace_rsample(loc, scale=scale, num_samples=num_samples)


def eager(num_samples: int, loc: Tensor, scale: Tensor) -> Samples:
    q = Laplace(loc, scale, validate_args=False)
    z = q.rsample(torch.Size((num_samples,)))
    return z, q.log_prob(z).sum(-1)


def quantile(loc: Tensor, scale: Tensor, u: Tensor) -> Samples:
    """The least arithmetic: log q needs the noise alone."""
    depth = torch.log1p(-u.abs())
    log_q = depth.sum(-1) - scale.log().sum(-1) - loc.shape[-1] * math.log(2.0)
    return loc - scale * u.sign() * depth, log_q


def by_hand(compile_: Compile, num_samples: int) -> Function:
    def run(loc: Tensor, scale: Tensor) -> Samples:
        u = 2.0 * torch.rand(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device) - 1.0
        return quantile(loc, scale, u.clamp_min(-0.9999999))

    return compile_(run)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    inputs = 2 * sizes["B"] * sizes["D"] * element
    z = sizes["K"] * sizes["B"] * sizes["D"] * element
    log_q = sizes["K"] * sizes["B"] * max(element, 4)
    return inputs + z + log_q, 2 * inputs + z + log_q


LAPLACE_RSAMPLE = OpWork(
    name="laplace_rsample",
    draw=draw,
    trained=(0, 1),
    fastvi=fused,
    eager=eager,
    compiled={"by hand": by_hand},
    traffic=traffic,
)
