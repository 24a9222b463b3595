"""Find the modules and parameters that a callable works with, wherever it keeps them."""

from __future__ import annotations

import collections
import dis
import enum
import functools
import os
import sys
import types
import weakref
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Found = nn.Module | Tensor | torch.Generator

# Attributes of torch's own: hooks, and the parameters, buffers and modules by name.
_OWN_TO_TORCH = frozenset(vars(nn.Module()))
# Functions of these libraries use their arguments, not the globals of their files.
_LIBRARIES = frozenset(
    {"torch", "fastvi", "numpy", "scipy", "pyro", "numpyro", "jax", "lightning"}
    | {"pytorch_lightning", "pandas", "sklearn", "matplotlib"}
)
# Objects of these libraries hold no model: tables, loggers, threads, trainers.
_OPEN = frozenset(
    {"torch", "fastvi", "pyro", "numpyro", "types", "collections", "functools", "weakref"}
    | {"argparse", "contextlib", "typing"}
)
# CPython's flag for types that a class statement made.
_WRITTEN_IN_PYTHON = 1 << 9
# A longer container holds data: only its own modules and parameters are searched.
_MOST_ITEMS = 1000
# A tensor with a longer graph is a model's output, not a transformed parameter.
_MOST_NODES = 10_000
_ATOMS = (
    types.NoneType, bool, int, float, complex, str, bytes, bytearray, range, slice, memoryview,
    enum.Enum, torch.dtype, torch.device, torch.Size, types.CodeType, types.FrameType,
    # These objects change a model, and are no part of it.
    Optimizer, LRScheduler,
)  # fmt: skip
_CONTAINERS = (list, tuple, set, frozenset, collections.deque)
# The mark in a name of an entry of a set in which modules look alike: sets have no order.
NO_ORDER = "{}"


def find_parts(name: str, start: Any) -> dict[str, Found]:
    """Find modules, leaf tensors that may be trained, and generators; none is inside another.

    They are found behind functions (their closures, defaults, and the globals that the code uses),
    bound methods, partials, wrapped functions, containers, and the attributes of any object. Only
    stored attributes are read: no property and no code of an object runs.

    Returns:
        The parts by names that say where each was found, the same in every run; nearest first.
    """
    walk = _Walk()
    found: dict[str, Found] = {}
    walk.add(name, start)
    while walk.waiting:
        where, part = walk.waiting.popleft()
        kind = type(part)
        if issubclass(kind, nn.Module) or issubclass(kind, torch.Generator):
            found[where] = part
        elif issubclass(kind, Tensor):
            for leaf_name, leaf in _leaves(where, part):
                if walk.is_new(leaf) or leaf is part:
                    found[leaf_name] = leaf
            continue
        walk.add_inside(where, part)
    inner = {
        id(piece)
        for part in found.values() if isinstance(part, nn.Module)
        for piece in [*part.modules(), *part.parameters(), *part.buffers()] if piece is not part
    }  # fmt: skip
    return {where: part for where, part in found.items() if id(part) not in inner}


class _Walk:
    """Walk breadth first, so that each part gets its shortest name."""

    def __init__(self) -> None:
        self.waiting: collections.deque[tuple[str, Any]] = collections.deque()
        # The objects are kept, because the address of a deleted object is used again.
        self._seen: dict[Any, Any] = {}

    def is_new(self, part: Any) -> bool:
        # Each access makes another object of a bound method.
        method = type(part) is types.MethodType
        key = (id(part.__self__), id(part.__func__)) if method else id(part)
        if key in self._seen:
            return False
        self._seen[key] = (part, part.__self__, part.__func__) if method else part
        return True

    def add(self, where: str, part: Any) -> None:
        if not issubclass(type(part), _ATOMS) and self.is_new(part):
            self.waiting.append((where, part))

    def add_inside(self, where: str, part: Any) -> None:
        for name, value in _inside(part):
            self.add(f"{where}.{name}", value)


def _leaves(where: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Return the tensor if it may be trained, else the leaves that it was computed from."""
    if isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad):
        yield where, tensor
    elif tensor.requires_grad:
        for number, leaf in enumerate(leaves_of(tensor, _MOST_NODES)):
            yield f"{where}.from.{number}", leaf


def leaves_of(tensor: Tensor, most: int | None = None) -> list[Tensor]:
    """Return the leaves that a tensor's backward gives gradients, or none for a long graph."""
    found: dict[int, Tensor] = {}
    seen = {tensor.grad_fn}
    waiting = [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if most is not None and len(seen) > most:
            return []
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and variable.is_leaf:
            found[id(variable)] = variable
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                waiting.append(after)
    return list(found.values())


# ---- the content of an object---------------------------------------------------------------------
def _inside(part: Any) -> Iterator[tuple[str, Any]]:
    kind = type(part)
    if issubclass(kind, nn.Module):
        for name, module in part.named_modules():
            for key, value in _of_module(module):
                yield f"{name}.{key}" if name else key, value
        return
    if issubclass(kind, functools.partial):
        yield "func", part.func
        yield "args", part.args
        yield "keywords", part.keywords
    elif kind is types.MethodType:
        yield "self", part.__self__
        yield "func", part.__func__
        yield from _of_names(part.__self__, part.__func__)
    elif kind is types.FunctionType:
        yield from _of_function(part)
    elif kind is types.CellType:
        yield "cell", _contents(part)
    elif issubclass(kind, weakref.ref):
        yield "target", weakref.ref.__call__(part)
    elif issubclass(kind, dict):
        chosen = _chosen(dict.values(part))
        for number, (key, value) in enumerate(dict.items(part)):
            if chosen(value):
                yield _key(number, key), value
    elif kind is types.MappingProxyType:
        yield "mapping", dict(part)
    elif issubclass(kind, _CONTAINERS):
        yield from _of_container(part)
    elif issubclass(kind, (types.ModuleType, type)):
        return
    elif _library(kind.__module__) and _top(kind.__module__) not in _OPEN:
        return
    elif (function := _called(kind)) is not None:
        yield "call", types.MethodType(function, part)
    yield from _attributes(part)


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield a module's other attributes, and the names that its own code uses."""
    for key, value in vars(module).items():
        if key not in _OWN_TO_TORCH:
            yield key, value
    forward = _in_class(type(module), "forward")
    if isinstance(forward, types.FunctionType):
        yield "forward", types.MethodType(forward, module)


def _of_container(part: Any) -> Iterator[tuple[str, Any]]:
    base = next(base for base in _CONTAINERS if isinstance(part, base))
    items = list(base.__iter__(part))
    chosen = _chosen(items)
    if base in (set, frozenset):
        yield from _in_order([item for item in items if chosen(item)])
        return
    fields = getattr(type(part), "_fields", None) if base is tuple else None
    named = isinstance(fields, tuple) and len(fields) == len(items)
    for number, item in enumerate(items):
        if chosen(item):
            yield str(fields[number] if named and fields else number), item


def _chosen(items: Collection[Any]) -> Callable[[Any], bool]:
    """Return the items of a container that are searched: none of a million numbers."""
    kinds = {kind for kind in set(map(type, items)) if not issubclass(kind, _ATOMS)}
    if len(items) > _MOST_ITEMS:
        kinds = {k for k in kinds if issubclass(k, (nn.Module, Tensor, torch.Generator))}
        return lambda item: type(item) in kinds and getattr(item, "requires_grad", True)
    return lambda item: type(item) in kinds


def _key(number: int, key: Any) -> str:
    """Return a name of an entry that is the same in every run, unlike some reprs."""
    if isinstance(key, enum.Enum):
        return key.name
    if isinstance(key, tuple):
        return "(" + ", ".join(_key(number, part) for part in key) + ")"
    named = isinstance(key, (str, int, float, bool, types.NoneType))
    return str(key) if named else f"#{number}"


def _in_order(items: list[Any]) -> list[tuple[str, Any]]:
    """Return the items of a set in an order that is the same in every process."""
    rows = sorted(((_sort_key(item), item) for item in items), key=lambda row: row[0])
    times = collections.Counter(looks for looks, _ in rows)
    return [
        (str(number) if times[looks] == 1 else f"{NO_ORDER}{number}", item)
        for number, (looks, item) in enumerate(rows)
    ]


def _sort_key(item: Any) -> str:
    kind = f"{type(item).__module__}.{type(item).__qualname__}"
    if isinstance(item, nn.Module):
        kinds = [type(module).__qualname__ for module in item.modules()]
        known = [value for value in item.parameters() if not nn.parameter.is_lazy(value)]
        return f"{kind} {kinds} {[tuple(value.shape) for value in known]}"
    if isinstance(item, Tensor):
        return f"{kind} {tuple(item.shape)} {item.dtype}"
    if isinstance(item, types.FunctionType):
        return f"{kind} {item.__qualname__}"
    return f"{kind} {item}" if isinstance(item, (str, int, float)) else kind


def _attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object stores in its dictionary, its slots, and its class."""
    try:
        stored = object.__getattribute__(part, "__dict__")
    except AttributeError:
        stored = {}
    if isinstance(stored, dict):
        for name, value in list(stored.items()):
            yield str(name), value
    for base in type(part).__mro__:
        if not base.__flags__ & _WRITTEN_IN_PYTHON:
            continue
        for name, value in vars(base).items():
            if type(value) is types.MemberDescriptorType and not name.startswith("__"):
                try:
                    yield name, value.__get__(part)
                except AttributeError:
                    continue
            elif isinstance(value, (nn.Module, nn.Parameter)):
                yield name, value


# ---- functions ----------------------------------------------------------------------------------
def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield a function's closure, its defaults, and the globals that it uses."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, _contents(cell)
    yield "defaults", function.__defaults__ or ()
    yield "defaults", function.__kwdefaults__ or {}
    if _library(function.__module__):
        return
    names = _names(function.__code__)
    for name in names.of_file:
        if name in function.__globals__:
            value = function.__globals__[name]
            yield name, value
            if isinstance(value, (types.ModuleType, type)):
                yield from _of_namespace(name, value, names)


def _of_namespace(
    name: str, space: types.ModuleType | type, names: _Names, depth: int = 4
) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a Python module or a class that the code names."""
    own = space.__name__ if isinstance(space, types.ModuleType) else space.__module__
    if depth == 0 or _library(own):
        return
    for attribute in names.of_attributes:
        value = _in_class(space, attribute) if isinstance(space, type) else None
        if isinstance(space, types.ModuleType):
            value = vars(space).get(attribute)
            if isinstance(value, (types.ModuleType, type)):
                yield from _of_namespace(f"{name}.{attribute}", value, names, depth - 1)
        yield f"{name}.{attribute}", _function_in(value)


def _of_names(owner: Any, function: Any) -> Iterator[tuple[str, Any]]:
    """Yield the methods and properties of its class that a method's code names."""
    if not isinstance(function, types.FunctionType):
        return
    kind = owner if isinstance(owner, type) else type(owner)
    if _library(function.__module__):
        return
    for name in _names(function.__code__).of_attributes:
        value = _in_class(kind, name)
        inner = _function_in(value)
        if inner is value and not isinstance(value, types.FunctionType):
            yield name, value
        elif isinstance(inner, types.FunctionType):
            yield name, types.MethodType(inner, owner)
        else:
            yield name, inner


def _in_class(kind: type, name: str) -> Any:
    """Return a stored attribute of a class, without a call of its descriptor."""
    for base in kind.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return None


def _function_in(value: Any) -> Any:
    """Return the function of a descriptor."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    if isinstance(value, (functools.cached_property, functools.partialmethod)):
        return value.func
    return value


def _called(kind: type) -> types.FunctionType | None:
    """Return the function that a call of an object runs."""
    value = _in_class(kind, "__call__")
    return value if isinstance(value, types.FunctionType) else None


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return None


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]


@functools.cache
def _library(module: str | None) -> bool:
    """Return whether a module is Python's own or a library's, not a file of the same name."""
    top = _top(module)
    if top in _LIBRARIES:
        return True
    # Code without a file, as in exec, has builtins as its module.
    if top == "builtins" or top not in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is None or file.startswith(os.path.dirname(os.__file__) + os.sep)


class _Names:
    """Collect the names that a code object, and the functions inside it, look up."""

    def __init__(self, code: types.CodeType) -> None:
        of_file: set[str] = set()
        of_attributes: set[str] = set()
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                of_file.add(step.argval)
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR", "LOAD_FROM"):
                of_attributes.add(step.argval)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = _names(constant)
                of_file |= set(inner.of_file)
                of_attributes |= set(inner.of_attributes)
        self.of_file: list[str] = sorted(of_file)
        self.of_attributes: list[str] = sorted(of_attributes)


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> _Names:
    return _Names(code)
