"""When two ways of asking for one bound agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

# The layers of a decoder, forward and backward, a density, a bound over K and the mean over data:
# so many roundings of numbers as large as the largest, for each number that is added up.
ROUNDINGS = 512


def assert_equal_up_to_rounding(
    got: Sequence[Tensor], expected: Sequence[Tensor], terms: int, what: str
) -> None:
    assert len(got) == len(expected), what
    largest = max((x.abs().amax().item() for x in expected if x.numel()), default=0.0)
    assert math.isfinite(largest), f"{what}: {expected}"
    for number, (a, b) in enumerate(zip(got, expected, strict=False)):
        assert a.shape == b.shape, f"{what}, part {number}: shape {a.shape}, expected {b.shape}"
        allowed = ROUNDINGS * terms * 2.0**-52 * (1 + largest)
        gap = (a.double() - b.double()).abs()
        assert (gap <= allowed).all(), f"{what}, part {number}: {gap.max()} off, may be {allowed}"
