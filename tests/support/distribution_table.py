"""The distributions that stand in for torch's, each with parameters and values to try it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributions as theirs

from fastvi import distributions as ours

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Family:
    """A distribution by one choice of its parameters."""

    label: str
    name: str
    parameters: Callable[[Draw], dict[str, Tensor]]  # of normals, [4, 5] or what broadcasts
    value: Callable[[Tensor], Tensor]  # from normals
    differentiable: bool = True  # by the value

    def draw(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", lead: tuple[int, ...] = ()
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters of batch shape (4, 5), and values of shape (*lead, 4, 5)."""
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            return x.to(device, dtype)

        return self.parameters(normal), self.value(normal(*lead, 4, 5))

    @property
    def ours(self) -> Any:
        return getattr(ours, self.name)

    @property
    def theirs(self) -> Any:
        return getattr(theirs, self.name)


def count(x: Tensor) -> Tensor:
    return (3 * x.abs()).floor()


FAMILIES = [
    Family(
        "normal",
        "Normal",
        lambda n: {"loc": n(4, 5), "scale": n(4, 5).exp()},
        lambda x: 2 * x,
    ),
    Family(
        "laplace",
        "Laplace",
        lambda n: {"loc": n(4, 5), "scale": n(4, 5).exp()},
        lambda x: 2 * x,
    ),
    Family(
        "bernoulli-logits",
        "Bernoulli",
        lambda n: {"logits": 2 * n(4, 5)},
        lambda x: (x > 0).to(x.dtype),
        differentiable=False,
    ),
    Family(
        "bernoulli-probs",
        "Bernoulli",
        lambda n: {"probs": n(4, 5).sigmoid()},
        lambda x: (x > 0).to(x.dtype),
        differentiable=False,
    ),
    Family(
        "categorical-logits",
        "Categorical",
        lambda n: {"logits": 2 * n(4, 5, 7)},
        lambda x: (2 * x.abs()).clamp_max(6).long(),
        differentiable=False,
    ),
    Family(
        "categorical-probs",
        "Categorical",
        lambda n: {"probs": n(4, 5, 7).exp()},
        lambda x: (2 * x.abs()).clamp_max(6).long(),
        differentiable=False,
    ),
    Family("poisson", "Poisson", lambda n: {"rate": n(4, 5).exp()}, count, differentiable=False),
    Family(
        "negative-binomial-logits",
        "NegativeBinomial",
        lambda n: {"total_count": n(4, 5).exp(), "logits": n(4, 5)},
        count,
        differentiable=False,
    ),
    Family(
        "negative-binomial-probs",
        "NegativeBinomial",
        lambda n: {"total_count": n(4, 5).exp(), "probs": n(4, 5).sigmoid()},
        count,
        differentiable=False,
    ),
]
families = pytest.mark.parametrize("family", FAMILIES, ids=[f.label for f in FAMILIES])
NAMES = sorted({family.name for family in FAMILIES})


def both(family: Family, parameters: dict[str, Tensor], **options):
    return family.ours(**parameters, **options), family.theirs(**parameters, **options)
