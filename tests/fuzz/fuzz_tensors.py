"""Tensors of all kinds: shapes that broadcast, strides, dtypes, and the ends of the numbers."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import Tensor

Shape = tuple[int, ...]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "expanded", "negated", "column")
# Enough for odd tails of vectors, few enough for 110 digits of each.
MOST_ELEMENTS = 48


def arranged(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides."""
    if layout == "transposed":
        order = tuple(reversed(range(x.ndim)))
        return x.permute(order).contiguous().permute(order)
    if layout == "sliced" and x.ndim:
        room = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), math.nan, dtype=x.dtype)
        room[..., 1::2] = x
        return room[..., 1::2]
    if layout == "offset":
        room = torch.full((x.numel() + 3,), math.nan, dtype=x.dtype)
        room[3:] = x.flatten()
        return room[3:].view(x.shape)
    if layout == "expanded" and x.ndim and x.shape[0]:
        return x[:1].expand(x.shape)
    if layout == "negated":
        return torch._neg_view(-x)
    if layout == "column" and x.ndim:
        room = torch.full((*x.shape, 3), math.nan, dtype=x.dtype)
        room[..., 1] = x
        return room[..., 1]
    return x.contiguous()


@dataclass(frozen=True)
class Numbers:
    """A few numbers that fill a tensor of any shape."""

    pool: tuple[float, ...]
    layout: str

    def tensor(self, shape: Shape, dtype: torch.dtype, *, positive: bool = False) -> Tensor:
        limits = torch.finfo(dtype)
        pool = torch.tensor(self.pool, dtype=torch.float64)
        rounded = torch.where(pool.isinf(), pool, pool.clamp(limits.min, limits.max)).to(dtype)
        if positive:
            rounded = rounded.clamp(min=limits.smallest_normal * limits.eps)
        count = math.prod(shape)
        # A step that has no period in common with the usual sizes.
        index = (torch.arange(count) * 7 + torch.arange(count) // 11) % len(self.pool)
        return arranged(rounded[index].reshape(shape), self.layout)


def _signed(smallest: float, largest: float) -> st.SearchStrategy[float]:
    """Evenly in the logarithm of the magnitude."""
    powers = st.floats(smallest, largest, allow_nan=False)
    return st.tuples(powers, st.sampled_from((1.0, -1.0))).map(lambda t: t[1] * 10.0 ** t[0])


_USUAL = st.integers(-64, 64).map(lambda n: n / 16)
_TINY = (1.4e-45, 5e-324, 1.2e-38, 6e-8, 1e-20)
REAL = st.one_of(
    _USUAL,
    st.sampled_from((0.0, -0.0, 1.0, -1.0, 1e4, -1e5, 3e38, -3e38, 1e300, *_TINY)),
    _signed(-46, 38),
)
POSITIVE = st.one_of(
    st.integers(1, 80).map(lambda n: n / 16),
    st.sampled_from((1.0, 1e-8, 1e7, 1e12, 3e38, *_TINY)),
    _signed(-46, 12).map(abs),
)
MILD = st.one_of(_USUAL, _signed(-3, 3))
# A logarithm of what a float32 can hold, and somewhat beyond.
LOGARITHM = st.one_of(
    st.integers(-64, 64).map(lambda n: n / 16),
    st.sampled_from((0.0, -0.0, 88.0, 89.0, -87.0, -90.0, -104.0, 170.0, -170.0)),
    st.floats(-80, 80),
)
UNIT = st.one_of(st.sampled_from((0.0, 1.0, 0.5, -0.0)), st.integers(0, 64).map(lambda n: n / 64))
COUNT = st.one_of(
    st.integers(0, 20).map(float),
    st.sampled_from((0.0, 1.0, 2.0, 1e5, 1e7, 1e9, 123457.0)),
    st.floats(0, 6).map(lambda p: float(round(10**p))),
)
# A dispersion above 1e30 is taken as that, which no mean of this size notices.
MEAN = POSITIVE.filter(lambda x: x <= 1e12)
RATE = st.one_of(POSITIVE, st.just(0.0))
LOG_WEIGHT = st.one_of(
    _USUAL, _signed(-3, 5), st.sampled_from((-math.inf, -1e5, 700.0, -700.0, 0.0, 88.0))
)


def numbers(values: st.SearchStrategy[float]) -> st.SearchStrategy[Numbers]:
    return st.builds(
        Numbers, st.lists(values, min_size=1, max_size=7).map(tuple), st.sampled_from(LAYOUTS)
    )


# Alone, square, long beside short, with ones and with nothing.
_SHAPES: tuple[Shape, ...] = (
    (), (1,), (2,), (3,), (5,), (17,), (0,), (3, 2), (2, 5), (4, 4), (5, 1), (1, 3), (17, 2),
    (2, 17), (0, 3), (3, 0), (2, 3, 5), (3, 1, 2), (2, 2, 2), (1, 5, 3), (4, 2, 1), (2, 0, 3),
    (1, 1, 1), (1, 17, 2), (2, 1, 3, 2),
)  # fmt: skip


def shapes(least: int = 0, most: int = 4, largest: int = MOST_ELEMENTS) -> st.SearchStrategy[Shape]:
    return st.sampled_from(
        [s for s in _SHAPES if least <= len(s) <= most and math.prod(s) <= largest]
    )


def parts(full: Shape) -> st.SearchStrategy[Shape]:
    """Any shape that broadcasts to the full one: without leading sizes, and with ones."""
    found = {full: None}
    for first in range(len(full) + 1):
        for kept in itertools.product(*((size, 1) for size in full[first:])):
            found[kept] = None
    return st.sampled_from(list(found))


@dataclass(frozen=True)
class Case:
    """A call of an op: tensors by name, options, and how it is made."""

    op: str
    full: Shape
    shapes: dict[str, Shape]
    numbers: dict[str, Numbers]
    dtypes: dict[str, torch.dtype]
    positive: frozenset[str]
    options: dict[str, object]
    mode: str = "kernel"
    extra: int = 0
    made: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: self.numbers[name].tensor(
                shape, self.dtypes[name], positive=name in self.positive
            )
            for name, shape in self.shapes.items()
        }
