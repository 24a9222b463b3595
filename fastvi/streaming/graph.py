"""Looking at an autograd graph: what it leads to, and the part of it that a function made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvi._ext import C

# The nodes of an output's graph that this thread made since a mark, ``GraphPart.mark()``, and its
# sources, where older nodes and leaves begin: csrc/common/torch/graph_part.h.
GraphPart: Any = C.GraphPart


def mark() -> int:
    """A number that all graph nodes made after now, by this thread, exceed."""
    node = torch.zeros((), requires_grad=True).neg().grad_fn
    assert node is not None
    return node._sequence_nr()


def leaves_of(output: Tensor, mark: int | None = None) -> tuple[list[Tensor], bool]:
    """The leaf tensors that a graph leads to, and whether it uses nodes made before the mark."""
    if output.grad_fn is None:
        return ([output] if output.requires_grad else []), False
    leaves: list[Tensor] = []
    older = False
    seen = {output.grad_fn}
    todo = [output.grad_fn]
    while todo:
        node = todo.pop()
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(node.variable)  # type: ignore[attr-defined]
        elif mark is not None and node._sequence_nr() < mark:
            older = True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return leaves, older


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


def among(leaf: Tensor, tensors: Sequence[Tensor]) -> bool:
    return any(leaf is tensor for tensor in tensors)


@contextlib.contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Take the tensors' own hooks off: they are for the whole gradient, not for parts of it."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor._backward_hooks]
    for tensor, _ in hooked:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks
