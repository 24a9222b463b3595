"""What torch's compiler is to do with a function, without an import of the compiler.

The decorators of ``torch.compiler`` import it, which takes longer than all of fastvi. Who compiles
has imported it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def _disabled(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    return torch.compiler.disable(function, reason=reason)


def not_compiled(reason: str) -> Callable[[F], F]:
    """Run the function, and what it calls, as it is: ``torch.compiler.disable``."""

    def decorate(function: F) -> F:
        as_it_is: Callable[..., Any] | None = None

        # The compiler passes by a frame that has no tensors and does not name torch.
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            nonlocal as_it_is
            if "torch._dynamo" not in sys.modules:
                return function(*args, **named)
            if as_it_is is None:
                as_it_is = _disabled(function, reason)
            return as_it_is(*args, **named)

        # What the compiler looks for where it traces a caller; else it would trace the call itself.
        call._torchdynamo_disable = True  # type: ignore[attr-defined]
        call._torchdynamo_disable_msg = reason  # type: ignore[attr-defined]
        return cast(F, call)

    return decorate


def constant_when_compiled(function: F) -> F:
    """Let the compiler take what the function returns once: ``assume_constant_result``."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
