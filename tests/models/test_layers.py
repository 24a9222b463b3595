"""A network whose Linears multiply by oneDNN: the numbers of the modules, and who gets which."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from layers import IN, OUT, ROWS, decoder, inputs, layer
from torch import Tensor, nn

import fastvi
from fastvi.models import _layers
from fastvi.models._layers import run

pytestmark = pytest.mark.native
U = 2.0**-24

ACTIVATIONS = {
    "none": None,
    "relu": nn.ReLU(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
}


# ---- the same numbers ----------------------------------------------------------------------------
def assert_within(found: Tensor, exact: Tensor, budget: Tensor) -> None:
    """Every number within a budget of its own, which ``exact`` in float64 says."""
    excess = (found.detach().double() - exact).abs() / budget
    assert excess.max() <= 1, f"{excess.max():.2f} of the budget"


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "no graph"])
def test_values_and_gradients(name: str, bias: bool, strided: bool, graph: bool, calls):
    """A sum of n products has n roundings at most; an activation, and its derivative, eight.

    An error of the Linear reaches the output by the activation's slope, of at most 1.13, and its
    slope by the second derivative, of at most 0.8 (twice that for GELU).
    """
    activation = ACTIVATIONS[name]
    network = layer(activation, bias=bias)
    x = torch.randn(IN, ROWS).t() if strided else torch.randn(ROWS, IN)
    x.requires_grad_(graph)
    upstream = torch.randn(OUT, ROWS).t() if strided else torch.randn(ROWS, OUT)
    with torch.set_grad_enabled(graph):
        found = run(network, x)
    assert calls == ["none" if graph and "gelu" in name else name]

    weight = network[0].weight.detach().double()
    b = network[0].bias.detach().double() if bias else torch.zeros(OUT).double()
    before = (x.detach().double() @ weight.T + b).requires_grad_()
    act = activation or nn.Identity()
    exact = act(before)
    off = (IN + 2) * U * (x.detach().double().abs() @ weight.abs().T + b.abs())
    assert_within(
        found,
        exact.detach(),
        1.13 * off + 8 * U * (exact.abs() + before.abs() * isinstance(act, nn.GELU)).detach(),
    )
    if not graph:
        return

    gradients = torch.autograd.grad(found, [x, *network.parameters()], upstream)
    d = torch.autograd.grad(exact, before, upstream.double())[0]
    off_d = upstream.double().abs() * (1.6 * off + 8 * U)
    if isinstance(act, nn.ReLU):
        off_d = upstream.double().abs() * (before.detach().abs() <= off)
    if activation is None:
        off_d = torch.zeros(())
    wide = d.abs() + off_d
    budgets = [
        (d @ weight, (OUT + 2) * U * (wide @ weight.abs()) + (off_d + 0 * d) @ weight.abs()),
        (
            d.T @ x.detach().double(),
            (ROWS + 2) * U * (wide.T @ x.detach().double().abs())
            + (off_d + 0 * d).T @ x.detach().double().abs(),
        ),
        (d.sum(0), (ROWS + 2) * U * wide.sum(0) + (off_d + 0 * d).sum(0)),
    ]
    for gradient, (of, budget) in zip(gradients, budgets, strict=False):
        assert_within(gradient, of, budget + 1e-30)
    assert [g.shape for g in gradients] == [x.shape, *(p.shape for p in network.parameters())]


@pytest.mark.parametrize(
    "activation", [a for a in ACTIVATIONS.values() if a is not None], ids=list(ACTIVATIONS)[1:]
)
def test_what_is_not_finite_shows(activation, calls):
    network = layer(activation)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0])
    x = torch.zeros(ROWS, IN)
    x[:6] = special[:, None]
    with torch.no_grad():
        network[0].weight.fill_(1)
        found, expected = run(network, x), network(x)
    assert len(calls) == 1
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias", "all but bias"])
def test_only_gradients_that_are_asked_for(frozen: str, calls):
    network, x = layer(nn.Tanh()), inputs()
    leaves = {"input": x, "weight": network[0].weight, "bias": network[0].bias}
    for name, leaf in leaves.items():
        leaf.requires_grad_((name != frozen) if frozen in leaves else name == "bias")
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    found = torch.autograd.grad(run(network, x).sum(), wanted)
    for ours, theirs in zip(found, torch.autograd.grad(network(x).sum(), wanted), strict=True):
        # A sum over the rows, in another order.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=ROWS * U * float(theirs.abs().max()))
    assert calls == ["tanh"]


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.Tanh(), nn.Sigmoid()], ids=str)
def test_second_derivatives(activation, calls):
    network, x = layer(activation), inputs()
    found = []
    for output in (run(network, x), network(x)):
        slopes = torch.autograd.grad(
            output.square().sum(), [x, *network.parameters()], create_graph=True
        )
        curved = sum(s.square().sum() for s in slopes)
        found.append(torch.autograd.grad(curved, [x, *network.parameters()]))
    assert len(calls) == 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max())
        )


def test_several_gradients_at_once(calls):
    network, x = layer(nn.Tanh()), inputs()
    upstream = torch.randn(3, ROWS, OUT)
    ours, theirs = (
        torch.autograd.grad(output, [x, network[0].weight], upstream, is_grads_batched=True)
        for output in (run(network, x), network(x))
    )
    torch.testing.assert_close(ours, theirs)
    assert calls == ["tanh"]


def test_a_network_changed_in_place_is_noticed(calls):
    network, x = layer(nn.Tanh()), inputs()
    for change in (lambda output: output.mul_(2), lambda output: network[0].weight.data_ptr()):
        output = run(network, x)
        change(output)
    with torch.no_grad():
        network[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# ---- in decoders, models and bounds --------------------------------------------------------------
def test_every_layer_of_a_decoder(calls):
    network = decoder()
    x, z = torch.rand(7, 50).round(), torch.randn(100, 7, IN, requires_grad=True)
    results = []
    for setting in (run, None):
        log_px = fastvi.log_likelihood(network, x) if setting else None
        value = log_px(z) if log_px else fastvi.log_likelihood(lambda z: network(z), x)(z)
        results.append((value, *torch.autograd.grad(value.sum(), [z, *network.parameters()])))
        assert calls == ["tanh", "relu", "none"]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max())
        )


@pytest.mark.parametrize("hierarchical", [False, True], ids=["VAE", "HierarchicalVAE"])
def test_the_networks_of_a_model(hierarchical: bool, calls):
    encoder = nn.Sequential(nn.Linear(50, IN), nn.ReLU(), nn.Linear(IN, 2 * IN))
    x = torch.rand(400, 50).round()
    if hierarchical:
        top = nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, 2 * IN))
        layers = [
            fastvi.StochasticLayer("gaussian", IN, guide=encoder, model=copy.deepcopy(top)),
            fastvi.StochasticLayer("gaussian", IN, guide=top),
        ]
        model = fastvi.HierarchicalVAE(layers, decoder())
    else:
        model = fastvi.VAE(encoder, decoder())
    key = fastvi.ops.new_key()
    loss = model.loss(x, fastvi.objectives.IWLB(4), key=key)
    loss.backward()
    assert len(calls) == (9 if hierarchical else 5)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = model.loss(x, fastvi.objectives.IWLB(4), key=key)
    torch.testing.assert_close(loss, expected)


CHOICES = {
    "onednn": lambda shape: True,
    "torch but for one gradient": lambda shape: shape[0] == "grad_weight",
    "forward alone": lambda shape: shape[0] == "forward",
    "backward alone": lambda shape: shape[0] != "forward",
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU()], ids=["tanh", "gelu"])
def test_both_passes_of_a_chunked_bound_have_the_same_bits(choice, activation, products, calls):
    """The second pass compares the bits of its log-weights with the first's, without a graph."""
    products.restart("auto")
    products.clock.times = lambda shape: (1.0, 0.5 if choice(shape) else 1.0)
    network = nn.Sequential(nn.Linear(IN, OUT), activation, nn.Linear(OUT, 50))
    x, loc = torch.rand(7, 50).round(), torch.zeros(7, IN, requires_grad=True)
    key, log_px = fastvi.ops.new_key(), fastvi.log_likelihood(network, x)
    found = []
    for chunk_size in (None, 64, 100):
        loss = fastvi.iwlb_loss(
            loc, torch.zeros(7, IN), log_px, num_samples=192, key=key, chunk_size=chunk_size
        )
        found.append((loss, *torch.autograd.grad(loss, [loc, *network.parameters()])))
    assert calls
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_where_torch_is_chosen_the_modules_run(products, calls):
    products.restart("auto")
    network, x = decoder(), inputs()
    assert torch.equal(run(network, x), network(x))
    assert not calls and products.clock.asked


@pytest.mark.parametrize("setting", ["torch", "onednn"])
def test_the_fused_last_layer(setting: str, products):
    """The products of the op follow the same choice, and its numbers do not."""
    products.restart(setting)
    hidden, value = inputs(), torch.rand(ROWS, 50).round()[None]
    weight = (torch.randn(50, IN) / 8).requires_grad_()
    bias = torch.randn(50, requires_grad=True)
    leaves = [hidden, weight, bias]

    def evaluate(leaves) -> tuple[Tensor, ...]:
        h, w, b = leaves
        density = fastvi.ops.linear_bernoulli_log_prob(
            h[None].expand(2, ROWS, IN), w, b, value=value[0].to(h)
        )
        return density, *torch.autograd.grad(density.sum(), leaves)

    found = evaluate(leaves)
    exact = evaluate([leaf.detach().double().requires_grad_() for leaf in leaves])
    for ours, theirs in zip(found, exact, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=(IN + 52) * U * scale)


# ---- what a compiler makes of a Linear -----------------------------------------------------------
@pytest.mark.parametrize(
    ("ratio", "outrun"), [(2.2, True), (1.3, False), (1.0, False)], ids=["far", "some", "alike"]
)
def test_ops_outrun_a_compiled_layer_where_onednn_is_far_faster(ratio, outrun, products):
    products.restart("auto")
    products.clock.times = lambda shape: (ratio, 1.0)
    assert _layers.ops_outrun_linear() is outrun


@pytest.mark.parametrize(("setting", "outrun"), [("torch", False), ("onednn", True)])
def test_a_setting_says_whether_ops_outrun_a_compiled_layer(setting, outrun, products):
    products.restart(setting)
    assert _layers.ops_outrun_linear() is outrun


def test_the_order_of_modules_is_kept():
    network = nn.Sequential(
        nn.Linear(1, 2), nn.Sequential(nn.Tanh(), nn.Sequential(nn.Linear(2, 3))), nn.ReLU()
    )
    flat = _layers.sequence(network)
    assert flat is not None and [type(m) for m in flat] == [nn.Linear, nn.Tanh, nn.Linear, nn.ReLU]
    assert all(a is not b for a, b in pairwise(flat))
