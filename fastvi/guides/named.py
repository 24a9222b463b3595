"""Named parameters and their supports, to and from one row of unconstrained numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints


class Named:
    """Where each parameter stands in the row, and the bijection into its support."""

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
                self.transforms[name] = biject_to(support)
            except NotImplementedError as error:
                raise ValueError(
                    f"{where}: expected the support of {name!r} to be one that torch's biject_to "
                    f"reaches from the real numbers, got {support}"
                ) from error
            self.supports[name] = support
            self.sizes.append(self._unconstrained(name).numel())

    def _unconstrained(self, name: str) -> torch.Size:
        return torch.Size(self.transforms[name].inverse_shape(self.shapes[name]))

    def unconstrain(self, values: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The row of these values, zero where there is none."""
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

    def constrain(self, row: Tensor, elementwise: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """The named parameters of rows (*leading, D), and the bijections' log-determinants."""
        leading = row.shape[:-1]
        log_det = row.new_zeros(leading)
        values = {}
        for name, part in zip(self.names, row.split(self.sizes, -1), strict=True):
            transform = self.transforms[name]
            if elementwise and transform.domain.event_dim > 0:
                raise ValueError(
                    f"{self.where}.quantiles: expected the numbers of {name!r} to be bijected one "
                    f"by one, got the support {self.supports[name]}; take the quantiles of sample()"
                )
            u = part.reshape(leading + self._unconstrained(name))
            values[name] = transform(u)
            if self.supports[name] is not constraints.real:
                ladj = transform.log_abs_det_jacobian(u, values[name])
                extra = ladj.ndim - len(leading)
                log_det = log_det + (ladj.flatten(-extra).sum(-1) if extra else ladj)
        return values, log_det

    def rises(self, name: str) -> bool:
        """Whether a larger number before the bijection is a larger one after it."""
        return bool(self.transforms[name].sign > 0)

    def prior(self, name: str, prior: Distribution, value: Tensor) -> Tensor:
        """log p of each sample, [*leading]: a prior of numbers is summed over all of them."""
        try:
            log_prob = prior.log_prob(value)
        except ValueError as error:
            raise ValueError(
                f"{self.where}: expected the prior of {name!r} to allow its values, of shape "
                f"{list(value.shape)} in {self.supports[name]}, got {prior} with support "
                f"{prior.support}: {error}"
            ) from error
        if log_prob.shape + prior.event_shape != value.shape:
            raise ValueError(
                f"{self.where}: expected the prior of {name!r} to fit its shape, "
                f"{list(self.shapes[name])}, got batch shape {list(prior.batch_shape)} and event "
                f"shape {list(prior.event_shape)}"
            )
        extra = log_prob.ndim - (value.ndim - len(self.shapes[name]))
        return log_prob.flatten(-extra).sum(-1) if extra else log_prob


def _check_names(
    where: str, argument: str, given: Mapping[str, object], shapes: Mapping[str, object]
) -> None:
    unknown = sorted(set(given) - set(shapes))
    if unknown:
        raise ValueError(
            f"{where}: expected {argument} to be of the parameters {list(shapes)}, got {unknown}"
        )
