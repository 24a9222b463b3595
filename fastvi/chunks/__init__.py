"""Bounds of very many samples: in chunks, and shared among processes."""

from fastvi.chunks.sample_group import SampleGroup, sum_gradients
from fastvi.chunks.stream import Stream

__all__ = ["SampleGroup", "Stream", "sum_gradients"]
