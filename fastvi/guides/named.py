"""Named parameters with supports, and their bijection with one row of real numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    ExpTransform,
    Independent,
    Normal,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)

from fastvi.objectives.latent import Joint, Term

# Unconstrained numbers at which exp and sigmoid are not yet saturated in float32.
_FAR = 10.0


class Named:
    """Hold the place of each parameter in the row, and the bijection into its support."""

    def __init__(
        self,
        where: str,
        shapes: Mapping[str, Sequence[int]],
        supports: Mapping[str, constraints.Constraint],
    ) -> None:
        if not isinstance(shapes, Mapping) or not shapes:
            raise ValueError(
                f"{where}: expected shapes to be a mapping of at least one name to a shape, "
                f"got {shapes!r}"
            )
        _check_names(where, "supports", supports, shapes)
        self.where = where
        self.names = list(shapes)
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.supports: dict[str, constraints.Constraint] = {}
        self.transforms: dict[str, Transform] = {}
        self.sizes: list[int] = []
        for name in self.names:
            support = supports.get(name, constraints.real)
            if not isinstance(support, constraints.Constraint):
                raise TypeError(
                    f"{where}: expected the support of {name!r} to be a constraint, "
                    f"got {type(support).__name__}"
                )
            try:
                transform = ExpTransform() if _is_positive(support) else biject_to(support)
                # torch does not know the shape of joined supports, or joins them along the samples.
                if isinstance(support, (constraints.cat, constraints.stack)):
                    raise NotImplementedError
                self.transforms[name] = transform
            except NotImplementedError as error:
                raise ValueError(
                    f"{where}: expected the support of {name!r} to be one that torch's biject_to "
                    f"reaches from the real numbers, one for the whole parameter (parts joined by "
                    f"cat or stack need names of their own), got {support}"
                ) from error
            self.supports[name] = support
            self.sizes.append(self._unconstrained(name).numel())

    def _unconstrained(self, name: str) -> torch.Size:
        return torch.Size(self.transforms[name].inverse_shape(self.shapes[name]))

    def unconstrain(self, values: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the row of these values, with zeros for names without a value."""
        _check_names(self.where, "init", values, self.shapes)
        parts = []
        for name, shape in self.shapes.items():
            if name not in values:
                parts.append(torch.zeros(self._unconstrained(name).numel(), dtype=dtype))
                continue
            value = torch.as_tensor(values[name], dtype=dtype)
            if value.shape != shape:
                raise ValueError(
                    f"{self.where}: expected init of {name!r} to have shape {list(shape)}, "
                    f"got {list(value.shape)}"
                )
            if not bool(self.supports[name].check(value).all()):
                raise ValueError(
                    f"{self.where}: expected init of {name!r} to be in its support, "
                    f"{self.supports[name]}, got {value}"
                )
            parts.append(self.transforms[name].inv(value).detach().reshape(-1))
        return torch.cat(parts)

    def constrain(
        self, row: Tensor, elementwise: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the named parameters of rows (*leading, D), and the bijections' log-determinants.

        Those that are real have no bijection.
        """
        leading = row.shape[:-1]
        values, log_dets = {}, {}
        for name, u in self.split(row).items():
            transform = self.transforms[name]
            if elementwise and transform.domain.event_dim > 0:
                raise ValueError(
                    f"{self.where}.quantiles: expected the numbers of {name!r} to be bijected one "
                    f"by one, got the support {self.supports[name]}; take the quantiles of sample()"
                )
            values[name] = transform(u)
            if self.supports[name] is constraints.real:
                continue
            ladj = transform.log_abs_det_jacobian(u, values[name])
            extra = ladj.ndim - len(leading)
            log_dets[name] = ladj.flatten(-extra).sum(-1) if extra else ladj
        return values, log_dets

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """Return the numbers of each parameter before its bijection, (*leading, *shape)."""
        parts = row.split(self.sizes, -1)
        return {
            name: part.reshape(row.shape[:-1] + self._unconstrained(name))
            for name, part in zip(self.names, parts, strict=True)
        }

    def distribution(self, name: str, loc: Tensor, scale: Tensor) -> Distribution:
        """Return the distribution of a parameter whose numbers are normal before the bijection."""
        shape = self._unconstrained(name)
        base = Normal(loc.reshape(shape), scale.reshape(shape), validate_args=False)
        q: Distribution = base
        if self.supports[name] is not constraints.real:
            q = TransformedDistribution(base, [self.transforms[name]], validate_args=False)
        dims = len(q.batch_shape)
        return Independent(q, dims, validate_args=False) if dims else q

    def rises(self, name: str) -> bool:
        """Return whether a larger number before the bijection is a larger one after it."""
        return bool(self.transforms[name].sign > 0)

    def priors(self, joint: Joint, num_samples: int) -> dict[str, Term]:
        """Return the terms, in which the prior of a parameter has the shape of the parameter."""
        assert isinstance(joint, Mapping)
        terms = {}
        for name, term in joint.items():
            term = term if isinstance(term, Term) else Term(term)
            if isinstance(term.value, Distribution) and term.observed is None:
                if name not in self.shapes:
                    raise ValueError(
                        f"{self.where}: expected a prior to stand under the name of a parameter, "
                        f"{self.names}, got {name!r}"
                    )
                whole = self.whole_prior(name, term.value, num_samples)
                term = Term(whole, depends_on=term.depends_on)
            terms[name] = term
        return terms

    def whole_prior(self, name: str, prior: Distribution, num_samples: int) -> Distribution:
        """Return the prior of a parameter, of batch shape () or, given other samples, (K,)."""
        self._check_support(name, prior)
        event = len(prior.event_shape)
        shape = self.shapes[name]
        own = shape[: len(shape) - event]
        # A further dimension is that of the samples on which the prior depends.
        given = len(prior.batch_shape) > len(own)
        batch = (torch.Size((num_samples,)) if given else torch.Size()) + own
        try:
            fits = torch.broadcast_shapes(prior.batch_shape, batch) == batch
        except RuntimeError:
            fits = False
        if not fits or prior.event_shape != shape[len(own) :]:
            raise ValueError(
                f"{self.where}: expected the prior of {name!r} to fit its shape, {list(shape)}, "
                f"got batch shape {list(prior.batch_shape)} and event shape "
                f"{list(prior.event_shape)}"
            )
        if prior.batch_shape != batch:
            prior = prior.expand(batch)
        checks = prior._validate_args
        return Independent(prior, len(own), validate_args=checks) if len(own) else prior

    def log_prior(self, name: str, prior: Distribution, value: Tensor) -> Tensor:
        """Return log p of each sample, (K,)."""
        try:
            return prior.log_prob(value)
        except ValueError as error:
            raise ValueError(
                f"{self.where}: expected the prior of {name!r} to allow its values, of shape "
                f"{list(value.shape)} in {self.supports[name]}, got {prior} with support "
                f"{prior.support}: {error}"
            ) from error

    def _check_support(self, name: str, prior: Distribution) -> None:
        """Check that numbers far out on both sides are in the support of the prior."""
        transform, support = self.transforms[name], self.supports[name]
        if not prior._validate_args or transform.domain.event_dim > 0:
            return
        # It broadcasts with the tensors of the support. An event is in it if each number is.
        event = prior.event_shape
        far = transform(torch.tensor([-_FAR, _FAR]))
        far = far.reshape(2, *[1] * (len(prior.batch_shape) + len(event)))
        far = far.expand(2, *[1] * len(prior.batch_shape), *event)
        try:
            allowed = prior.support
            wrong = bool(support.check(far).all()) and not bool(allowed.check(far).all())  # type: ignore[union-attr]
        except (NotImplementedError, RuntimeError):
            return
        if wrong:
            raise ValueError(
                f"{self.where}: expected the prior of {name!r} to allow its values, all of "
                f"{support}, got {type(prior).__name__} with support {allowed}; give the "
                f"guide a support within it, supports={{{name!r}: ...}}"
            )


def _is_positive(support: constraints.Constraint) -> bool:
    """Return whether torch's bijection into the support adds a zero, which no prior's does."""
    kinds = (constraints.greater_than, constraints.greater_than_eq)
    bound = getattr(support, "lower_bound", None)
    return isinstance(support, kinds) and isinstance(bound, (int, float)) and bound == 0


def _check_names(
    where: str, argument: str, given: Mapping[str, object], shapes: Mapping[str, object]
) -> None:
    unknown = sorted(set(given) - set(shapes))
    if unknown:
        raise ValueError(
            f"{where}: expected {argument} to be of the parameters {list(shapes)}, got {unknown}"
        )
