"""Run a network: its plain Linears multiply by the faster of torch's libraries.

A Linear's float32 products on a CPU, forward and backward, are oneDNN's where that was measured to
be faster than torch's own library, with the activation behind the layer; ``csrc/torch`` has the
measurement. Without a graph, and where no second pass wants the same bits, each thread takes blocks
of rows through layers that follow one another, if there are enough rows, and what is between the
layers stays in its cache. The values are those of the modules up to rounding. All else runs as it
is: other types and devices, subclasses, hooks, autocast, compilers, transforms, and modes of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _module

from fastvi._compiler import constant_when_compiled
from fastvi._ext import C
from fastvi._modes import rounds_freely
from fastvi.ops._call import transforms_active

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ACTIVATIONS = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
_PLAIN_TENSORS = (Tensor, nn.Parameter)


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
        if by_rows and (found := _layers_by_rows(modules[number:], x)) is not None:
            layers, blocks, many = found
            x, number = C.linear_layers(x, layers, blocks), number + many
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


@constant_when_compiled
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


def _layers_by_rows(modules: Sequence[Any], x: Any) -> tuple[list[Any], int, int] | None:
    """Return the layers that come first, as (weight, bias, activation), where they pay by rows.

    And in how many blocks the rows go, and how many modules the layers are.
    """
    if not _is_matrix(x):
        return None
    layers: list[tuple[nn.Linear, str]] = []
    many, width = 0, x.shape[1]
    while many < len(modules):
        layer = modules[many]
        if type(layer) is not nn.Linear or layer.in_features != width:
            break
        follows = _activation(modules[many + 1]) if many + 1 < len(modules) else None
        layers.append((layer, follows or "none"))
        many, width = many + 1 + (follows is not None), layer.out_features
    while layers and (blocks := _blocks_of_rows(len(x), layers)):
        changed = next((i for i, (layer, _) in enumerate(layers) if not _is_as_made(layer)), None)
        if changed is None:
            return [(layer.weight, layer.bias, name) for layer, name in layers], blocks, many
        many -= sum(1 + (name != "none") for _, name in layers[changed:])
        layers = layers[:changed]
    return None


def _blocks_of_rows(rows: int, layers: Sequence[tuple[nn.Linear, str]]) -> int:
    """Return in how many blocks the rows go, 0 if the layers are better run one by one."""
    read_again = [layer.out_features for layer, _ in layers[:-1]]
    if layers[-1][1] != "none":
        read_again.append(layers[-1][0].out_features)
    return C.blocks_of_rows(rows, max(read_again)) if read_again else 0


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
