"""The formulas of the Poisson and the negative binomial log-density, in float64.

They are those of ``csrc/poisson_log_prob`` and ``csrc/negative_binomial_log_prob``, which explain
them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi.ops._gamma import (
    digamma_rest,
    excess,
    log_less_digamma,
    stirling_rest,
    trigamma_rest,
)

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def _times(x: Tensor, y: Tensor) -> Tensor:
    """Return x y, and zero where x is zero."""
    return torch.where(x == 0, 0.0, x * y)


def _at_least_one(x: Tensor) -> Tensor:
    return torch.where(x >= 1, x, 1.0)


def _below_one(x: Tensor) -> Tensor:
    return torch.where(x < 1, x, 0.0)


def _digamma_of_next(x: Tensor) -> Tensor:
    """Return ψ(x + 1) − log max(x, 1)."""
    c = _at_least_one(x)
    return torch.where(
        x >= 1, 1 / c - log_less_digamma(c), torch.special.digamma(_below_one(x) + 1)
    )


def _log_quotient(x: Tensor, y: Tensor) -> Tensor:
    """Return log(x / y), even if the quotient is out of range."""
    quotient = x / y
    within = (quotient > 1e-290) & (quotient < 1e290)
    return torch.where(within, torch.log(torch.where(within, quotient, 1.0)), x.log() - y.log())


def _checked(x: Tensor, result: Tensor) -> Tensor:
    """Return the result, with NaN where the count is negative."""
    return torch.where(x >= 0, result, math.nan)


class Poisson:
    """The log-density of a count with a rate, or with the rate's logarithm."""

    def __init__(self, is_log: bool) -> None:
        self.is_log = is_log

    def _rate(self, given: Tensor) -> tuple[Tensor, Tensor]:
        return (given.exp(), given) if self.is_log else (given, given.log())

    def _log_ratio(self, x: Tensor, given: Tensor) -> Tensor:
        """Return the logarithm of rate / max(x, 1)."""
        rate, log_rate = self._rate(given)
        c = _at_least_one(x)
        w = (rate - c) / c
        near = (w > -0.5) & (w < 1)
        return torch.where(near, torch.log1p(w), log_rate - c.log())

    def value(self, x: Tensor, given: Tensor) -> Tensor:
        rate, log_rate = self._rate(given)
        c = _at_least_one(x)
        many = -c * excess((rate - c) / c, log_rate - c.log()) - (
            0.5 * c.log() + (_HALF_LOG_2PI + stirling_rest(c))
        )
        few = (_times(x, log_rate) - rate) - torch.lgamma(_below_one(x) + 1)
        return _checked(x, torch.where(x >= 1, many, few))

    def slopes(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        rate = self._rate(given)[0]
        by_x = _checked(x, self._log_ratio(x, given) - _digamma_of_next(x))
        if self.is_log:
            return by_x, x - rate
        return by_x, torch.where(x == 0, -1.0, (x - rate) / rate)

    def curvatures(self, x: Tensor, given: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        rate = self._rate(given)[0]
        of_x = -torch.polygamma(1, x + 1)
        if self.is_log:
            return (of_x, torch.ones_like(x)), (torch.ones_like(x), -rate)
        return (of_x, 1 / rate), (1 / rate, torch.where(x == 0, 0.0, -x / rate / rate))


class NegativeBinomial:
    """The log-density of a count x with mean m and inverse dispersion t, or its logarithm."""

    # Above this dispersion the density is a Poisson density.
    most = 1e300

    def __init__(self, is_log: bool) -> None:
        self.is_log = is_log

    def _theta(self, given: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_log:
            return given.exp().clamp(max=self.most), given
        return given.clamp(max=self.most), given.log()

    def value(self, x: Tensor, mean: Tensor, given: Tensor) -> Tensor:
        t, log_t = self._theta(given)
        n, total, c = x + t, t + mean, _at_least_one(x)
        distance = (x - mean) * (t / total)
        expected = (mean / total) * n
        log_mean = _log_quotient(mean, total)
        near = excess(-distance / c, log_mean + (n / c).log())
        few = _times(x, log_mean + n.log()) - expected
        count = torch.where(x >= 1, -c * near, few)
        return _checked(x, count - self._total_excess(x, mean, t) + self._term(x, t, log_t))

    def _total_excess(self, x: Tensor, mean: Tensor, t: Tensor) -> Tensor:
        """Return t (u − log(1 + u)) for u = (x − m) / (t + m)."""
        total = t + mean
        u = (x - mean) / total
        log_ratio = _log_quotient(x + t, total)
        far = (x - mean) * (t / total) - _times(t, log_ratio)
        return torch.where(u > 1, far, t * excess(torch.where(u > 1, 1.0, u), log_ratio))

    def _term(self, x: Tensor, t: Tensor, log_t: Tensor) -> Tensor:
        """Return the part that does not depend on the mean."""
        n, c, s = x + t, _at_least_one(x), _at_least_one(t)
        rest_n = stirling_rest(_at_least_one(n))
        rest_x = torch.where(x >= 1, stirling_rest(c) + 0.5 * c.log() + _HALF_LOG_2PI, 0.0)
        own_x = rest_x + torch.lgamma(_below_one(x) + 1)
        below = _below_one(t)
        own_t = torch.lgamma(below + 1) + below - _times(below, log_t)
        large_t = rest_n - stirling_rest(s) - 0.5 * torch.log(n / s)
        large_n = rest_n + _HALF_LOG_2PI - 0.5 * n.log() + log_t - own_t
        quotient = x / t
        log_quotient = torch.where(quotient < 1e300, torch.log1p(quotient), n.log() - log_t)
        small = _below_one(n)
        neither = (
            (torch.lgamma(small + 1) - torch.lgamma(below + 1) + x)
            - (_times(small, n.log()) - _times(below, log_t))
            - log_quotient
        )
        of_t = torch.where(t >= 1, large_t, torch.where(n >= 1, large_n, neither))
        return torch.where(x == 0, 0.0, of_t - own_x)

    def slopes(self, x: Tensor, mean: Tensor, given: Tensor) -> tuple[Tensor, ...]:
        t, log_t = self._theta(given)
        n, total, none = x + t, t + mean, x == 0
        share, mean_share = t / total, mean / total
        c, s, m = _at_least_one(x), _at_least_one(t), _at_least_one(n)
        small, below = _below_one(n), _below_one(t)

        # log(q / max(x, 1)), q = m n / total, and log n − ψ(n).
        w = -((x - mean) * share) / c
        log_mean = _log_quotient(mean, total)
        near = (x >= 1) & (w > -0.5) & (w < 1)
        log_ratio = torch.where(
            near, torch.log1p(torch.where(near, w, 0.0)), log_mean + (n / c).log()
        )
        own_n = torch.special.digamma(small + 1)
        of_n = torch.where(n >= 1, log_less_digamma(m), n.log() - own_n + 1 / n)
        by_x = _checked(x, log_ratio - of_n - _digamma_of_next(x))

        # Of a share below the normal numbers, what is left once it is multiplied.
        small_share = share < torch.finfo(share.dtype).smallest_normal
        of_mean = torch.where(small_share, (x - mean) / mean * t / total, (x - mean) * share / mean)
        by_mean = torch.where(none, -share, of_mean)

        u = (x - mean) / total
        log_total = torch.where(u.abs() < 0.5, torch.log1p(u), _log_quotient(n, total))
        lost = self._total_excess(x, mean, t)
        rests = digamma_rest(s) / s - t * (digamma_rest(m) / m / m)
        above = torch.where(none, 0.0, 0.5 * x / m + rests) - lost
        quotient = x / t
        log_quotient = torch.where(quotient < 1e300, torch.log1p(quotient), n.log() - log_t)
        own_t = torch.special.digamma(below + 1)
        direct = torch.where(
            n >= 1,
            mean_share - share * (x - 1),
            mean_share * (x / n) + share * ((x / n) * (1 - n)),
        )
        logs = torch.where(
            n >= 1, log_t - own_t - log_less_digamma(m), own_n - own_t - log_quotient
        )
        logs = logs + log_total + mean_share
        if self.is_log:
            below_one = torch.where(none, -lost, direct + t * logs)
            return by_x, by_mean, _checked(x, torch.where(t >= 1, above, below_one))
        of_none = log_total - u
        of_none = torch.where(u.abs() < 0.5, -excess(u, log_total), of_none)
        some = torch.where(t >= 1, above / t, direct / t + logs)
        return by_x, by_mean, _checked(x, torch.where(none, of_none, some))

    def curvatures(self, x: Tensor, mean: Tensor, given: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        t = self._theta(given)[0]
        n, total = x + t, t + mean
        gap = (x - mean) / total
        trigamma = torch.polygamma(1, n)
        x_x = trigamma - torch.polygamma(1, x + 1)
        x_mean = t / total / mean
        mean_mean = n / total / total - torch.where(x == 0, 0.0, x / mean / mean)
        x_t, mean_t = trigamma - 1 / total, gap / total
        rests = torch.where(x == 0, 0.0, trigamma_rest(n) - trigamma_rest(t))
        t_t = rests + gap * gap / n
        if self.is_log:
            x_t, mean_t = t * x_t, t * mean_t
            t_t = t * t * t_t + self.slopes(x, mean, given)[2]
        return (x_x, x_mean, x_t), (x_mean, mean_mean, mean_t), (x_t, mean_t, t_t)
