"""The priors of a vectorised model, which are made for one sample, as priors of K samples."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent
from torch.distributions.utils import lazy_property

from fastvi.objectives.latent import Joint, Term

Rebuild = Callable[[tuple[Tensor, ...]], Distribution]


def of_one_sample(
    name: str, prior: Distribution, value: Tensor
) -> tuple[tuple[Tensor, ...], Rebuild] | None:
    """Return a prior's parameters and a function that makes it of them, or None otherwise.

    They have the batch shape of one sample's value, so that K samples have one dimension more.
    """
    batch = value.shape[: value.ndim - len(prior.event_shape)]
    try:
        fits = torch.broadcast_shapes(prior.batch_shape, batch) == batch
    except RuntimeError:
        fits = False
    if not fits or value.shape[value.ndim - len(prior.event_shape) :] != prior.event_shape:
        raise ValueError(
            f"SVI: expected the prior of {name!r} to fit its shape for one sample, "
            f"{list(value.shape)}, got batch shape {list(prior.batch_shape)} and event shape "
            f"{list(prior.event_shape)}"
        )
    try:
        return _parameters_and_rebuild(prior.expand(batch))
    except NotImplementedError:
        return None


def check_follow_samples(
    z: Tensor | Mapping[str, Tensor], joint: Joint, at_one: Callable[[], Joint]
) -> None:
    """Refuse priors with a dimension for the samples that does not follow their number.

    Their first dimension has the size K by chance. ``at_one`` is the log-joint of one sample.
    """
    priors = {name: prior for name, prior in _priors(joint) if _as_many(name, prior, z)}
    if not priors:
        return
    for name, prior in _priors(at_one()):
        if name in priors and prior.batch_shape == priors[name].batch_shape:
            value = z if isinstance(z, Tensor) else z[name]
            raise ValueError(
                f"SVI: expected the prior of {name!r} to fit its shape, {list(value.shape[1:])}, "
                f"got batch shape {list(prior.batch_shape)}, whose first dimension is no number of "
                f"samples: it is the same for one"
            )


def _priors(joint: Joint) -> Iterator[tuple[str, Distribution]]:
    for name, term in joint.items() if isinstance(joint, Mapping) else ():
        term = term if isinstance(term, Term) else Term(term)
        if isinstance(term.value, Distribution) and term.observed is None:
            yield name, term.value


def _as_many(name: str, prior: Distribution, z: Tensor | Mapping[str, Tensor]) -> bool:
    value = z if isinstance(z, Tensor) else z.get(name)
    if value is None or len(value) == 1:
        return False
    shape = prior.batch_shape + prior.event_shape
    return len(shape) == value.ndim and prior.batch_shape[:1] == value.shape[:1]


def _parameters_and_rebuild(prior: Distribution) -> tuple[tuple[Tensor, ...], Rebuild] | None:
    if type(prior) is Independent:
        inner = _parameters_and_rebuild(prior.base_dist)
        if inner is None:
            return None
        tensors, rebuild = inner
        dims, checks = prior.reinterpreted_batch_ndims, prior._validate_args
        return tensors, lambda given: Independent(rebuild(given), dims, validate_args=checks)
    family = type(prior)
    names = _parameters(family, tuple(prior.arg_constraints))  # type: ignore[arg-type]
    parts = tuple(getattr(prior, name, None) for name in names)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        return None
    validate = prior._validate_args

    def again(given: tuple[Tensor, ...]) -> Distribution:
        named: dict[str, Any] = dict(zip(names, given, strict=True))
        return family(**named, validate_args=validate)

    return tuple(part for part in parts if isinstance(part, Tensor)), again


@functools.cache
def _parameters(family: type[Distribution], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the parameters that make a prior, or none if its constraints do not name them all."""
    if set(inspect.signature(family).parameters) - {"validate_args"} != set(names):
        return ()
    # Parameters that torch computes from each other on access.
    made = [name for name in names if isinstance(getattr(family, name, None), lazy_property)]
    if not made:
        return names
    chosen = next((name for name in ("logits", "scale_tril") if name in made), None)
    return () if chosen is None else (*(n for n in names if n not in made), chosen)
