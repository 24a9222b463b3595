"""How a public op reaches its kernel.

Eager calls go to the extension module: the same C++ function as the dispatcher's op, at half the
call overhead. Under ``torch.compile`` the op itself is called, which the compiler can trace. Under
``torch.func`` transforms (grad, vmap, jvp, ...) an opaque op gives an error, and ``jvp`` silently
zero, so the plain PyTorch reference runs instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from fastvi._ext import C

F = TypeVar("F", bound=Callable[..., Any])

_functorch_active = torch._C._are_functorch_transforms_active


def transforms_active() -> bool:
    """Whether a ``torch.func`` transform is running (a private function of torch, wrapped once)."""
    return _functorch_active()


def kernel(name: str) -> Callable[..., Any]:
    """The op ``name``: through pybind11 when eager, through ``torch.ops`` when compiling."""
    eager = getattr(C, name)
    traced = getattr(torch.ops.fastvi, name)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return traced(*args)
        return eager(*args)

    return call


def with_reference(reference: Callable[..., Any]) -> Callable[[F], F]:
    """Hang the oracle on the op: ``op.reference``."""

    def decorate(op: F) -> F:
        op.reference = reference  # type: ignore[attr-defined]
        return op

    return decorate
