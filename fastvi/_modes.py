"""The mode of autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_REPEATED: ContextVar[bool] = ContextVar("repeated", default=False)


def records_graphs() -> bool:
    """Return whether autograd records; in inference mode it does not, even with grad enabled.

    The compiler cannot read the mode, and compiles only for the ordinary one.
    """
    if not torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()


@contextmanager
def repeated(again: bool) -> Iterator[None]:
    """Say whether what runs in the context runs again later, with a graph, for the same bits."""
    token = _REPEATED.set(again)
    try:
        yield
    finally:
        _REPEATED.reset(token)


def rounds_freely() -> bool:
    """Return whether values may round otherwise than with a graph: nothing is recorded or repeated.

    The compiler cannot read the context, and compiles only for what may not.
    """
    return not torch.compiler.is_compiling() and not (records_graphs() or _REPEATED.get())
