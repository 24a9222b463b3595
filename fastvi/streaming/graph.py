"""The part of an autograd graph that a function of the user made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastvi._ext import C

# The nodes of an output's graph that this thread made since a mark, :func:`new_mark`, and its
# sources, where older nodes and leaves begin: csrc/common/torch/graph_part.h.
GraphPart: Any = C.GraphPart


def new_mark() -> int:
    """A number that all graph nodes made after now, by this thread, exceed."""
    # A weight that autocast has cast already has a node made before: it would be no parameter.
    torch.clear_autocast_cache()
    return GraphPart.mark()


def place(source: Tensor) -> tuple[object, int]:
    """Where a graph's source stands: equal for tensors of one place."""
    if source.grad_fn is None:
        return id(source), 0
    return source.grad_fn, source.output_nr


@contextlib.contextmanager
def cut(part: Any) -> Iterator[list[Tensor]]:
    """Let a part of a graph end in leaves of its own: one for each of its sources."""
    try:
        yield part.cut()
    finally:
        part.restore()
