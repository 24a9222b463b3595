"""Reparameterised Gaussian samples with log q and log p; upstream gradients on all three."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import Normal

import fastvi
from benchmarks.work import Compile, Draw, Function, OpWork

LOG_2PI = math.log(2.0 * math.pi)
Samples = tuple[Tensor, Tensor, Tensor]

PRIOR = Normal(0.0, 1.0, validate_args=False)


def draw(normal: Draw, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
    shape = (sizes["B"], sizes["D"])
    return normal(*shape), 0.5 * normal(*shape)


def fused(num_samples: int, loc: Tensor, log_var: Tensor) -> Samples:
    return fastvi.ops.gaussian_rsample(loc, log_var=log_var, num_samples=num_samples)


def eager(num_samples: int, loc: Tensor, log_var: Tensor) -> Samples:
    q = Normal(loc, (0.5 * log_var).exp(), validate_args=False)
    z = q.rsample((num_samples,))
    return z, q.log_prob(z).sum(-1), PRIOR.log_prob(z).sum(-1)


def densities(loc: Tensor, log_var: Tensor, eps: Tensor) -> Samples:
    """The least arithmetic: log q needs eps alone, and the constants leave the sum."""
    z = loc + (0.5 * log_var).exp() * eps
    constant = loc.shape[-1] * LOG_2PI
    log_q = -0.5 * ((eps * eps).sum(-1) + log_var.sum(-1) + constant)
    log_p = -0.5 * ((z * z).sum(-1) + constant)
    return z, log_q, log_p


def noise_outside(compile_: Compile, num_samples: int) -> Function:
    compiled = compile_(densities)

    def run(loc: Tensor, log_var: Tensor) -> Samples:
        eps = torch.randn(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
        return compiled(loc, log_var, eps)

    return run


def noise_inside(compile_: Compile, num_samples: int) -> Function:
    def run(loc: Tensor, log_var: Tensor) -> Samples:
        eps = torch.randn(num_samples, *loc.shape, dtype=loc.dtype, device=loc.device)
        return densities(loc, log_var, eps)

    return compile_(run)


def traffic(sizes: Mapping[str, int], element: int) -> tuple[int, int]:
    inputs = 2 * sizes["B"] * sizes["D"] * element
    z = sizes["K"] * sizes["B"] * sizes["D"] * element
    log_probs = 2 * sizes["K"] * sizes["B"] * max(element, 4)
    return inputs + z + log_probs, 2 * inputs + z + log_probs


GAUSSIAN_RSAMPLE = OpWork(
    name="gaussian_rsample",
    draw=draw,
    trained=(0, 1),
    fastvi=fused,
    eager=eager,
    compiled={"noise outside": noise_outside, "noise inside": noise_inside},
    traffic=traffic,
)
