"""Bounds of very many samples: in chunks, and shared among processes."""

from fastvi.streaming.sample_group import SampleGroup, sum_gradients
from fastvi.streaming.stream import Stream, Weigh

__all__ = ["SampleGroup", "Stream", "Weigh", "sum_gradients"]
