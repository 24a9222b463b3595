"""The terms of a log-joint at the samples, with checked shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from fastvi.objectives.latent import Joint, Latent, LogJoint, Term

_WHOLE = "log_joint"
# Of each latent.
Batches = dict[str, torch.Size]


@dataclass(frozen=True)
class Evaluated:
    """A term at the samples, [K, *batch]; ``value`` is None if only its prior is known so far."""

    name: str
    value: Tensor | None
    depends_on: frozenset[str]
    prior: Distribution | None = None


def evaluate(
    where: str,
    latents: Sequence[Latent],
    values: Mapping[str, Tensor],
    log_joint: LogJoint,
    *,
    keep_priors: bool = False,
) -> list[Evaluated]:
    """Evaluate the log-joint; ``keep_priors`` keeps priors as distributions, for closed forms."""
    num_samples = len(next(iter(values.values())))
    batches = {latent.name: latent.batch for latent in latents}
    terms = _read(where, batches, values, log_joint(values), keep_priors)
    for term in terms:
        if term.value is not None:
            _check_shape(where, term, num_samples, latents)
    _check_batches(where, terms)
    return terms


def _read(
    where: str, batches: Batches, values: Mapping[str, Tensor], joint: Joint, keep_priors: bool
) -> list[Evaluated]:
    if isinstance(joint, Tensor):
        joint = {_WHOLE: joint}
    if not isinstance(joint, Mapping):
        raise TypeError(
            f"{where}: expected log_joint to return a tensor of shape (K, *batch) or a mapping of "
            f"names to terms, got {type(joint).__name__}"
        )
    if not joint:
        raise ValueError(f"{where}: expected log_joint to return at least one term, got none")
    return [_term(where, batches, values, *item, keep_priors) for item in joint.items()]


def _term(
    where: str,
    batches: Batches,
    values: Mapping[str, Tensor],
    name: str,
    term: Tensor | Distribution | Term,
    keep_priors: bool,
) -> Evaluated:
    term = term if isinstance(term, Term) else Term(term)
    names = list(batches)
    depends_on = frozenset(names if term.depends_on is None else term.depends_on)
    unknown = depends_on - set(names)
    if unknown:
        raise ValueError(
            f"{where}: expected term {name!r} to depend on latents of the guide, {names}, "
            f"got {sorted(unknown)}"
        )
    if isinstance(term.value, Tensor):
        return Evaluated(name, term.value, depends_on)
    check_is_term(where, name, term.value)
    assert isinstance(term.value, Distribution)
    if term.observed is not None:
        density = _density(where, f"the data of term {name!r}", term.value, term.observed)
        return Evaluated(name, density, depends_on)
    check_names_latent(where, name, names)
    prior = Evaluated(name, None, depends_on - {name}, term.value)
    return prior if keep_priors else density_of_prior(where, prior, values[name], batches[name])


def density_of_prior(where: str, term: Evaluated, value: Tensor, batch: torch.Size) -> Evaluated:
    """Return the same term at the samples, if there is no closed form."""
    assert term.prior is not None
    density = _density(where, f"latent {term.name!r} of the guide", term.prior, value)
    if density.shape != value.shape[:1] + batch:
        raise ValueError(
            f"{where}: expected the prior of latent {term.name!r} to have log-densities of shape "
            f"(K, *batch) = {[len(value), *batch]}, got {list(density.shape)}; "
            f"torch.distributions.Independent makes dimensions an event"
        )
    return Evaluated(term.name, density, term.depends_on | {term.name})


def _density(where: str, what: str, distribution: Distribution, value: Tensor) -> Tensor:
    try:
        return distribution.log_prob(value)
    except ValueError as error:
        raise ValueError(
            f"{where}: expected {what} to be in the support of {distribution}, "
            f"{distribution.support}, and of its shape; got {error}"
        ) from error


def closed_form(where: str, latent: Latent, prior: Distribution) -> Tensor | None:
    """Return KL(q || p) in nats, [*batch] or [K, *batch], or None if torch has no closed form."""
    q = latent.distribution
    if q is None:
        return None
    try:
        if q.batch_shape != prior.batch_shape:
            # Not every divergence in torch broadcasts.
            try:
                batch = torch.broadcast_shapes(q.batch_shape, prior.batch_shape)
            except RuntimeError:
                raise ValueError(
                    f"{where}: expected the prior of latent {latent.name!r} to have a batch shape "
                    f"that fits that of the guide's distribution, {list(q.batch_shape)}, got "
                    f"{list(prior.batch_shape)}"
                ) from None
            q, prior = q.expand(batch), prior.expand(batch)
        return kl_divergence(q, prior)
    except NotImplementedError:
        return None


def longest_batch(values: Sequence[Tensor]) -> torch.Size:
    """Return the longest batch shape among terms of shape (K,) and (K, *batch)."""
    longest = values[0].shape[1:]
    for value in values:
        longest = value.shape[1:] if value.ndim > len(longest) + 1 else longest
    return longest


def check_is_term(where: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor | Distribution):
        raise TypeError(
            f"{where}: expected term {name!r} to be a tensor, a distribution or a Term, "
            f"got {type(value).__name__}"
        )


def check_names_latent(where: str, name: str, latents: Sequence[str]) -> None:
    """Refuse a distribution without data, a prior, under a name that no latent has."""
    if name not in latents:
        raise ValueError(
            f"{where}: expected a distribution to stand under the name of a latent, {latents}, as "
            f"its prior, or to have observed data, got {name!r}"
        )


def _check_shape(where: str, term: Evaluated, num_samples: int, latents: Sequence[Latent]) -> None:
    assert term.value is not None
    subject = "log_joint to return" if term.name == _WHOLE else f"term {term.name!r} to have"
    if not term.value.is_floating_point():
        raise TypeError(
            f"{where}: expected {subject} floating-point numbers, got {term.value.dtype}"
        )
    shape = term.value.shape
    batch = next((latent.batch for latent in latents if latent.batch), None)
    wrong = term.value.ndim < 1 or shape[0] != num_samples
    # Without local latents the shape of the term is the batch.
    if batch is None:
        wrong = wrong or len(shape) > 2
    else:
        wrong = wrong or (shape[1:] != batch and len(shape) > 1)
    if wrong:
        rest = ", B" if batch is None else "".join(f", {size}" for size in batch)
        raise ValueError(
            f"{where}: expected {subject} shape (K, *batch) = ({num_samples}{rest}), "
            f"got {list(shape)}; sum over the event's dimensions"
        )


def _check_batches(where: str, terms: Sequence[Evaluated]) -> None:
    """Refuse terms of two batch shapes: one that broadcasts would count for each example."""
    of_each = {
        term.name: list(term.value.shape)
        for term in terms
        if term.value is not None and term.value.ndim > 1
    }
    shapes = list(of_each.values())
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"{where}: expected all terms of data to have one shape, (K, B), got {of_each}; a term "
            f"of all the data has shape (K,)"
        )
