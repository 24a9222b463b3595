"""Calls of a model: latents by name, and models that are written for one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi.objectives.latent import Joint, Term
from fastvi.objectives.terms import check_is_term, check_names_latent
from fastvi.svi.checks import DeferredChecks, RefuseNames
from fastvi.svi.priors import Rebuild, of_one_sample

_WHOLE = "log_joint"


class Values(Mapping[str, Tensor]):
    """Hold the latents' values by name, and refuse names that are unknown or never read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if not isinstance(name, str):
            raise self._no_tensor()
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

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._no_tensor()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._values else default

    def check_all_read(self, joint: object) -> None:
        """Check that every latent was read. A latent whose prior is returned counts as read."""
        named = set(joint) if isinstance(joint, Mapping) else set()
        left = sorted(set(self._values) - self._read - named)
        if left:
            raise ValueError(
                f"SVI: expected the model to read every latent of the guide, got none of {left}; "
                f"their prior is missing from the log-joint, or the guide should not sample them"
            )

    def _no_tensor(self) -> TypeError:
        names = sorted(self._values)
        return TypeError(
            f"SVI: expected the model to look the guide's latents up by name, as in "
            f"z[{names[0]!r}], among {names}, got z used as a tensor; a guide that returns one "
            f"distribution, not a mapping, gives one tensor"
        )

    def _refuse(self, *_: Any) -> Any:
        raise self._no_tensor()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _refuse
    __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __float__ = _refuse

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        for part in (*args, *(kwargs or {}).values()):
            if isinstance(part, Values):
                raise part._no_tensor()
        return NotImplemented


Model = Callable[..., Joint]
Prior = Callable[[str, Distribution, Tensor], Tensor]


def call(
    model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...], one_by_one: Prior | None
) -> Joint:
    """Return the log-joint of samples z, (K, ...) each.

    A model that is written for one sample is vectorised. ``one_by_one`` evaluates a prior that
    cannot leave the vectorised function as a distribution.
    """
    if one_by_one is not None:
        return _vectorised(model, z, data, one_by_one)
    return _checked(model, z, data)


def _checked(model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...]) -> Joint:
    if isinstance(z, Tensor):
        try:
            return model(z, *data)
        except (IndexError, TypeError):
            # torch's error for a tensor that is indexed by a name does not explain it.
            with RefuseNames():
                model(z, *data)
            raise
    values = Values(z)
    joint = model(values, *data)
    values.check_all_read(joint)
    return joint


def _vectorised(
    model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...], prior: Prior
) -> Joint:
    depends_on: dict[str, tuple[str, ...] | None] = {}
    rebuild: dict[str, Rebuild] = {}

    def one(
        z: Tensor | dict[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]], list[Tensor]]:
        values: dict[str, Tensor] = {}
        parameters: dict[str, tuple[Tensor, ...]] = {}
        with DeferredChecks() as checks:
            joint = _checked(model, z, data)
            terms = joint if isinstance(joint, Mapping) else {_WHOLE: joint}
            for name, term in terms.items():
                term = term if isinstance(term, Term) else Term(term)
                depends_on[name] = term.depends_on
                taken_apart = _prior(name, term, z)
                if taken_apart is None:
                    values[name] = _value(name, term, z, prior)
                else:
                    parameters[name], rebuild[name] = taken_apart
        return values, parameters, checks.passed()

    mapped = z if isinstance(z, Tensor) else dict(z)
    values, parameters, passed = torch.func.vmap(one, randomness="different")(mapped)
    if passed and not bool(passed[0].all()):
        _raise_for_sample(model, mapped, data, prior)
    if values.keys() == {_WHOLE}:
        return values[_WHOLE]
    made = {name: rebuild[name](parts) for name, parts in parameters.items()}
    return {
        name: Term(made[name] if name in made else values[name], None, depends_on=needs)
        for name, needs in depends_on.items()
    }


def _prior(
    name: str, term: Term, z: Tensor | Mapping[str, Tensor]
) -> tuple[tuple[Tensor, ...], Rebuild] | None:
    """Return a prior's parameters and a function that makes it of them, or None otherwise."""
    if not isinstance(term.value, Distribution) or term.observed is not None:
        return None
    names = ["z"] if isinstance(z, Tensor) else sorted(z)
    check_names_latent("SVI", name, names)
    return of_one_sample(name, term.value, z if isinstance(z, Tensor) else z[name])


def _value(name: str, term: Term, z: Tensor | Mapping[str, Tensor], prior: Prior) -> Tensor:
    """Return the tensor of a term, which is all that a vectorized function may return."""
    if isinstance(term.value, Tensor):
        return term.value
    check_is_term("SVI", name, term.value)
    assert isinstance(term.value, Distribution)
    if term.observed is not None:
        return term.value.log_prob(term.observed)
    return prior(name, term.value, z if isinstance(z, Tensor) else z[name])


def _raise_for_sample(
    model: Model, z: Tensor | Mapping[str, Tensor], data: tuple[Any, ...], prior: Prior
) -> None:
    """Call the model at each sample by itself, so that torch's checks name the fault."""
    num_samples = len(z) if isinstance(z, Tensor) else len(next(iter(z.values())))
    names = "z" if isinstance(z, Tensor) else f"{', '.join(z)}"
    for k in range(num_samples):
        sample = z[k] if isinstance(z, Tensor) else {name: v[k] for name, v in z.items()}
        try:
            joint = _checked(model, sample, data)
            for name, term in joint.items() if isinstance(joint, Mapping) else ():
                _evaluate(name, term if isinstance(term, Term) else Term(term), sample, prior)
        except ValueError as error:
            raise ValueError(
                f"SVI: expected the model's distributions to be given parameters and values that "
                f"they allow, got others at sample {k} of {num_samples} of {names}: {error}"
            ) from error
    raise ValueError(
        f"SVI: expected the model's distributions to be given parameters and values that they "
        f"allow, got others at one of the {num_samples} samples of {names}"
    )


def _evaluate(name: str, term: Term, sample: Tensor | Mapping[str, Tensor], prior: Prior) -> None:
    if isinstance(term.value, Tensor):
        return
    if term.observed is None:
        prior(name, term.value, sample if isinstance(sample, Tensor) else sample[name])
        return
    try:
        term.value.log_prob(term.observed)
    except ValueError as error:
        raise ValueError(
            f"the data of term {name!r} to be in the support of {type(term.value).__name__}, "
            f"{term.value.support}: {error}"
        ) from error
