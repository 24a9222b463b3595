"""Layers that run as they are though oneDNN is forced: changed ones, and those that are watched."""

from __future__ import annotations

import pytest
import torch
from layers import IN, OUT, ROWS, OtherLinear, decoder, inputs, layer
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastvi.models._layers import run

pytestmark = pytest.mark.native


# ---- who is left alone ---------------------------------------------------------------------------
class OtherTanh(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Tagged(Tensor):
    pass


def with_hook(network: nn.Sequential) -> nn.Sequential:
    network[0].register_forward_hook(lambda module, args, output: 2 * output)
    return network


def with_own_forward(network: nn.Sequential) -> nn.Sequential:
    network[0].forward = lambda x: torch.zeros(ROWS, OUT)
    return network


def pruned(network: nn.Sequential) -> nn.Sequential:
    prune.random_unstructured(network[0], "weight", 0.5)
    return network


def with_tagged_weight(network: nn.Sequential) -> nn.Sequential:
    network[0].weight = nn.Parameter(network[0].weight.detach().as_subclass(Tagged))
    return network


CHANGED = {
    "hook": with_hook,
    "own forward": with_own_forward,
    "pruned": pruned,
    "weight of a subclass": with_tagged_weight,
    "parametrised": lambda network: nn.Sequential(
        parametrizations.weight_norm(network[0]), network[1]
    ),
    "subclass": lambda network: nn.Sequential(OtherLinear(IN, OUT), network[1]),
    "float64": lambda network: network.double(),
    "compiled": lambda network: (network[0].compile(backend="eager"), network)[1],
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_changed_layer_runs_as_it_is(change, calls):
    network = change(layer(nn.Tanh()))
    x = inputs(dtype=next(network.parameters()).dtype)
    assert torch.equal(run(network, x), network(x))
    assert not calls


def test_the_others_of_a_network_with_a_changed_layer_run_by_onednn(calls):
    network = decoder()
    network[0].register_forward_pre_hook(lambda module, args: args)
    torch.testing.assert_close(run(network, inputs()).shape, network(inputs()).shape)
    assert calls == ["relu", "none"]


@pytest.mark.parametrize("where", ["sequence", "inner sequence", "activation"])
def test_hooks_are_called(where: str, calls):
    network, heard = decoder(), []
    module = {"sequence": network, "inner sequence": network[2], "activation": network[1]}[where]
    module.register_forward_hook(lambda module, args, output: heard.append(output.shape))
    run(network, inputs())
    assert len(heard) == 1
    assert calls == {
        "sequence": [], "inner sequence": ["tanh", "none"], "activation": ["none", "relu", "none"]
    }[where]  # fmt: skip


def test_hooks_for_all_modules_are_called(calls):
    heard = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, output: heard.append(m))
    try:
        run(decoder(), inputs())
    finally:
        handle.remove()
    assert len(heard) == 7 and not calls


def test_an_activation_of_a_subclass_runs_as_it_is(calls):
    network, x = layer(OtherTanh()), inputs()
    torch.testing.assert_close(run(network, x), network(x))
    assert calls == ["none"]


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


CONTEXTS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a mode of functions": Functions,
    "a mode of operators": Dispatches,
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_context_runs_the_modules(context, calls):
    network, x = decoder(), inputs()
    with context():
        assert torch.equal(run(network, x), network(x))
    assert not calls


CALLERS = {
    "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    "compile": lambda f, x: torch.compile(f, backend="eager", fullgraph=True)(x),
    "trace": lambda f, x: torch.jit.trace(f, x, check_trace=False)(x),
    "tangents": lambda f, x: tangent(f, x),
}


def tangent(f, x: Tensor) -> Tensor:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        return torch.autograd.forward_ad.unpack_dual(f(dual)).tangent


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
def test_transforms_and_compilers_have_the_modules(caller, calls):
    network, x = decoder().requires_grad_(False), torch.randn(ROWS, IN)
    found = caller(lambda x: run(network, x), x)
    torch.testing.assert_close(found, caller(network, x))
    assert not calls


def test_export(calls):
    class Runs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = decoder()

        def forward(self, x: Tensor) -> Tensor:
            return run(self.network, x)

    module, x = Runs(), torch.randn(ROWS, IN)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module.network(x))
    assert not calls


def test_what_does_not_fit_has_the_errors_of_torch(calls):
    for x in (torch.randn(ROWS, IN + 1), torch.randint(9, (ROWS, IN))):
        with pytest.raises(RuntimeError) as expected:
            layer(None)(x)
        with pytest.raises(RuntimeError) as found:
            run(layer(None), x)
        assert str(found.value) == str(expected.value)
    cube = torch.randn(7, 100, IN)
    network = layer(nn.Tanh())
    assert torch.equal(run(network, cube), network(cube))
    assert not calls


@pytest.mark.parametrize(
    "network", [nn.Sequential(), nn.Sequential(nn.Sequential(), nn.Tanh()), nn.Tanh(), torch.tanh],
    ids=["empty", "an empty part", "a module", "a function"],
)  # fmt: skip
def test_networks_without_layers(network, calls):
    x = inputs()
    assert torch.equal(run(network, x), network(x))
