"""Calling a model: its latents by name, one sample at a time where it was written for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi.objectives.latent import Joint, Term

_WHOLE = "log_joint"


class Values(Mapping[str, Tensor]):
    """The latents' values by name, which notices names that are not there, or never read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._values:
            raise ValueError(
                f"SVI: expected the model to read latents of the guide, which samples "
                f"{sorted(self._values)}, got {name!r}; the guide has to sample it too"
            )
        self._read.add(name)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._values else default

    def check_all_read(self, joint: object) -> None:
        """A latent whose prior stands under its name was read."""
        named = set(joint) if isinstance(joint, Mapping) else set()
        left = sorted(set(self._values) - self._read - named)
        if left:
            raise ValueError(
                f"SVI: expected the model to read every latent of the guide, got none of {left}; "
                f"their prior is missing from the log-joint, or the guide should not sample them"
            )


Model = Callable[..., Joint]


Prior = Callable[[str, Distribution, Tensor], Tensor]


def call(
    model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...], one_by_one: Prior | None
) -> Joint:
    """The log-joint of samples z, (K, ...) each.

    A model written for one sample is vectorised: ``one_by_one`` then evaluates a prior.
    """
    if one_by_one is not None:
        return _vectorised(model, z, data, one_by_one)
    return _checked(model, z, data)


def _checked(model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...]) -> Joint:
    if isinstance(z, Tensor):
        return model(z, *data)
    values = Values(z)
    joint = model(values, *data)
    values.check_all_read(joint)
    return joint


def _vectorised(
    model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...], prior: Prior
) -> Joint:
    depends_on: dict[str, tuple[str, ...] | None] = {}
    validate = Distribution._validate_args

    def one(z: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        joint = _checked(model, z, data)
        terms = joint if isinstance(joint, Mapping) else {_WHOLE: joint}
        out = {}
        for name, term in terms.items():
            term = term if isinstance(term, Term) else Term(term)
            depends_on[name] = term.depends_on
            out[name] = _value(name, term, z, prior, validate)
        return out

    with _unvalidated():
        stacked = torch.func.vmap(one, randomness="different")(
            z if isinstance(z, Tensor) else dict(z)
        )
    if stacked.keys() == {_WHOLE}:
        return stacked[_WHOLE]
    return {name: Term(value, None, depends_on[name]) for name, value in stacked.items()}


def _value(
    name: str, term: Term, z: Tensor | Mapping[str, Tensor], prior: Prior, validate: bool
) -> Tensor:
    """A tensor is all that comes out of a vectorised function."""
    if isinstance(term.value, Tensor):
        return term.value
    if not isinstance(term.value, Distribution):
        raise TypeError(
            f"SVI: expected term {name!r} to be a tensor, a distribution or a Term, "
            f"got {type(term.value).__name__}"
        )
    if term.observed is not None:
        if validate:
            _check_observed(name, term.value, term.observed)
        return term.value.log_prob(term.observed)
    return prior(name, term.value, z if isinstance(z, Tensor) else Values(z)[name])


def _check_observed(name: str, distribution: Distribution, observed: Tensor) -> None:
    """Data are the same for every sample; a support that is not cannot be looked at here."""
    try:
        inside = bool(distribution.support.check(observed).all())  # type: ignore[union-attr]
    except (RuntimeError, NotImplementedError):
        return
    if not inside:
        raise ValueError(
            f"SVI: expected the data of term {name!r} to be in the support of "
            f"{type(distribution).__name__}, {distribution.support}, got values outside of it"
        )


@contextlib.contextmanager
def _unvalidated() -> Iterator[None]:
    """Without torch's checks of distributions, which cannot look at one sample among many."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
