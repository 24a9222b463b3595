"""Looking at an autograd graph: what it leads to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


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
