"""The surroundings of a user's function: parameters that replace a module's, and tensors that torch
computes from parameters. In the second pass they have to be the same.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, stateless
from torch.nn.utils.spectral_norm import SpectralNorm

# More items than this are data.
_MOST_ITEMS = 100
_LIBRARIES = frozenset({"torch", "fastvi", "numpy", "pyro", "math"})


class Surroundings:
    """Keep the present surroundings of a function, for a bound in several chunks.

    - ``torch.func.functional_call`` puts parameters into a module only during its call, which ends
      before the backward pass.
    - A parametrisation with buffers, such as the spectral norm, changes them when its tensor is
      computed. The tensor is computed once for all chunks, as it is without chunks.
    - A lazy layer draws its first weights at its first input, which it gets before the chunks.
    - Under ``parametrize.cached()`` tensors are computed once as well, with their graph.
    """

    def __init__(self, where: str, function: Any, num_chunks: int, needs_grad: bool) -> None:
        self.calls: list[dict[str, Any]] = []
        self.lists: list[nn.Module] = []
        self.once: _Once | None = None
        # Whether some layers get their sizes, and draw their weights, in the first chunk.
        self.is_lazy = False
        # Generators of the user, whose noise has to be repeated.
        self.generators: list[torch.Generator] = []
        if num_chunks < 2:
            return
        self.calls = _functional_calls()
        roots, self.generators = _behind(function)
        self.is_lazy = any(is_uninitialised(part) for root in roots for part in root.modules())
        self.lists = _stateful(where, roots)
        if self.lists or parametrize._cache_enabled:
            cache = parametrize._cache if parametrize._cache_enabled else None
            self.once = _Once(self.lists, cache, needs_grad)

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Compute tensors of parametrisations once in this context."""
        if self.once is None:
            yield
            return
        before = parametrize._cache_enabled, parametrize._cache
        parametrize._cache_enabled, parametrize._cache = 1, self.once
        try:
            yield
        finally:
            parametrize._cache_enabled, parametrize._cache = before

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Restore the surroundings of the first pass in this context."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.shared())
            for call in self.calls:
                stack.enter_context(stateless._reparametrize_module(**call))
            yield

    @contextlib.contextmanager
    def trial(self) -> Iterator[None]:
        """Do as ``shared`` does, for a run that leaves no graph and no other trace."""
        if self.once is None:
            yield
            return
        buffers = [buffer for each in self.lists for buffer in each.buffers()]
        before = [buffer.clone() for buffer in buffers]
        shared, self.once = self.once, _Once(self.lists, self.once.callers_copy(), False)
        self.once.cut = True
        try:
            with self.shared():
                yield
        finally:
            self.once = shared
            with torch.no_grad():
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)


class _Once(dict[Any, Any]):
    """torch's cache of parametrised tensors, during one bound.

    If the caller has no cache, it holds some parametrisations only, else it adds to that cache.
    """

    def __init__(
        self, lists: list[nn.Module], cache: dict[Any, Any] | None, needs_grad: bool
    ) -> None:
        super().__init__(cache or {})
        self._callers = cache
        self._chosen = {id(each) for each in lists}
        self._needs_grad = needs_grad
        self._made: dict[Any, tuple[Tensor, list[Tensor]]] = {}
        self.cut = False

    def callers_copy(self) -> dict[Any, Any] | None:
        return None if self._callers is None else dict(self._callers)

    def get(self, key: Any, default: Any = None) -> Any:
        parametrization = sys._getframe(1).f_locals["parametrization"]
        found = super().get(key)
        if found is None and self._callers is None and id(parametrization) not in self._chosen:
            return parametrization()
        if found is None:
            # torch's key is not enough: a copy of a module has the key of the original.
            originals = list(parametrization.parameters())
            mine = (id(parametrization), *map(id, originals))
            found, _ = self._made.get(mine, (None, None))
            if found is None:
                # The first chunks have no graph, and a checkpoint must not keep this one.
                with (
                    torch.set_grad_enabled(self._needs_grad or torch.is_grad_enabled()),
                    torch.autograd.graph.saved_tensors_hooks(_same, _same),
                ):
                    found = parametrization()
                self._made[mine] = (found, originals)
                if self._callers is not None:
                    self._callers[key] = found
        if self.cut and found.requires_grad:
            return found.detach().requires_grad_()
        return found


def _same(value: Any) -> Any:
    return value


def _functional_calls() -> list[dict[str, Any]]:
    """Return the functional calls around this code, the outermost first."""
    calls = []
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is stateless._functional_call.__code__:
            found = frame.f_locals
            calls.append(
                {
                    "module": found["module"],
                    "parameters_and_buffers": dict(found["parameters_and_buffers"]),
                    "tie_weights": found["tie_weights"],
                }
            )
        frame = frame.f_back
    return calls[::-1]


# ---- lazy layers --------------------------------------------------------------------------------
def is_uninitialised(module: nn.Module) -> bool:
    """Return whether a layer needs its first input to know its size."""
    # Not only a LazyModuleMixin has them: a class of a user may hold such parameters too.
    own = (*module._parameters.values(), *module._buffers.values())
    return any(value is not None and nn.parameter.is_lazy(value) for value in own)


def uninitialised(network: Any) -> str | None:
    """Return the name and the class of a network's first layer without a size, or None."""
    for name, module in network.named_modules() if isinstance(network, nn.Module) else ():
        if is_uninitialised(module):
            return f"layer {name!r}, {type(module).__name__}," if name else type(module).__name__
    return None


# ---- parametrisations that change when they are used --------------------------------------------
def _stateful(where: str, roots: list[nn.Module]) -> list[nn.Module]:
    found: list[nn.Module] = []
    for root in roots:
        for name, module in root.named_modules():
            if not module.training:
                continue
            if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
                raise ValueError(
                    f"{where}: expected the spectral norm of {name or type(module).__name__!r} to "
                    f"be that of torch.nn.utils.parametrizations with chunk_size, got the hook of "
                    f"torch.nn.utils.spectral_norm, which changes the weight with every chunk"
                )
            if isinstance(module, parametrize.ParametrizationList) and any(
                True for _ in module.buffers()
            ):
                _check_stateful(where, name, root, module)
                found.append(module)
    return found


def _check_stateful(where: str, name: str, root: nn.Module, module: nn.Module) -> None:
    parents = [part for part in root.modules() if module in set(part.modules())]
    compiled = any(
        part._compiled_call_impl is not None or type(part).__name__ == "OptimizedModule"
        for part in parents
    )
    sharded = any(type(part).__name__.startswith("FSDP") for part in parents)
    if compiled or sharded:
        raise ValueError(
            f"{where}: expected no parametrisation with a state of its own in training mode inside "
            f"a {'compiled' if compiled else 'sharded'} module with chunk_size, got {name!r}; "
            f"put that module into evaluation mode, or use chunk_size=None"
        )


def _behind(start: Any) -> tuple[list[nn.Module], list[torch.Generator]]:
    """Return the modules and generators in a function's closure, its object or its globals."""
    found: list[nn.Module] = []
    generators: list[torch.Generator] = []
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found.append(part)
        elif isinstance(part, torch.Generator):
            generators.append(part)
        elif isinstance(part, functools.partial):
            waiting += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, types.MethodType):
            waiting += [part.__self__, part.__func__]
        elif isinstance(part, types.FunctionType):
            waiting += _of_function(part)
        elif isinstance(part, (Mapping, list, tuple, set, frozenset)):
            if len(part) <= _MOST_ITEMS:
                waiting += part.values() if isinstance(part, Mapping) else part
        elif not isinstance(part, (type, types.ModuleType, Tensor)):
            if type(part).__module__.partition(".")[0] not in _LIBRARIES - {"fastvi"}:
                waiting += getattr(part, "__dict__", {}).values()
    return found, generators


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if (function.__module__ or "").partition(".")[0] not in _LIBRARIES:
        for name in _names(function.__code__):
            if name in function.__globals__:
                yield function.__globals__[name]


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType)
             for name in _names(part)]  # fmt: skip
    return (*code.co_names, *inner)
