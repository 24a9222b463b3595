"""Run a network: its plain Linears multiply by the faster of torch's libraries.

A Linear's float32 products on a CPU, forward and backward, are oneDNN's where that was measured to
be faster than torch's own library, with the activation behind the layer; ``csrc/torch`` has the
measurement. Where there is no graph, each thread takes some rows through all layers at once, and
what is between them stays in its cache. The values are those of the modules up to rounding. All
else runs as it is: other types and devices, subclasses, hooks, autocast, compilers, transforms, and
modes of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

from fastvi._ext import C
from fastvi._modes import rounds_freely
from fastvi.ops._call import transforms_active

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
_PLAIN_TENSORS = (Tensor, nn.Parameter)
# Below, what a layer puts out stays in the caches of a CPU anyhow.
BY_ROWS_BYTES = 2 * 2**20


def run(network: Callable[[Tensor], Any], x: Tensor) -> Any:
    """Return network(x)."""
    modules = sequence(network)
    return network(x) if modules is None else run_all(modules, x)


def run_all(modules: Sequence[Any], x: Any) -> Any:
    """Run modules one after the other."""
    chooses = _chooses()
    by_rows = chooses and rounds_freely()
    number = 0
    while number < len(modules):
        layers, after = _next_layers(modules, number, x) if by_rows else ([], number)
        if layers:
            x, number = C.linear_layers(x, layers), after
            continue
        module, number = modules[number], number + 1
        if not chooses or type(module) is not nn.Linear or not _fits(module, x):
            x = module(x)
            continue
        follows = _activation(modules[number]) if number < len(modules) else None
        if not _is_faster(module, x, follows or "none"):
            x = module(x)
            continue
        x = C.linear_layer(x, module.weight, module.bias, follows or "none")
        number += follows is not None
    return x


def sequence(network: Any) -> list[Any] | None:
    """Return the modules of a plain nn.Sequential, those of inner ones too, or a plain nn.Linear.

    None if the network is something else, and has to be called.
    """
    kind = type(network)
    if kind is not nn.Sequential and kind is not nn.Linear or not is_plain(network):
        return None
    if kind is nn.Linear:
        return [network]
    modules: list[Any] = []
    for module in network:
        inner = sequence(module) if type(module) is nn.Sequential else None
        modules += inner or [module]
    return modules


def is_plain(module: nn.Module) -> bool:
    """Return whether a call of the module runs only the forward method of its class."""
    if _module._has_any_global_hook() or any(getattr(module, hooks) for hooks in _HOOKS):
        return False
    return "forward" not in vars(module) and module._compiled_call_impl is None


@torch.compiler.assume_constant_result
def ops_outrun_linear() -> bool:
    """Return whether the ops multiply far faster than what a compiler makes of a Linear."""
    rows, wide = 512, 128
    if not C.layer_by_onednn(rows, wide, rows, "none", False, False):
        return False
    for product, activation, *sizes, _, by_torch, by_onednn in C.product_choices():
        if (product, activation, sizes) == ("forward", "none", [rows, wide, rows]):
            return by_torch > 1.5 * by_onednn
    return True  # forced


def _chooses() -> bool:
    """Return whether layers run eagerly, and nobody watches or changes what torch does."""
    return not (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
    )


def _next_layers(modules: Sequence[Any], number: int, x: Any) -> tuple[list[Any], int]:
    """Return the layers that follow, as (weight, bias, activation), and the number after them.

    None, if they put out little, and are to run one by one.
    """
    layers: list[Any] = []
    width = x.shape[-1] if _is_matrix(x) else None
    while number < len(modules):
        layer = modules[number]
        if type(layer) is not nn.Linear or layer.in_features != width or not _is_as_made(layer):
            break
        follows = _activation(modules[number + 1]) if number + 1 < len(modules) else None
        layers.append((layer.weight, layer.bias, follows or "none"))
        number, width = number + 1 + (follows is not None), layer.out_features
    widest = max((len(weight) for weight, _, _ in layers), default=0)
    return (layers if widest and len(x) * widest * 4 > BY_ROWS_BYTES else []), number


def _is_matrix(x: Any) -> bool:
    plain = type(x) in _PLAIN_TENSORS and x.ndim == 2
    return plain and x.dtype == torch.float32 and x.device.type == "cpu"


def _fits(layer: nn.Linear, x: Any) -> bool:
    return _is_matrix(x) and x.shape[1] == layer.in_features


def _activation(module: Any) -> str | None:
    """Return the name of an activation that may run with the Linear before it."""
    kind = type(module)
    if kind is nn.GELU:
        # Its derivative needs the Linear's outputs, so that both are one only without a graph.
        name = _GELUS.get(module.approximate) if rounds_freely() else None
    else:
        name = _ACTIVATIONS.get(kind)
    return name if name is not None and is_plain(module) else None


def _is_faster(layer: nn.Linear, x: Tensor, activation: str) -> bool:
    graph, weight = torch.is_grad_enabled(), layer.weight
    rows, width = x.shape
    if not C.layer_by_onednn(
        rows,
        width,
        layer.out_features,
        activation,
        graph and x.requires_grad,
        graph and weight.requires_grad,
    ):
        return False
    return _is_as_made(layer)


def _is_as_made(layer: nn.Linear) -> bool:
    """Return whether a layer has its own matrix and bias, and runs nothing else."""
    parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    shapes = [(layer.out_features, layer.in_features), (layer.out_features,)]
    return is_plain(layer) and all(
        type(part) in _PLAIN_TENSORS
        and part.shape == shape
        and part.dtype == torch.float32
        and part.layout == torch.strided
        and part.device.type == "cpu"
        for part, shape in zip(parts, shapes, strict=False)
    )
