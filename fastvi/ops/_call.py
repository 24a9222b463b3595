"""How a public op reaches its kernel.

Eager calls go to the extension module: the same C++ function as the dispatcher's op, at half the
call overhead. Under ``torch.compile`` the op itself is called, which the compiler can trace. Under
``torch.func`` transforms (grad, vmap, jvp, ...) an opaque op gives an error, and ``jvp`` silently
zero, so the plain PyTorch reference runs instead, once the op has checked the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from fastvi._ext import C

F = TypeVar("F", bound=Callable[..., Any])

# In the metadata of a node of the graph whose hook is ours: it counts on no other hook being run.
OWN_HOOK = "fastvi"

_functorch_active = torch._C._are_functorch_transforms_active


def transforms_active() -> bool:
    """Whether a ``torch.func`` transform is running (a private function of torch, wrapped once)."""
    return _functorch_active()


def exporting() -> bool:
    """Whether ``torch.export`` is tracing, so that sizes may stand for any number.

    A choice by size would be a constraint of the exported program.
    """
    return torch.compiler.is_compiling() and torch.compiler.is_exporting()


class Kernel(Protocol):
    """An op as :func:`kernel` gives it."""

    # Raises what the op would, and computes nothing.
    check: Callable[..., None]

    def __call__(self, *args: Any) -> Any: ...


_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)


def _stand_in(x: Any, device: torch.device | str | None) -> Any:
    """A tensor with the shape and dtype of ``x``, and no numbers; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty((), dtype=x.dtype, device=device or x.device).expand(x.shape)


def kernel(name: str) -> Kernel:
    """The op ``name``: through pybind11 when eager, through ``torch.ops`` when compiling."""
    eager = getattr(C, name)
    traced = getattr(torch.ops.fastvi, name)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return traced(*args)
        return eager(*args)

    def check(*args: Any) -> None:
        # The reference broadcasts and promotes as torch does, so it takes what the op refuses. The
        # checks and their words are in the op's shape function, which runs below the transforms.
        if torch.compiler.is_compiling():
            return
        devices = {x.device for x in args if isinstance(x, Tensor)}
        # On several devices the op refuses; on one, the result of that shape is not allocated.
        device = "meta" if len(devices) == 1 else None
        with torch._C._DisableFuncTorch():
            traced.default.redispatch(_META, *(_stand_in(x, device) for x in args))

    call.check = check  # type: ignore[attr-defined]
    return cast(Kernel, call)


def with_reference(reference: Callable[..., Any]) -> Callable[[F], F]:
    """Hang the oracle on the op: ``op.reference``."""

    def decorate(op: F) -> F:
        op.reference = reference  # type: ignore[attr-defined]
        return op

    return decorate
