"""What is measured: a piece of work, and how each provider does it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

COMPILE, CHECKPOINT = "compile", "checkpoint"
PROVIDERS = ("fastvi", "eager", COMPILE)
FORWARD, FORWARD_BACKWARD = "forward", "forward+backward"
MODES = (FORWARD, FORWARD_BACKWARD)
CUDA_GRAPHS = "cudagraphs"
MAX_INPUT_SETS = 8

Run = Callable[[], object]
Function = Callable[..., Any]
Compile = Callable[[Function], Function]
Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One measurement: the work, its sizes by letter, and how it is run."""

    op: str
    sizes: Mapping[str, int]
    mode: str
    dtype: str = "float32"
    device: str = "cpu"
    # The least that each other provider's time over ours must be, where a target is set.
    targets: Mapping[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        return "x".join(f"{letter}{size}" for letter, size in self.sizes.items())

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def backward(self) -> bool:
        return self.mode == FORWARD_BACKWARD


class Work(Protocol):
    """What the worker needs of a piece of work."""

    @property
    def name(self) -> str: ...

    @property
    def providers(self) -> tuple[str, ...]: ...

    def runs(self, provider: str, case: Case) -> dict[str, Run]:
        """Each way in which the provider can do the case, by name; a call of one does it once."""

    def num_bytes(self, case: Case) -> int | None:
        """The least that must move through memory: each input read and each output written once."""


@dataclass(frozen=True)
class OpWork:
    """An op: a function of tensors, its gradient, and the same mathematics by other means."""

    name: str
    # The inputs from the sizes, and which of them training needs the gradient of.
    draw: Callable[[Draw, Mapping[str, int]], tuple[Tensor, ...]]
    trained: tuple[int, ...]
    # f(num_samples, *inputs) -> outputs.
    fastvi: Function
    eager: Function
    # (compile, num_samples) -> f(*inputs), by the name of the variant.
    compiled: Mapping[str, Callable[[Compile, int], Function]]
    # (sizes, bytes per element) -> bytes of the forward, and of the backward pass.
    traffic: Callable[[Mapping[str, int], int], tuple[int, int]]
    providers: tuple[str, ...] = PROVIDERS

    def functions(self, provider: str, case: Case) -> dict[str, Function]:
        num_samples = case.sizes.get("K", 1)
        if provider == "fastvi":
            return {"": functools.partial(self.fastvi, num_samples)}
        if provider == "eager":
            return {"": functools.partial(self.eager, num_samples)}
        if provider == CHECKPOINT:
            return {"": _checkpointed(functools.partial(self.eager, num_samples))}
        if provider != COMPILE:
            raise ValueError(f"{self.name}: expected provider to be one of {self.providers}")
        return {
            name + suffix: make(compiler, num_samples)
            for suffix, compiler in compilers(case.device).items()
            for name, make in self.compiled.items()
        }

    def runs(self, provider: str, case: Case) -> dict[str, Run]:
        sets = [self.inputs(case, seed) for seed in range(self._num_sets(case))]
        functions = self.functions(provider, case)
        if not case.backward:
            return {name: _forward(function, sets) for name, function in functions.items()}
        return {
            name: _forward_backward(function, sets, self.trained)
            for name, function in functions.items()
        }

    def inputs(self, case: Case, seed: int = 0) -> tuple[Tensor, ...]:
        inputs = self.draw(normal_draw(case, seed), case.sizes)
        if case.backward:
            for index in self.trained:
                inputs[index].requires_grad_()
        return inputs

    def num_bytes(self, case: Case) -> int:
        forward, backward = self.traffic(case.sizes, case.torch_dtype.itemsize)
        return forward + backward if case.backward else forward

    def _num_sets(self, case: Case) -> int:
        """As many input sets, used in turn, as it takes for none to lie in the card's cache."""
        if case.device == "cpu":
            return 1
        cache = torch.cuda.get_device_properties(case.device).L2_cache_size
        return min(MAX_INPUT_SETS, 1 + math.ceil(3 * cache / self.num_bytes(case)))


def normal_draw(case: Case, seed: int) -> Draw:
    """Standard normals of the case's dtype and device, the same for every provider."""
    generator = torch.Generator(case.device).manual_seed(1 + seed)

    def draw(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        noise = torch.randn(shape, device=case.device, generator=generator)
        return noise.to(dtype or case.torch_dtype)

    return draw


def compilers(device: str) -> dict[str, Compile]:
    """torch.compile in its plain mode, and on a card with CUDA graphs too."""
    compile_ = functools.partial(torch.compile, dynamic=False, fullgraph=True)
    if device == "cpu":
        return {"": compile_}
    graphs = functools.partial(compile_, mode="reduce-overhead")
    return {"": compile_, f", {CUDA_GRAPHS}": graphs}


def _checkpointed(function: Function) -> Function:
    from torch.utils.checkpoint import checkpoint

    return functools.partial(checkpoint, function, use_reentrant=False)


def _in_turn(sets: list[Any]) -> Callable[[], Any]:
    turns: Iterator[Any] = itertools.cycle(sets)
    return turns.__next__


def _forward(function: Function, sets: list[tuple[Tensor, ...]]) -> Run:
    pick = _in_turn(sets)

    def run() -> object:
        return function(*pick())

    return run


def _forward_backward(
    function: Function, sets: list[tuple[Tensor, ...]], trained: tuple[int, ...]
) -> Run:
    outputs = function(*sets[0])
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    generator = torch.Generator(sets[0][0].device).manual_seed(0)
    upstream = tuple(
        torch.randn(out.shape, device=out.device, generator=generator).to(out.dtype)
        for out in outputs
    )
    del outputs
    pick = _in_turn([(inputs, tuple(inputs[index] for index in trained)) for inputs in sets])

    def run() -> object:
        inputs, leaves = pick()
        return torch.autograd.grad(function(*inputs), leaves, upstream)

    return run
