"""The modules and parameters that a function works with: it may close over them."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

# What a module keeps for torch: hooks, and what it owns by name.
_OWN_TO_TORCH = frozenset(vars(nn.Module()))
_LIBRARIES = frozenset({"torch", "fastvi"})
# A longer list is data.
_MOST_ITEMS = 1000


def reach(name: str, start: Any) -> dict[str, nn.Module | nn.Parameter]:
    """Modules and parameters, by a name that is the same in every run, none inside another."""
    found: dict[str, nn.Module | nn.Parameter] = {}
    seen: set[int] = set()
    waiting = [(name, start)]
    while waiting:
        where, part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, (nn.Module, nn.Parameter)):
            found[where] = part
        waiting += [(f"{where}.{inner}", value) for inner, value in _inside(part)]
    inner = {
        id(piece)
        for part in found.values() if isinstance(part, nn.Module)
        for piece in [*part.modules(), *part.parameters()] if piece is not part
    }  # fmt: skip
    return {where: part for where, part in found.items() if id(part) not in inner}


def _inside(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, nn.Module):
        for name, module in part.named_modules():
            for key, value in vars(module).items():
                if key not in _OWN_TO_TORCH:
                    yield f"{name}.{key}" if name else key, value
    elif isinstance(part, functools.partial):
        yield "func", part.func
        yield "args", part.args
        yield "keywords", part.keywords
    elif isinstance(part, types.MethodType):
        yield "self", part.__self__
        yield "func", part.__func__
    elif isinstance(part, types.FunctionType):
        if (part.__module__ or "").partition(".")[0] not in _LIBRARIES:
            yield from _of_function(part)
    elif isinstance(part, (Mapping, list, tuple)) and len(part) > _MOST_ITEMS:
        return
    elif isinstance(part, Mapping):
        yield from ((str(key), value) for key, value in part.items())
    elif isinstance(part, (list, tuple)):
        yield from ((str(number), value) for number, value in enumerate(part))
    elif callable(part) and not isinstance(part, type):
        # An object with a __call__ of its own.
        yield from getattr(part, "__dict__", {}).items()


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What it closes over, its defaults, and what it finds among the names of its file."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue
    yield "defaults", function.__defaults__ or ()
    yield "defaults", function.__kwdefaults__ or {}
    for name in sorted(_globals(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _globals(code: types.CodeType) -> set[str]:
    names = {
        step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"
    }  # fmt: skip
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _globals(constant)
    return names
