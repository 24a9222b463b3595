"""Each density at one element in 110 digits: the value, the derivatives, and what may be lost.

What may be lost is a sum of magnitudes: of the terms that are added up to the number, or that an
exponential of a rounded argument carries into it. An error budget is so many roundings of that sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mpmath as mp

# Log-gammas of e^170 are subtracted from each other.
mp.mp.dps = 110
LOG_2PI = mp.log(2 * mp.pi)
_ZERO = mp.mpf(0)


@dataclass
class Number:
    exact: Any
    magnitude: Any
    # What a step lost to underflow is multiplied by, before it is in the result.
    amplified: Any = 1


@dataclass
class Element:
    value: Number
    by: dict[str, Number] = field(default_factory=dict)


def _spread(named: dict[str, Any]) -> tuple[str, Any, Any, Any]:
    """Its name, sigma, log sigma, and d log sigma by it."""
    for name in ("scale", "log_scale", "log_var"):
        if name in named:
            x = named[name]
            if name == "scale":
                return name, x, mp.log(x), 1 / x
            log = x if name == "log_scale" else x / 2
            return name, mp.exp(log), log, mp.mpf(1) if name == "log_scale" else mp.mpf(1) / 2
    raise AssertionError(named)


def gaussian_log_prob(value: Any, loc: Any, **named: Any) -> Element:
    name, sigma, log_sigma, factor = _spread(named)
    u = (value - loc) / sigma
    lost = u * u / 2 + abs(log_sigma) + LOG_2PI / 2
    up, grown = abs(u) / sigma, 1 + 1 / sigma
    return Element(
        Number(-u * u / 2 - log_sigma - LOG_2PI / 2, lost, 1 + abs(u)),
        {
            "value": Number(-u / sigma, up, grown),
            "loc": Number(u / sigma, up, grown),
            name: Number((u * u - 1) * factor, (u * u + 1) * factor, (1 + abs(u)) * (1 + factor)),
        },
    )


def laplace_log_prob(value: Any, loc: Any, **named: Any) -> Element:
    name, b, log_b, factor = _spread(named)
    u = abs(value - loc) / b
    sign = mp.sign(value - loc)
    return Element(
        Number(-u - log_b - mp.log(2), u + abs(log_b) + mp.log(2)),
        {
            "value": Number(-sign / b, abs(sign) / b),
            "loc": Number(sign / b, abs(sign) / b),
            name: Number((u - 1) * factor, (u + 1) * factor, 1 + factor),
        },
    )


def _softplus(x: Any) -> Any:
    return max(x, mp.mpf(0)) + mp.log1p(mp.exp(-abs(x)))


def _sigmoid(x: Any) -> Any:
    e = mp.exp(-abs(x))
    return 1 / (1 + e) if x >= 0 else e / (1 + e)


def bernoulli_log_prob(value: Any, logits: Any) -> Element:
    exact = value * logits - _softplus(logits)
    if value in (0, 1):
        lost = abs(exact)
    else:
        lost = abs(value * logits) + _softplus(logits)
    # The sum of many takes one logarithm of a product that is kept as its distance from one.
    return Element(
        Number(exact, lost + mp.log1p(mp.exp(-abs(logits)))),
        {
            "value": Number(logits, abs(logits)),
            "logits": Number(value - _sigmoid(logits), abs(value) + _sigmoid(logits)),
        },
    )


def poisson_log_prob(value: Any, **named: Any) -> Element:
    (name,) = named
    log = name.startswith("log")
    rate = mp.exp(named[name]) if log else named[name]
    log_rate = named[name] if log else (mp.log(rate) if rate else -mp.inf)
    exact = (value * log_rate if value else 0) - rate - mp.loggamma(value + 1)
    # A rounded exponent moves the rate by as much as it is large.
    lost = abs(exact) + 1 + (abs(value - rate) if log else 0)
    by = {}
    if log:
        by[name] = Number(value - rate, value + rate)
    elif value == 0:
        by[name] = Number(mp.mpf(-1), mp.mpf(1))
    elif rate:
        by[name] = Number(value / rate - 1, value / rate + 1)
    if rate:
        digamma = mp.digamma(value + 1)
        by["value"] = Number(log_rate - digamma, abs(log_rate) + abs(digamma) + 1)
    return Element(Number(exact, lost), by)


def _negative_binomial(value: Any, mean: Any, theta: Any) -> tuple[Any, dict[str, Number]]:
    exact = mp.loggamma(value + theta) - mp.loggamma(theta) - mp.loggamma(value + 1)
    exact -= theta * mp.log1p(mean / theta)
    if value:
        exact += value * mp.log(mean / (mean + theta))
    share = theta / (theta + mean)
    by = {}
    if value == 0:
        by["mean"] = Number(-share, share)
    elif mean:
        by["mean"] = Number(share * (value / mean - 1), share * (value / mean + 1))
    rise = mp.digamma(value + theta) - mp.digamma(theta) if value else mp.mpf(0)
    log, rest = mp.log1p(mean / theta), (mean - value) / (theta + mean)
    by["dispersion"] = Number(rise - log + rest, abs(rise) + log + abs(rest))
    return exact, by


def negative_binomial_log_prob(value: Any, mean: Any, **named: Any) -> Element:
    (name,) = named
    theta = mp.exp(named[name]) if name.startswith("log") else named[name]
    exact, by = _negative_binomial(value, mean, theta)
    number = by.pop("dispersion")
    lost = abs(exact) + 1
    if name.startswith("log"):
        number = Number(number.exact * theta, number.magnitude * theta)
        lost += number.magnitude
    by[name] = number
    return Element(Number(exact, lost), by)


def zero_inflated_negative_binomial_log_prob(
    value: Any, mean: Any, gate_logits: Any, **named: Any
) -> Element:
    (name,) = named
    theta = mp.exp(named[name]) if name.startswith("log") else named[name]
    n, by = _negative_binomial(value, mean, theta)
    dispersion = by.pop("dispersion")
    grown = theta if name.startswith("log") else 1
    by[name] = Number(dispersion.exact * grown, dispersion.magnitude * grown)
    g = gate_logits
    if value == 0:
        top = max(-_softplus(-g), n - _softplus(g))
        exact = mp.log(mp.exp(-_softplus(-g) - top) + mp.exp(n - _softplus(g) - top)) + top
        w = _sigmoid(n - g)
    else:
        exact, w = n - _softplus(g), mp.mpf(1)
    # A rounded n moves the share of the zeros that are the negative binomial's own.
    moved = (1 + abs(n) * (1 - w) + abs(g) * (1 - w)) * w
    by = {k: Number(v.exact * w, v.magnitude * moved) for k, v in by.items()}
    off = _sigmoid(-g)
    by["gate_logits"] = Number(off - w, off + w + moved)
    lost = abs(exact) + 1 + w * abs(n) + _softplus(g) + _softplus(-g)
    if name.startswith("log"):
        lost += by[name].magnitude
    return Element(Number(exact, lost), by)


def gaussian_kl(
    loc: Any, log_var: Any, prior_loc: Any = _ZERO, prior_log_var: Any = _ZERO
) -> Element:
    g, d = log_var - prior_log_var, loc - prior_loc
    shift = mp.expm1(g)
    near = d * d * mp.exp(-prior_log_var)
    # The slope is a difference from one, of an exponential of a rounded difference.
    off = (mp.exp(g) * (1 + abs(g)) + 1) / 2
    grown = mp.exp(-prior_log_var)
    amplified = 1 + abs(d) * grown + grown
    # A series near 0, where float64's ends; beyond it the three terms are added up.
    terms = abs(shift - g) + abs(g * shift) if abs(g) < mp.mpf("0.004") else shift + 2 + abs(g)
    return Element(
        Number((shift - g + near) / 2, terms / 2 + near / 2,
               1 + abs(d) * grown),
        {
            "loc": Number(d * grown, abs(d) * grown, amplified),
            "log_var": Number(shift / 2, off),
            "prior_loc": Number(-d * grown, abs(d) * grown, amplified),
            "prior_log_var": Number(
                -(near + shift) / 2, near / 2 + off, amplified
            ),
        },
    )  # fmt: skip


EXACT: dict[str, Callable[..., Element]] = {
    "gaussian_log_prob": gaussian_log_prob,
    "laplace_log_prob": laplace_log_prob,
    "bernoulli_log_prob": bernoulli_log_prob,
    "poisson_log_prob": poisson_log_prob,
    "negative_binomial_log_prob": negative_binomial_log_prob,
    "zero_inflated_negative_binomial_log_prob": zero_inflated_negative_binomial_log_prob,
    "gaussian_kl": gaussian_kl,
}
