"""From latents to log p(x given z): the fused path equals the ordinary one, and who gets which."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layers import OtherLinear
from op_table import DEVICES
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastvi
from fastvi._modes import repeated
from fastvi.models import decoders
from fastvi.models.likelihoods import Likelihood

pytestmark = pytest.mark.native
on_devices = pytest.mark.parametrize("device", DEVICES)
K, B, D, F = 5, 4, 3, 7

LIKELIHOODS: list = [
    pytest.param(lambda: "bernoulli", id="bernoulli"),
    pytest.param(lambda: "gaussian", id="gaussian"),
    pytest.param(lambda: "poisson", id="poisson"),
    pytest.param(
        lambda: fastvi.GaussianLikelihood(torch.full((F,), 0.5), learned=True), id="learned scale"
    ),
    pytest.param(lambda: fastvi.BernoulliLikelihood(validate_args=True), id="validated"),
]


@pytest.fixture
def fuse_all(monkeypatch):
    monkeypatch.setattr(decoders, "fuse_bytes", lambda device, dtype: 0)


@pytest.fixture
def fused_calls(fuse_all, monkeypatch) -> list[str]:
    """The fused ops that ran, by the class of the likelihood."""
    calls: list[str] = []
    for family in (fastvi.BernoulliLikelihood, fastvi.GaussianLikelihood, fastvi.PoissonLikelihood):
        original = family.log_prob_linear

        def log_prob_linear(self, *args, original=original):
            calls.append(type(self).__name__)
            return original(self, *args)

        monkeypatch.setattr(family, "log_prob_linear", log_prob_linear)
    return calls


def network(**options) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, F, **options))


def data(dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor]:
    x = (torch.randn(B, F) > 0).to(device, dtype)
    return x, torch.randn(K, B, D, dtype=dtype, device=device, requires_grad=True)


def both(
    decoder, x: Tensor, z: Tensor, likelihood: str | Likelihood = "bernoulli"
) -> list[tuple[Tensor, ...]]:
    """Value and gradients, fused and not."""
    leaves = [z, *decoder.parameters()]
    if isinstance(likelihood, Likelihood):
        leaves += likelihood.parameters()
    weight = torch.linspace(-1, 1, K * B, dtype=x.dtype, device=x.device).reshape(K, B)
    runs = []
    for fuse_linear in (True, False):
        log_px = fastvi.log_likelihood(decoder, x, likelihood=likelihood, fuse_linear=fuse_linear)(
            z
        )
        runs.append((log_px, *torch.autograd.grad((log_px * weight).sum(), leaves)))
    return runs


# ---- the same numbers ---------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_fused_equals_unfused(
    likelihood: Callable, bias: bool, dtype: torch.dtype, device: str, fused_calls
):
    decoder = network(bias=bias).to(device, dtype)
    family = likelihood()
    if isinstance(family, Likelihood):
        family = family.to(device, dtype)
    fused, plain = both(decoder, *data(dtype, device), family)
    assert len(fused_calls) == 1
    torch.testing.assert_close(fused, plain)


def test_shared_parameters(fused_calls):
    first, last = nn.Linear(F, F), nn.Linear(F, F)
    last.weight, last.bias = first.weight, first.bias
    decoder = nn.Sequential(nn.Linear(D, F), first, nn.Tanh(), last).double()
    fused, plain = both(decoder, *data())
    assert len(fused_calls) == 1
    torch.testing.assert_close(fused, plain)


def test_a_linear_alone(fused_calls):
    fused, plain = both(nn.Linear(D, F).double(), *data())
    assert len(fused_calls) == 1
    torch.testing.assert_close(fused, plain)


def test_a_linear_at_the_end_of_nested_sequences(fused_calls):
    """Modules before it run in their order, each sequence's own."""
    hidden = nn.Sequential(nn.Linear(D, 6), nn.Tanh())
    decoder = nn.Sequential(
        hidden, nn.Linear(6, 5), nn.Sequential(nn.Sigmoid(), nn.Sequential(nn.Linear(5, F)))
    ).double()
    fused, plain = both(decoder, *data())
    assert len(fused_calls) == 1
    torch.testing.assert_close(fused, plain)


@on_devices
def test_autocast(device: str, fused_calls):
    """The Linear runs in bfloat16, as it does alone; the log-density is float32."""
    decoder, (x, z) = network().to(device), data(torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        fused, plain = both(decoder, x, z)
    assert len(fused_calls) == 1
    assert fused[0].dtype == plain[0].dtype == torch.float32
    torch.testing.assert_close(fused[0], plain[0])
    for ours, theirs in zip(fused[1:], plain[1:], strict=True):
        largest = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * largest)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["no batch", "batch of two dimensions"])
def test_batches(batch: tuple[int, ...], fused_calls):
    decoder = network().double()
    x = torch.rand(*batch, F, dtype=torch.float64)
    z = torch.randn(K, *batch, D, dtype=torch.float64)
    ours = fastvi.log_likelihood(decoder, x)(z)
    theirs = fastvi.log_likelihood(decoder, x, fuse_linear=False)(z)
    assert ours.shape == (K, *batch) and len(fused_calls) == 1
    torch.testing.assert_close(ours, theirs)


def test_losses_take_the_function(fused_calls):
    decoder, (x, _) = network().double(), data()
    loc, log_var = torch.randn(2, B, D, dtype=torch.float64, requires_grad=True).unbind()
    key = fastvi.ops.new_key()
    losses = [
        fastvi.iwlb_loss(
            loc,
            log_var,
            fastvi.log_likelihood(decoder, x, fuse_linear=fuse_linear),
            num_samples=K,
            key=key,
        )
        for fuse_linear in (True, False)
    ]
    assert len(fused_calls) == 1
    torch.testing.assert_close(*losses)


def test_under_func_transforms(fused_calls):
    decoder, (x, z) = network().double(), data()
    log_px = fastvi.log_likelihood(decoder, x)
    (expected,) = torch.autograd.grad(log_px(z).sum(), z)
    torch.testing.assert_close(torch.func.grad(lambda z: log_px(z).sum())(z.detach()), expected)
    assert len(fused_calls) == 2


@pytest.mark.slow
def test_compile_in_one_graph(fuse_all, fresh_compiler):
    vae = fastvi.VAE(nn.Linear(F, 2 * D), network())
    x, key = torch.rand(B, F).round(), fastvi.ops.new_key()
    objective = fastvi.IWLBLoss(num_samples=K)
    compiled = torch.compile(vae, fullgraph=True)
    results = []
    for module in (vae, compiled):
        loss = module(x, objective, key=key)
        results.append((loss, *torch.autograd.grad(loss, list(vae.parameters()))))
    torch.testing.assert_close(*results)


# ---- who gets the fused path --------------------------------------------------------------------
def test_the_threshold_counts_the_bytes_of_the_outputs(fused_calls, monkeypatch):
    decoder, (x, z) = network().double(), data()
    for spare, expected in ((0, 0), (1, 1)):
        size = K * B * F * 8 - spare
        monkeypatch.setattr(decoders, "fuse_bytes", lambda device, dtype, size=size: size)
        fastvi.log_likelihood(decoder, x)(z)
        assert len(fused_calls) == expected


def test_what_is_large_depends_on_the_graph(monkeypatch):
    asked = []
    original = decoders.fuse_bytes

    def fuse_bytes(*args) -> int:
        asked.append((*args, original(*args)))
        return 0

    monkeypatch.setattr(decoders, "fuse_bytes", fuse_bytes)
    for dtype in (torch.float32, torch.float64):
        x, z = data(dtype)
        fastvi.log_likelihood(network().to(dtype), x)(z)
        assert asked.pop() == ("cpu", dtype, decoders.FUSE_BYTES)
    x, z = data(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        fastvi.log_likelihood(network(), x)(z)
    assert asked.pop() == ("cpu", torch.bfloat16, decoders.FUSE_BYTES)
    with torch.no_grad():
        fastvi.log_likelihood(network(), x)(z)
        assert asked.pop() == ("cpu", torch.float32, decoders.FUSE_BYTES_ABOVE_CACHES)
        assert original("cuda", torch.float32) == decoders.FUSE_BYTES
        with repeated(True):
            fastvi.log_likelihood(network(), x)(z)
        assert asked.pop() == ("cpu", torch.float32, decoders.FUSE_BYTES)
    assert decoders.FUSE_BYTES_ABOVE_CACHES < decoders.FUSE_BYTES
    assert original("cuda", torch.float32) == decoders.FUSE_BYTES


@pytest.mark.parametrize("outrun", [True, False], ids=["oneDNN far ahead", "as torch"])
def test_what_a_compiler_fuses_depends_on_the_products(outrun: bool, monkeypatch):
    """Outputs between the two thresholds, 2.1 MiB: seen in the graph that the compiler gets."""
    monkeypatch.setattr(decoders, "ops_outrun_linear", lambda: outrun)
    ops: list[str] = []

    def backend(module: torch.fx.GraphModule, inputs: object) -> Callable:
        ops.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    decoder, x = nn.Linear(D, 784), torch.ones(7, 784)
    for dtype, fused in ((torch.float32, outrun), (torch.float64, False)):
        log_px = fastvi.log_likelihood(decoder.to(dtype), x.to(dtype))
        torch.compile(log_px, backend=backend, fullgraph=True)(torch.randn(100, 7, D, dtype=dtype))
        assert any("linear_bernoulli_log_prob" in op for op in ops) is fused
        ops.clear()


class OtherSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _with_hook(place: int | None, kind: str, hook) -> Callable[[nn.Sequential], nn.Module]:
    def change(decoder: nn.Sequential) -> nn.Module:
        getattr(decoder if place is None else decoder[place], kind)(hook)
        return decoder

    return change


def _with_forward(decoder: nn.Sequential) -> nn.Module:
    forward = decoder[-1].forward
    decoder[-1].forward = lambda x: 2 * forward(x)
    return decoder


def _with_weight_norm(decoder: nn.Sequential) -> nn.Module:
    parametrizations.weight_norm(decoder[-1])
    with torch.no_grad():
        decoder[-1].parametrizations.weight.original0.mul_(2.0)
    return decoder


UNFUSED = {
    "hook on the Linear": _with_hook(-1, "register_forward_hook", lambda m, i, out: 2 * out),
    "pre-hook on the Linear": _with_hook(
        -1, "register_forward_pre_hook", lambda m, inputs: (2 * inputs[0],)
    ),
    "backward hook on the Linear": _with_hook(
        -1, "register_full_backward_hook", lambda m, inputs, out: (2 * inputs[0],)
    ),
    "hook on the sequence": _with_hook(None, "register_forward_hook", lambda m, i, out: 2 * out),
    "another forward": _with_forward,
    "weight norm": _with_weight_norm,
    "subclass of Linear": lambda decoder: nn.Sequential(
        *decoder[:-1], OtherLinear(6, F, dtype=torch.float64)
    ),
    "subclass of Sequential": lambda decoder: OtherSequential(*decoder),
    "not last": lambda decoder: nn.Sequential(decoder, nn.Identity()),
    "subclass of Sequential, nested": lambda decoder: nn.Sequential(OtherSequential(*decoder)),
    "hook on a nested sequence": lambda decoder: nn.Sequential(
        _with_hook(None, "register_forward_hook", lambda m, i, out: 2 * out)(decoder)
    ),
    "an empty sequence last": lambda decoder: nn.Sequential(decoder, nn.Sequential()),
}


@pytest.mark.parametrize("change", UNFUSED.values(), ids=UNFUSED)
def test_the_ordinary_path_where_a_layer_is_not_plain(change: Callable, fused_calls):
    decoder, (x, z) = network().double(), data()
    both(decoder, x, z)
    assert fused_calls.pop()
    changed = change(decoder)
    found, plain = both(changed, x, z)
    assert not fused_calls
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    logits = changed(z.reshape(-1, D)).reshape(K, B, F)
    torch.testing.assert_close(found[0], fastvi.ops.bernoulli_log_prob(x, logits))


def test_hooks_on_earlier_modules_still_run(fused_calls):
    decoder, (x, z) = network().double(), data()
    decoder[0].register_forward_hook(lambda module, inputs, out: 2 * out)
    fused, plain = both(decoder, x, z)
    assert len(fused_calls) == 1
    torch.testing.assert_close(fused, plain)


def test_a_global_hook(fused_calls):
    decoder, (x, z) = network().double(), data()
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, out: 2 * out)
    try:
        found, plain = both(decoder, x, z)
    finally:
        handle.remove()
    assert not fused_calls
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


class HalfBernoulli(fastvi.BernoulliLikelihood):
    """Changes log_prob alone: what it inherits for a Linear is not its own."""

    def log_prob(self, x: Tensor, output: Tensor, event_dims: int) -> Tensor:
        return 0.5 * super().log_prob(x, output, event_dims=event_dims)


class Clipped(fastvi.BernoulliLikelihood):
    """Changes neither density."""

    def mean(self, output: Tensor) -> Tensor:
        return output.sigmoid().clamp(0.1, 0.9)


def test_a_likelihood_that_changes_the_density(fused_calls):
    decoder, (x, z) = network().double(), data()
    found, _ = both(decoder, x, z, HalfBernoulli())
    assert not fused_calls
    torch.testing.assert_close(found[0], 0.5 * fastvi.log_likelihood(decoder, x)(z))


def test_a_likelihood_that_keeps_the_density(fused_calls):
    decoder, (x, z) = network().double(), data()
    both(decoder, x, z, Clipped())
    assert fused_calls == ["Clipped"]


def test_events_of_two_dimensions(fused_calls):
    decoder = nn.Sequential(*network(), nn.Unflatten(1, (1, F))).double()
    x, z = data()
    log_px = fastvi.log_likelihood(decoder, x[:, None])(z)
    assert not fused_calls
    torch.testing.assert_close(log_px, fastvi.log_likelihood(decoder[:-1], x)(z))


# ---- the VAE ------------------------------------------------------------------------------------
@pytest.mark.parametrize("likelihood", LIKELIHOODS[:4])
def test_vae(likelihood: Callable, fused_calls):
    vae = fastvi.VAE(nn.Linear(F, 2 * D), network(), likelihood=likelihood()).double()
    x, key = data()[0], fastvi.ops.new_key()
    results = []
    for vae.fuse_linear in (True, False):
        loss = vae.loss(x, fastvi.IWLBLoss(num_samples=K), key=key)
        results.append((loss, *torch.autograd.grad(loss, list(vae.parameters()))))
    assert len(fused_calls) == 1
    torch.testing.assert_close(*results)


def test_vae_opt_out(fused_calls):
    vae = fastvi.VAE(nn.Linear(F, 2 * D), network(), fuse_linear=False)
    vae.log_weights(torch.rand(B, F), K)
    assert not fused_calls


def test_a_vae_that_decodes_in_its_own_way(fused_calls):
    class Doubled(fastvi.VAE):
        def decode(self, z: Tensor) -> Tensor:
            return 2 * super().decode(z)

    x, z = data()
    decoder = network().double()
    log_px = Doubled(nn.Linear(F, 2 * D), decoder).log_likelihood(x, z)
    assert not fused_calls
    logits = 2 * decoder(z.reshape(-1, D)).reshape(K, B, F)
    torch.testing.assert_close(log_px, fastvi.ops.bernoulli_log_prob(x, logits))


# ---- errors -------------------------------------------------------------------------------------
def test_errors_are_those_of_the_ordinary_path(fuse_all):
    decoder, (x, z) = network().double(), data()
    for fuse_linear in (True, False):
        log_px = fastvi.log_likelihood(decoder, x[:, :-1], fuse_linear=fuse_linear)
        with pytest.raises(ValueError, match=r"log_likelihood: expected decoder\(z\).*6.*got.*7"):
            log_px(z)
    with pytest.raises(TypeError, match="log_likelihood: expected decoder .* got int"):
        fastvi.log_likelihood(3, x)
    with pytest.raises(TypeError, match="log_likelihood: expected x to be a tensor, got list"):
        fastvi.log_likelihood(decoder, [0.0])
    with pytest.raises(TypeError, match="log_likelihood: expected z to be a tensor, got float"):
        fastvi.log_likelihood(decoder, x)(0.0)
    with pytest.raises(ValueError, match="log_likelihood: expected likelihood .* got 'student'"):
        fastvi.log_likelihood(decoder, x, likelihood="student")
