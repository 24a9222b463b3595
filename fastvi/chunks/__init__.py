"""Bounds of very many samples: in chunks, and shared among processes."""

from fastvi.chunks.engine import bound_at_once, bound_in_passes
from fastvi.chunks.few import BackwardSamples, Few
from fastvi.chunks.gaussian import GaussianSource
from fastvi.chunks.sample_group import SampleGroup, process_group_of, sum_gradients
from fastvi.chunks.setting import Cut
from fastvi.chunks.source import Evaluated, Path, Samples, Source

__all__ = [
    "BackwardSamples",
    "Cut",
    "Evaluated",
    "Few",
    "GaussianSource",
    "Path",
    "SampleGroup",
    "Samples",
    "Source",
    "bound_at_once",
    "bound_in_passes",
    "process_group_of",
    "sum_gradients",
]
