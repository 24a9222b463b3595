"""Reparameterised families of others, made from parameters, and integrals over their supports."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributions as d
from torch.distributions import Distribution
from torch.distributions import transforms as t

import fastvi

DOUBLE = {"dtype": torch.float64}
Make = Callable[..., Distribution]


def chain(*transforms: t.Transform) -> Make:
    """A normal, and these transforms after it."""
    return lambda loc, scale: d.TransformedDistribution(d.Normal(loc, scale), list(transforms))


def bent(loc: Tensor, scale: Tensor) -> Distribution:
    """Parameters in the base, in the middle and at the end, a constant transform between."""
    moved = [t.AffineTransform(loc, scale), t.TanhTransform(cache_size=1), t.ExpTransform()]
    base = d.Normal(0.3 * loc, 1.0 + scale)
    return d.TransformedDistribution(base, [*moved, t.PowerTransform(1.0 + scale)])


# Of two scalar parameters; the values they get, and the support.
FAMILIES: dict[str, tuple[Make, tuple[float, float], str]] = {
    "Normal": (d.Normal, (0.3, 0.8), "real"),
    "Laplace": (d.Laplace, (0.3, 0.8), "real"),
    "Cauchy": (d.Cauchy, (0.3, 0.8), "real"),
    "StudentT": (lambda loc, s: d.StudentT(5.0, loc, s), (0.3, 0.8), "real"),
    "Gumbel": (d.Gumbel, (0.3, 0.8), "real"),
    "LogNormal": (d.LogNormal, (0.3, 0.8), "positive"),
    "Gamma": (d.Gamma, (2.5, 1.5), "positive"),
    "InverseGamma": (d.InverseGamma, (3.5, 1.5), "positive"),
    "Weibull": (d.Weibull, (1.3, 1.6), "positive"),
    "Exponential": (lambda a, b: d.Exponential(a * b), (1.3, 0.6), "positive"),
    "HalfNormal": (lambda a, b: d.HalfNormal(a * b), (1.3, 0.6), "positive"),
    "HalfCauchy": (lambda a, b: d.HalfCauchy(a * b), (1.3, 0.6), "positive"),
    "Beta": (d.Beta, (2.5, 1.7), "unit"),
    "Kumaraswamy": (d.Kumaraswamy, (2.5, 1.7), "unit"),
    "ContinuousBernoulli": (
        lambda a, b: d.ContinuousBernoulli(logits=a + b, validate_args=False),
        (0.9, 0.8),
        "unit",
    ),
    "RelaxedBernoulli": (
        lambda logits, temperature: d.RelaxedBernoulli(temperature, logits=logits),
        (0.4, 0.8),
        "unit",
    ),
    "tanh": (chain(t.TanhTransform()), (0.3, 0.8), "both"),
    "tanh that remembers": (chain(t.TanhTransform(cache_size=1)), (0.3, 0.8), "both"),
    "sigmoid, power": (
        chain(t.SigmoidTransform(cache_size=1), t.PowerTransform(torch.tensor(2.0), cache_size=1)),
        (0.3, 0.8),
        "unit",
    ),
    "exp that remembers": (chain(t.ExpTransform(cache_size=1)), (0.3, 0.8), "positive"),
    "softplus": (chain(t.SoftplusTransform()), (0.3, 0.8), "positive"),
    "an inverse": (chain(t.ExpTransform(), t.SoftplusTransform().inv, t.ExpTransform()),
                   (1.6, 0.2), "positive"),
    "affine of a logistic": (
        lambda loc, s: d.TransformedDistribution(
            d.Uniform(torch.zeros((), **DOUBLE), torch.ones((), **DOUBLE)),
            [t.SigmoidTransform().inv, t.AffineTransform(loc, s)],
        ),
        (0.3, 0.8),
        "real",
    ),
    "fastvi Normal": (fastvi.distributions.Normal, (0.3, 0.8), "real"),
    "fastvi Laplace": (fastvi.distributions.Laplace, (0.3, 0.8), "real"),
    "tanh of fastvi Normal": (
        lambda loc, s: d.TransformedDistribution(
            fastvi.distributions.Normal(loc, s), [t.TanhTransform()]
        ),
        (0.3, 0.8),
        "both",
    ),
}  # fmt: skip
SUPPORT_OF_BENT = (0.0, math.inf)


def parameters(name: str) -> list[Tensor]:
    return [torch.tensor(v, **DOUBLE).requires_grad_() for v in FAMILIES[name][1]]


def nodes(support: str, count: int = 3001) -> tuple[Tensor, Tensor]:
    """Nodes and weights of double-exponential quadrature over a support."""
    far = {"real": 4.0, "positive": 4.0, "unit": 3.0, "both": 3.0}[support]
    s = torch.linspace(-far, far, count, **DOUBLE).requires_grad_()
    bend = 0.5 * math.pi * s.sinh()
    z = {
        "real": bend.sinh,
        "positive": bend.exp,
        "unit": lambda: torch.sigmoid(2.0 * bend),
        "both": bend.tanh,
    }[support]()
    (slope,) = torch.autograd.grad(z.sum(), s)
    return z.detach(), slope * (2 * far / (count - 1))
