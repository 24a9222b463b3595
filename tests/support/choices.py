"""The mean over all choices of few samples, exact: by the numbers that a choice depends on.

A choice depends on one number u from 0 to 1, in steps: it changes where u plus a whole number is a
sum of inclusion probabilities. So the mean is a finite sum, in which the probabilities here are
found in another way than in the package: by bisection.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastvi.chunks import choice, engine


def probabilities(measure: Tensor, count: int) -> Tensor:
    """min(1, c w) of one datum, (K,), where c makes the sum ``count``, or all that measure."""
    possible = int((measure > 0).sum())
    if possible <= count:
        return (measure > 0).double()
    low, high = 0.0, 1.0
    while (high * measure).clamp(max=1.0).sum() < count:
        high *= 2.0
    for _ in range(200):
        middle = (low + high) / 2
        if (middle * measure).clamp(max=1.0).sum() < count:
            low = middle
        else:
            high = middle
    return (high * measure).clamp(max=1.0)


def steps(measure: Tensor, count: int) -> Tensor:
    """Where between 0 and 1 the choice of one datum changes."""
    return probabilities(measure, count).cumsum(0).remainder(1.0)


def mean_over_choices(
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[], tuple[Tensor, ...]],
    most: Callable[[int], int] = lambda number: number,
) -> tuple[tuple[Tensor, ...], int]:
    """Average over u what a step returns; returns how many choices there were as well.

    All data, and all parts of the gradient, have the same u: a gradient is a sum over them.
    ``most`` is the largest number of choices of all processes, which have to take as many steps.
    """
    places = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    included = choice.included

    def watched(measure: Tensor, count: Tensor, uniform: Tensor, width: int):
        for row, number in zip(measure, count.tolist(), strict=True):
            places.append(steps(row, number))
        return included(measure, count, uniform, width)

    with monkeypatch.context() as patch:
        patch.setattr(choice, "included", watched)
        run()
    ends = torch.cat(places).sort().values
    # Sums of probabilities round, and no choice lasts for so short.
    ends = ends[torch.cat([torch.ones(1, dtype=torch.bool), ends.diff() > 1e-12])]
    total: tuple[Tensor, ...] = ()
    intervals = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    intervals += [(0.5, 0.5)] * (most(len(intervals)) - len(intervals))
    for begin, end in intervals:
        middle = (begin + end) / 2

        def same_for_all(key: Tensor, parts: int, first: int, batch: torch.Size, at=middle):
            return torch.full((parts, *batch), at, dtype=torch.float64)

        with monkeypatch.context() as patch:
            patch.setattr(engine, "uniform_of", same_for_all)
            found = run()
        weighed = tuple((end - begin) * each for each in found)
        total = tuple(a + b for a, b in zip(total, weighed, strict=True)) if total else weighed
    return total, len(ends) - 1
