"""Bounds of very many samples: in chunks, and shared among processes."""

from fastvi.chunks.engine import Cut, bound_in_passes
from fastvi.chunks.gaussian import GaussianSource
from fastvi.chunks.sample_group import SampleGroup, sum_gradients
from fastvi.chunks.source import Evaluated, Path, Source

__all__ = [
    "Cut",
    "Evaluated",
    "GaussianSource",
    "Path",
    "SampleGroup",
    "Source",
    "bound_in_passes",
    "sum_gradients",
]
