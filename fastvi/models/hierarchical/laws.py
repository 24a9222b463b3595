"""Layers whose networks return distributions in place of a family's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

from fastvi.distributions import constant_parameters
from fastvi.models._random import seed_of, seeded
from fastvi.models.hierarchical.families import FAMILIES, Family, Parameters

# The result of a network: a family's parameters, or a distribution.
Given = Parameters | Distribution
Drawing = tuple[Tensor, Tensor, "Callable[[], Tensor] | None"]


class InRows(Distribution):
    r"""A distribution of batch shape (rows,), with the rows in another shape: (K, \*batch)."""

    arg_constraints: dict = {}

    def __init__(self, base: Distribution, rows: torch.Size) -> None:
        self.base = base
        super().__init__(rows, base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def support(self) -> Any:  # type: ignore[override]
        return self.base.support

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self.in_rows(self.base.mean, self.event_shape)

    def in_rows(self, x: Tensor, event: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        leading = x.shape[: x.ndim - 1 - len(event)]
        return x.reshape(*leading, *self.batch_shape, *event)

    def rsample(self, sample_shape: Any = ()) -> Tensor:  # type: ignore[override]
        return self.in_rows(self.base.rsample(torch.Size(sample_shape)), self.event_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:  # type: ignore[override]
        return self.in_rows(self.base.sample(torch.Size(sample_shape)), self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        batch, event = len(self.batch_shape), len(self.event_shape)
        shape = torch.broadcast_shapes(value.shape[: value.ndim - event], self.batch_shape)
        leading = shape[: len(shape) - batch]
        rows = value.expand(*shape, *self.event_shape)
        rows = rows.reshape(*leading, math.prod(self.batch_shape), *self.event_shape)
        return self.in_rows(self.base.log_prob(rows))


@register_kl(InRows, InRows)
def _kl_in_rows(q: InRows, p: InRows) -> Tensor:
    if q.batch_shape != p.batch_shape:
        raise NotImplementedError
    return q.in_rows(kl_divergence(q.base, p.base))


class AnyLaw(Family):
    """The family of a layer whose network returned a distribution."""

    parameters = ()
    by_number = False

    def is_reparameterised(self, given: Given) -> bool:
        return bool(_law(given).has_rsample)

    def draw_held(
        self, given: Given, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> Drawing:
        assert not isinstance(sample_offset, Tensor)
        law = _law(given)
        count = 1 if num_samples is None else num_samples
        plain = law.base if isinstance(law, InRows) else law
        along: Callable[[], Tensor] | None = None
        # torch's distributions draw by its own generator, which takes a seed from the key.
        with seeded(seed_of(key, sample_offset), key.device):
            if law.has_rsample:
                value, log_q, along = constant_parameters.draw("HierarchicalVAE", plain, count)
            else:
                value = plain.sample(torch.Size((count,)))
                log_q = plain.log_prob(value)

        def shaped(x: Tensor, event: torch.Size) -> Tensor:
            x = law.in_rows(x, event) if isinstance(law, InRows) else x
            return x[0] if num_samples is None else x

        value, log_q = shaped(value, law.event_shape), shaped(log_q, torch.Size())
        if along is None:
            return value, log_q, None
        own = along
        return value, log_q, lambda: shaped(own(), torch.Size())

    def draw(
        self, given: Given, num_samples: int | None, key: Tensor, sample_offset: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.draw_held(given, num_samples, key, sample_offset)[:2]

    def log_prob(self, value: Tensor, given: Given) -> Tensor:
        return _law(given).log_prob(value)

    def mean(self, given: Given) -> Tensor:
        law = _law(given)
        try:
            return law.mean
        except NotImplementedError as error:
            raise ValueError(
                f"HierarchicalVAE.reconstruct: expected num_samples for a layer without a mean, "
                f"{type(law).__name__}, got None"
            ) from error

    def law(self, given: Given) -> Distribution:
        return _law(given)

    def distribution(self, given: Given) -> Distribution:
        return _law(given)


_ANY = AnyLaw()


def family_of(name: str | None, given: Given) -> Family:
    """Return the family that draws and evaluates the result of a layer's network."""
    return _ANY if isinstance(given, Distribution) or name is None else FAMILIES[name]


def batch_of(given: Given) -> torch.Size:
    """Return the leading dimensions of the result of a layer's network."""
    return given.batch_shape if isinstance(given, Distribution) else given[0].shape[:-1]


def in_rows(
    where: str,
    role: str,
    name: str | None,
    law: Distribution,
    features: int,
    rows: torch.Size | None,
) -> Distribution:
    """Return the distribution of D features whose batch shape is the shape of the rows."""
    from fastvi.models.priors import event_of

    law = event_of(where, f"the {role} of layer {name!r}", law)
    if law.event_shape != (features,):
        raise ValueError(
            f"{where}: expected the {role} of layer {name!r} to return a distribution of "
            f"{features} features, got event shape {list(law.event_shape)}"
        )
    if rows is None or law.batch_shape == rows:
        return law
    if law.batch_shape != (math.prod(rows),):
        raise ValueError(
            f"{where}: expected the {role} of layer {name!r} to return a distribution of each of "
            f"{math.prod(rows)} rows, got batch shape {list(law.batch_shape)}"
        )
    return InRows(law, rows)


def _law(given: Given) -> Distribution:
    assert isinstance(given, Distribution)
    return given
