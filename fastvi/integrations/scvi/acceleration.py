"""Put the fused densities into unmodified models of scvi-tools, and take them out again.

``scvi.distributions.Normal`` and ``Poisson`` derive from torch's, and from fastvi's while an
acceleration is on. The two negative binomials have a ``log_prob`` of their own, which is replaced.
The classes stay the same objects, so that all imports of them, their subclasses, and objects made
before and after work as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import scvi.distributions
import torch.distributions
from scvi import settings
from torch import Tensor

import fastvi.distributions
from fastvi import ops
from fastvi.distributions._fused import can_evaluate, can_look, evaluate, in_dtype, is_count
from fastvi.integrations._acceleration import Acceleration, Swaps

NAMES = ("NegativeBinomial", "Normal", "Poisson", "ZeroInflatedNegativeBinomial")

_NegativeBinomial = scvi.distributions.NegativeBinomial
_ZeroInflated = scvi.distributions.ZeroInflatedNegativeBinomial
# scvi's own, by class.
_STOCK: dict[type, Callable[[Any, Tensor], Tensor]] = {
    kind: vars(kind)["log_prob"] for kind in (_NegativeBinomial, _ZeroInflated)
}


def accelerate(*names: str) -> Acceleration:
    """Put the fused densities in place of scvi-tools' own in all its models, until closed.

    ``log_prob`` of ``NegativeBinomial(mu, theta)`` and
    ``ZeroInflatedNegativeBinomial(mu, theta, zi_logits)`` runs one kernel, and ``Normal`` and
    ``Poisson`` are fastvi's. Values change: scvi-tools adds 1e-8 to means and dispersions, and
    subtracts log-gammas of large numbers in float32; the kernels do neither. Samples are drawn as
    before. Accelerations nest; the last one that is closed swaps back. They act on the process.

    Args:
        names: of the distributions to swap; by default all.

    Returns:
        A handle: ``with accelerate(): ...``, or ``handle = accelerate()`` and ``handle.close()``.

    Raises:
        ValueError: a name that cannot be swapped.

    Example:
        >>> from scvi.distributions import NegativeBinomial
        >>> from fastvi.integrations.scvi import accelerate
        >>> p = NegativeBinomial(mu=torch.ones(4, 2000), theta=torch.tensor(1e8))
        >>> with accelerate():
        ...     p.log_prob(torch.zeros(4, 2000))[0, 0]  # a Poisson probability, nearly: -1
        tensor(-1.)
    """
    return Acceleration(_SWAPS, _SWAPS.chosen(names))


def event_log_prob(p: Any, value: Tensor) -> Tensor:
    """Evaluate the log-density summed over features, shape (\\*batch,), fused if possible."""
    kind = type(p)
    if kind is _ZeroInflated and not _is_supported(p, value, p.zi_logits):
        return _STOCK[kind](p, value).sum(-1)
    if kind in _STOCK and _is_supported(p, value):
        return in_dtype(_counts(p, value, 1), value)
    if kind is scvi.distributions.Normal and can_evaluate(value, p.loc, p.scale):
        return in_dtype(evaluate(ops.gaussian_log_prob, value, p.loc, scale=p.scale), value)
    if kind is scvi.distributions.Poisson and can_evaluate(value, p.rate):
        return in_dtype(evaluate(ops.poisson_log_prob, value, p.rate), value)
    return p.log_prob(value).sum(-1)


def _is_supported(p: Any, value: Tensor, *others: Tensor) -> bool:
    return can_evaluate(value, p.mu, p.theta, *others)


def _counts(p: Any, value: Tensor, event_dims: int) -> Tensor:
    """Return the log-density of a negative binomial, with or without extra zeros."""
    op: Any
    given: tuple[Tensor, ...]
    if isinstance(p, _ZeroInflated):
        op, given = ops.zero_inflated_negative_binomial_log_prob, (p.mu, p.theta, p.zi_logits)
    else:
        op, given = ops.negative_binomial_log_prob, (p.mu, p.theta)
    return evaluate(op, value, *given, event_dims=event_dims)


def _warn_of_no_counts(p: Any, value: Tensor) -> None:
    """Warn as scvi-tools does of values that are no counts, in fewer passes."""
    if can_look(value) and value.shape[-1:] == p.mu.shape[-1:] and is_count(value):
        return
    try:
        p._validate_sample(value)
    except ValueError:
        warnings.warn(
            "The value argument must be within the support of the distribution",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )


def _negative_binomial_log_prob(self: Any, value: Tensor) -> Tensor:
    """Evaluate the log-density of each element, in nats, in one kernel."""
    if not _is_supported(self, value):
        return _STOCK[_NegativeBinomial](self, value)
    if self._validate_args:
        _warn_of_no_counts(self, value)
    return in_dtype(_counts(self, value, 0), value)


def _zero_inflated_log_prob(self: Any, value: Tensor) -> Tensor:
    """Evaluate the log-density of each element, in nats, in one kernel."""
    if not _is_supported(self, value, self.zi_logits):
        return _STOCK[_ZeroInflated](self, value)
    _warn_of_no_counts(self, value)
    return in_dtype(_counts(self, value, 0), value)


_FUSED = {
    _NegativeBinomial: _negative_binomial_log_prob,
    _ZeroInflated: _zero_inflated_log_prob,
}


def _swap(name: str, on: bool) -> None:
    kind = getattr(scvi.distributions, name)
    if kind in _FUSED:
        kind.log_prob = (_FUSED if on else _STOCK)[kind]
        return
    of_torch, fused = getattr(torch.distributions, name), getattr(fastvi.distributions, name)
    before, after = (of_torch, fused) if on else (fused, of_torch)
    kind.__bases__ = tuple(after if base is before else base for base in kind.__bases__)


_SWAPS = Swaps(NAMES, _swap)
