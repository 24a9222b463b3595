"""Squares and powers of scales for the references, right at both ends of a type.

The formulas are those of ``csrc/maths/spread.h``, so that the references under ``torch.func`` are
as exact as the kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lift_of(x: Tensor) -> Tensor:
    """Return a power of two: times it, a positive number has a normal number as inverse."""
    single = x.dtype == torch.float32
    small, large = (2.0**-100, 2.0**60) if single else (2.0**-500, 2.0**500)
    up, down = (2.0**64, 2.0**-60) if single else (2.0**500, 2.0**-500)
    one = torch.ones_like(x)
    return torch.where(x < small, up * one, torch.where(x > large, down * one, one))


def distance_of(x: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
    """Return x - loc and 1, or halves of them and 2 if the difference overflows."""
    plain = x - loc
    far = plain.detach().abs() == torch.inf
    distance = torch.where(far, 0.5 * x - 0.5 * loc, plain)
    return distance, torch.where(far, 2.0, 1.0).to(plain.dtype)


def standardised(x: Tensor, loc: Tensor, spread: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return (x - loc) / sigma, and log sigma, from any of the three parametrisations."""
    distance, factor = distance_of(x, loc)
    # It is expanded, so that the gradients of u and log sigma are added before they are summed.
    spread = spread.expand(torch.broadcast_shapes(distance.shape, spread.shape))
    if kind == "scale":
        lift = lift_of(spread.detach())
        lifted = spread * lift
        return (distance * lift) / lifted * factor, lifted.log() - lift.log()
    log_sigma = 0.5 * spread if kind == "log_var" else spread
    # Half of the exponent at a time, as 1 / sigma may be beyond the range of the type. The last
    # factor is 1, and has the slope of the exponential.
    constant = log_sigma.detach()
    moderate = constant.abs() < (80.0 if constant.dtype == torch.float32 else 700.0)
    one = torch.exp(torch.where(moderate, -constant, -0.5 * constant))
    two = torch.where(moderate, torch.ones_like(one), one)
    return (distance * one) * two * factor * torch.exp(constant - log_sigma), log_sigma


def half_exp_excess(g: Tensor, half_growth: Tensor | None = None) -> Tensor:
    """Return half of e^g - 1 - g, by its series if it would cancel; e^g - 1 over 2 may be given."""
    near = g.detach().abs() < 0.25
    small, large = torch.where(near, g, 0.0), torch.where(near, 0.0, g)
    series = torch.zeros_like(small)
    for n in range(7 if g.dtype == torch.float32 else 13, 1, -1):
        series = series * small + 0.5 / math.factorial(n)
    if half_growth is None:
        root = torch.exp(0.5 * large)
        half_growth = (0.5 * root) * root - 0.5
    else:
        half_growth = torch.where(near, 0.0, half_growth)
    return torch.where(near, series * small * small, half_growth - 0.5 * large)
