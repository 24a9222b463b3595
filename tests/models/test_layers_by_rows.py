"""A network without a graph: each thread takes rows through all its plain layers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layers import OtherLinear
from torch import Tensor, nn

import fastvi
from fastvi._ext import C
from fastvi._modes import repeated
from fastvi.models import _layers
from fastvi.models._layers import run
from fastvi.ops.bernoulli_log_prob import reference as bernoulli

pytestmark = pytest.mark.native
U = 2.0**-24
# The widest layer puts out three blocks and a bit, of rows that no number of threads divides.
ROWS, WIDTHS = 6001, (20, 130, 100)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The activations of the layers of each call."""
    calls: list[list[str]] = []
    original = C.linear_layers

    def linear_layers(x: Tensor, layers: list, blocks: int) -> Tensor:
        calls.append([activation for _, _, activation in layers])
        return original(x, layers, blocks)

    monkeypatch.setattr(C, "linear_layers", linear_layers)
    return calls


def network(activation: Callable[[], nn.Module] = nn.Tanh, *, bias: bool = True) -> nn.Sequential:
    first, second, third = WIDTHS
    return nn.Sequential(
        nn.Linear(first, second, bias=bias),
        activation(),
        nn.Sequential(nn.Linear(second, second), activation(), nn.Linear(second, third, bias=bias)),
    )


ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("setting", ["torch", "onednn"])
def test_the_values_of_the_modules(name, bias, strided, setting, products, seen, threads):
    """Each layer has a sum of n products, n roundings, and eight of an activation."""
    products.restart(setting)
    net = network(ACTIVATIONS[name], bias=bias)
    x = torch.randn(WIDTHS[0], ROWS).t() if strided else torch.randn(ROWS, WIDTHS[0])
    # An activation's slope is at most 1.13; its error at most eight roundings of its largest size.
    exact, off = x.double(), torch.zeros_like(x.double())
    for module in _layers.sequence(net):
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().double()
            size = exact.abs() @ weight.abs().T
            off = off @ weight.abs().T + (module.in_features + 2) * U * (size + 1)
            exact = exact @ weight.T + (
                module.bias.detach().double() if module.bias is not None else 0
            )
        else:
            exact = module(exact)
            off = 1.13 * off + 8 * U * (exact.abs() + 1)
    for number in (1, 2, 3):
        threads(number)
        with torch.no_grad():
            found = run(net, x)
        assert ((found.double() - exact).abs() <= off).all()
    assert seen == 3 * [[name, name, "none"]]


def test_what_is_not_finite_shows(seen):
    net, x = network(nn.ReLU), torch.randn(ROWS, WIDTHS[0])
    x[::1000] = torch.tensor([float("nan")])
    x[1::1000] = torch.tensor([float("inf")])
    with torch.inference_mode():
        found, expected = run(net, x), net(x)
    assert seen and bool(expected.isnan().any())
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_no_graph_is_kept(mode, seen):
    net, x = network(), torch.randn(ROWS, WIDTHS[0])
    with mode():
        assert not run(net, x).requires_grad
    assert len(seen) == 1


class OtherTanh(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


CHANGED: dict[str, Callable[[nn.Sequential], object]] = {
    "hook": lambda net: net[2][0].register_forward_hook(lambda module, args, output: 2 * output),
    "subclass": lambda net: net[2].__setitem__(0, OtherLinear(WIDTHS[1], WIDTHS[1])),
    "own forward": lambda net: setattr(net[2][0], "forward", lambda x: torch.zeros_like(x)),
    "no layer": lambda net: net[2].__setitem__(0, nn.LayerNorm(WIDTHS[1])),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_changed_layer_runs_as_it_is(change, seen):
    net, x = network(), torch.randn(ROWS, WIDTHS[0])
    change(net)
    with torch.no_grad():
        torch.testing.assert_close(run(net, x), net(x))
    # What comes behind is one Linear alone: nothing of it would stay in a cache.
    assert seen == [["tanh"]]


def test_an_activation_of_ones_own_ends_a_block(seen):
    net, x = network(), torch.randn(ROWS, WIDTHS[0])
    net[2][1] = OtherTanh()
    with torch.no_grad():
        torch.testing.assert_close(run(net, x), net(x))
    assert seen == [["tanh", "none"]]


def test_wide_layers_run_one_by_one(seen):
    """Few rows of theirs fit a cache, and each block would read the whole weight again."""
    narrow, wide = nn.Linear(10, 128), nn.Linear(128, 9000)
    x = torch.randn(3000, 10)
    with torch.no_grad():
        run(nn.Sequential(nn.Linear(10, 9000), nn.ReLU(), nn.Linear(9000, 4)), x)
        assert not seen
        run(nn.Sequential(narrow, nn.ReLU(), wide), x)
    # The last one puts out what nobody reads again here: it may be wide.
    assert seen == [["relu", "none"]]


def test_few_rows_run_one_by_one(seen, threads):
    """All threads work on a layer where there are fewer blocks than threads."""
    net, x = network(), torch.randn(ROWS, WIDTHS[0])
    with torch.no_grad():
        threads(3)
        run(net, x[:2000])
        threads(5)
        run(net, x)
        assert not seen
        threads(3)
        run(net, x)
    assert len(seen) == 1


def test_who_is_left_alone(seen):
    net, x = network(), torch.randn(ROWS, WIDTHS[0])
    run(net, x)
    with torch.no_grad():
        run(net, x[:1000])
        with repeated(True):
            run(net, x)
        with torch.autocast("cpu", torch.bfloat16):
            run(net, x)
        run(net.double(), x.double())
    assert not seen


# ---- the last layer, in the op -------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(300, 20), (7, 900)], ids=["many samples", "many data"])
def test_each_thread_has_blocks_of_the_op(shape, dtype, threads):
    """More blocks than threads, samples and data cut into pieces."""
    hidden = torch.randn(*shape, 9).to(dtype).requires_grad_()
    weight, bias = torch.randn(130, 9).to(dtype), torch.randn(130).to(dtype)
    value = torch.rand(shape[1], 130).round().to(dtype)
    exact = bernoulli(
        value.double(), hidden.detach().double() @ weight.double().T + bias.double(), event_dims=1
    )
    # A logit has 11 roundings of the type; its derivative is below one; 130 are added up.
    size = hidden.detach().double().abs() @ weight.double().abs().T + bias.double().abs()
    eps = torch.finfo(dtype).eps
    budget = 11 * eps * size.sum(-1) + 140 * torch.finfo(torch.float32).eps * exact.abs()
    for number in (1, 2, 3):
        threads(number)
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                found = fastvi.ops.linear_bernoulli_log_prob(hidden, weight, bias, value)
            assert found.requires_grad == (mode is torch.enable_grad)
            assert ((found.detach().double() - exact).abs() <= budget).all()


def test_the_bits_are_those_of_any_number_of_blocks(threads):
    """A row's sum does not depend on its block: only the product does, and its bits are torch's."""
    hidden = torch.randint(-4, 5, (300, 20, 9)).float()
    weight, value = torch.randint(-4, 5, (130, 9)).float(), torch.rand(20, 130).round()
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(fastvi.ops.linear_bernoulli_log_prob(hidden, weight, None, value))
        found.append(fastvi.ops.bernoulli_log_prob(value, hidden @ weight.T, event_dims=1))
    assert all(torch.equal(each, found[0]) for each in found)
