"""The call of a kernel by a public op.

Eager calls go to the extension module: the same C++ function as the dispatcher's op, at half the
call overhead. Under ``torch.compile`` the op itself is called, which the compiler can trace. Under
``torch.func`` transforms (grad, vmap, jvp, ...) an opaque op gives an error, and ``jvp`` silently
zero, so the plain PyTorch reference runs instead, after the op has checked the arguments.
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
    """Return whether a ``torch.func`` transform is running, by a private function of torch."""
    return _functorch_active()


def exporting() -> bool:
    """Return whether ``torch.export`` is tracing, so that sizes may be symbols.

    A branch on a size would constrain the exported program.
    """
    return torch.compiler.is_compiling() and torch.compiler.is_exporting()


class Kernel(Protocol):
    """The type of an op that :func:`kernel` returns."""

    # Raises the errors of the op, without a computation.
    check: Callable[..., None]

    def __call__(self, *args: Any) -> Any: ...


_META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)


def _stand_in(x: Any, device: torch.device | str | None) -> Any:
    """Return a tensor with the shape and dtype of ``x`` without numbers; other objects as such."""
    if not isinstance(x, Tensor):
        return x
    return torch.empty((), dtype=x.dtype, device=device or x.device).expand(x.shape)


def kernel(name: str) -> Kernel:
    """Return the op ``name``, which calls pybind11 if eager and ``torch.ops`` if compiling."""
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
        # The op refuses several devices. On one device the result is not allocated.
        device = "meta" if len(devices) == 1 else None
        with torch._C._DisableFuncTorch():
            traced.default.redispatch(_META, *(_stand_in(x, device) for x in args))

    call.check = check  # type: ignore[attr-defined]
    return cast(Kernel, call)


def with_reference(reference: Callable[..., Any]) -> Callable[[F], F]:
    """Set the reference as an attribute of the op: ``op.reference``."""

    def decorate(op: F) -> F:
        op.reference = reference  # type: ignore[attr-defined]
        return op

    return decorate


def refuse_strict_export(where: str, estimators: str) -> None:
    """Refuse what the strict tracer of ``torch.export`` cannot read; it reads some estimators."""
    if exporting() and torch.compiler.is_dynamo_compiling():
        raise RuntimeError(
            f"{where}: chunk_size, group, signals, sums over groups of samples and estimators "
            f"other than {estimators} need torch.export.export(..., strict=False)"
        )
