"""What the two passes ask of the bound whose samples they go through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

from torch import Tensor

from fastvi.bounds.estimators import Estimator
from fastvi.bounds.sums import Sums
from fastvi.chunks.gradients import Draw, Guide
from fastvi.chunks.sample_group import SampleGroup


class Streamed(Protocol):
    """A bound of K samples, how it is differentiated, and how its samples are cut."""

    where: str
    num_samples: int
    estimator: Estimator
    key: Tensor
    chunk_size: int | Literal["auto"] | None
    memory_budget: int | None
    alpha: float
    beta: float
    sums: Callable[[], Sums] | None
    group: SampleGroup | None

    @property
    def log_likelihood(self) -> Any:
        """The function of z."""

    @property
    def share(self) -> tuple[int, int]:
        """The range of k that this process draws."""

    def draws(self) -> list[Draw]:
        """Return every chunk of this process."""

    def check_shares(self) -> None:
        """Refuse shares that would leave some ranks waiting for others."""

    def evaluate(
        self,
        guide: Guide,
        draw: Draw,
        *,
        graph: bool,
        join: Callable[[Tensor], Tensor] | None = None,
    ) -> Any:
        """Evaluate a chunk."""
