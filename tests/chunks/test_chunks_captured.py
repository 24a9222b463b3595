"""Bounds in chunks whose likelihood uses tensors that have a graph of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from chunks_setting import DOUBLE, FEATURES, LATENT, LOSSES, Setting, assert_same
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import fastvi

KEY = torch.tensor([1, 2])


def towards(captured: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: -(z - 2 * captured - 1).square().sum(-1)


# Breaks when gradients pass a captured tensor by, on their way to the leaves.
@pytest.mark.parametrize("name", LOSSES, ids=lambda name: name.replace(" ", "_"))
def test_a_captured_tensor_gets_its_gradient(name: str):
    mu = 0.1 * torch.randn(4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    mu.requires_grad_()
    loc, log_var = mu * 1.0, torch.zeros(4, 2, dtype=DOUBLE)
    results = []
    for chunk_size in (17, 5, 1):
        loss = LOSSES[name](chunk_size=chunk_size)(loc, log_var, towards(loc), key=KEY)
        results.append(torch.autograd.grad(loss, (loc, mu), retain_graph=True))
        # All that reaches mu goes through loc.
        torch.testing.assert_close(results[-1][0], results[-1][1], rtol=1e-12, atol=1e-12)
    assert_same(results[1], results[0], 1e-10)
    assert_same(results[2], results[0], 1e-10)


def whole_and_chunked(run: Callable[[int | None], tuple[Tensor, ...]], tolerance: float = 1e-10):
    expected = run(None)
    for chunk_size in (9, 4):
        assert_same(run(chunk_size), expected, tolerance)


def test_tensors_made_of_one_another():
    """A gradient goes from the later one to the earlier one once, outside the likelihood."""

    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        leaf = torch.randn(4, LATENT, dtype=DOUBLE, requires_grad=True)
        first = leaf.tanh()
        rows = first.exp().unbind(0)
        second = torch.stack([rows[0], rows[2], rows[2], rows[3]])

        def log_likelihood(z: Tensor) -> Tensor:
            return -((z - first) * second + rows[1] - leaf).square().sum(-1) + first.sum(-1)

        loss = fastvi.iwlb_loss(
            leaf, torch.zeros_like(leaf), log_likelihood, 9, chunk_size=chunk_size, key=KEY
        )
        return torch.autograd.grad(loss, (leaf, first, second, rows[1]))

    whole_and_chunked(run)


def test_a_value_that_is_captured_whole():
    """The log-likelihood itself is older than the call, and no function of z."""

    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        value = torch.ones(3, dtype=DOUBLE, requires_grad=True)
        constant = value.square()
        loc = torch.zeros(3, 2, dtype=DOUBLE, requires_grad=True)
        loss = fastvi.iwlb_loss(
            loc, torch.zeros_like(loc), lambda z: constant.expand(len(z), 3), 9,
            chunk_size=chunk_size, key=KEY,
        )  # fmt: skip
        return torch.autograd.grad(loss, (value, constant, loc))

    whole_and_chunked(run)


def test_hooks_of_a_captured_tensor_run_once():
    results = []
    for chunk_size in (None, 4):
        leaf = torch.zeros(4, 2, dtype=DOUBLE, requires_grad=True)
        captured = leaf + 0.5
        captured.retain_grad()
        seen: list[Tensor] = []
        captured.register_hook(lambda grad, seen=seen: seen.append(grad) or grad.clamp(-0.1, 0.1))
        fastvi.iwlb_loss(
            torch.zeros(4, 2, dtype=DOUBLE), torch.zeros(4, 2, dtype=DOUBLE), towards(captured), 9,
            chunk_size=chunk_size, key=KEY,
        ).backward()  # fmt: skip
        assert len(seen) == 1
        assert captured.grad is not None and leaf.grad is not None
        results.append((seen[0], captured.grad, leaf.grad))
    assert_same(results[1], results[0], 1e-10)


class Counted(torch.autograd.Function):
    """The identity, which counts how often it is passed backward."""

    runs = 0

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # noqa: ANN001
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # noqa: ANN001
        Counted.runs += 1
        return grad


def test_a_captured_layer_goes_backward_once():
    setting = Setting()
    hidden = Counted.apply(setting.encoder(setting.x))
    loc, log_var = hidden.chunk(2, -1)
    Counted.runs = 0
    fastvi.iwlb_loss(loc, log_var, towards(hidden[:, :LATENT]), 12, chunk_size=3).backward()
    assert Counted.runs == 1


def test_a_chunked_loss_inside_another():
    """Two latents, the second drawn given the first."""

    def run(outer: int | None, inner: int | None) -> tuple[Tensor, ...]:
        setting = Setting()
        second = nn.Linear(LATENT, 2 * LATENT).double()
        loc, log_var = setting.encoder(setting.x).chunk(2, -1)

        def log_likelihood(z: Tensor) -> Tensor:
            def inside(v: Tensor) -> Tensor:
                return setting.log_likelihood(v + z.mean(-1)[..., None])

            loc, log_var = second(z).chunk(2, -1)
            return -fastvi.iwlb_loss(
                loc, log_var, inside, 6, chunk_size=inner, reduction="none", key=KEY
            )

        loss = fastvi.iwlb_loss(loc, log_var, log_likelihood, 5, chunk_size=outer, key=setting.key)
        wanted = [
            *setting.encoder.parameters(),
            *setting.decoder.parameters(),
            *second.parameters(),
        ]
        return torch.autograd.grad(loss, wanted)

    # The inner noise is that of the samples that come together.
    for outer in (None, 5, 2):
        assert_same(run(outer, 4), run(outer, None), 1e-10)
    assert_same(run(5, 4), run(None, None), 1e-10)


# ---- decoders that keep a graph of their own ----------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "dreg",
        "rws",
        "renyi 0.5 iwae",
        "elbo stl",
        "jackknife dreg",
        "miwae",
        "piwae dreg",
        "ciwae dreg",
    ],
    ids=lambda name: name.replace(" ", "_"),
)
def test_compiled_decoder(name: str):
    """A compiled graph goes backward once, and gives its buffers away."""
    results = []
    for compiled in (False, True):
        setting = Setting(torch.float32)
        hidden_layers = (nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        setting.decoder = nn.Sequential(*hidden_layers, nn.Linear(8, FEATURES))
        if compiled:
            setting.decoder = torch.compile(setting.decoder, backend="aot_eager")
        hidden = setting.encoder(setting.x)[:, :LATENT]

        def log_likelihood(z: Tensor, setting=setting, hidden=hidden) -> Tensor:
            return setting.log_likelihood(z + hidden)

        loss = setting.loss(LOSSES[name](chunk_size=5), log_likelihood)
        loss.backward()
        results.append([p.grad for p in setting.parameters if p.grad is not None])
    assert_same(results[1], results[0], 1e-5)


def test_checkpoint_in_the_decoder():
    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        setting = Setting()
        hidden = setting.encoder(setting.x)[:, :LATENT]

        def log_likelihood(z: Tensor) -> Tensor:
            logits = checkpoint(lambda z: setting.decoder(z + hidden), z, use_reentrant=False)
            return fastvi.ops.bernoulli_log_prob(setting.x, logits)

        loss = setting.loss(fastvi.IWLBLoss(9, chunk_size=chunk_size), log_likelihood)
        return torch.autograd.grad(loss, setting.parameters)

    whole_and_chunked(run)


def test_a_weight_that_autocast_had_cast_before():
    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        setting = Setting(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            before = setting.decoder(torch.ones(2, LATENT)).sum()
            loss = setting.loss(fastvi.IWLBLoss(9, chunk_size=chunk_size))
            total = loss + before + setting.decoder(torch.zeros(2, LATENT)).sum()
            total.backward()
        return tuple(p.grad for p in setting.parameters if p.grad is not None)

    expected = run(None)
    for a, b in zip(run(4), expected, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm() + 1e-6


# ---- threads ------------------------------------------------------------------------------------
def in_thread(function: Callable[[], Tensor]) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.slow
def test_tensors_of_another_thread():
    """Nodes are numbered by thread: here the other one's are ahead, and then behind."""

    def run(chunk_size: int | None, ahead: int) -> tuple[Tensor, ...]:
        leaf = torch.zeros(4, 2, dtype=DOUBLE, requires_grad=True)

        def make() -> Tensor:
            for _ in range(ahead):
                leaf.exp()
            return leaf.exp().square()

        captured = in_thread(make)
        loc = torch.zeros(4, 2, dtype=DOUBLE, requires_grad=True)
        loss = fastvi.iwlb_loss(
            loc, torch.zeros_like(loc), towards(captured), 9, chunk_size=chunk_size, key=KEY
        )
        (by_captured,) = torch.autograd.grad(loss, captured, retain_graph=True)
        loss.backward()
        assert leaf.grad is not None and loc.grad is not None
        return by_captured, leaf.grad, loc.grad

    ahead = 2 * torch.zeros((), requires_grad=True).neg().grad_fn._sequence_nr()
    whole_and_chunked(lambda chunk_size: run(chunk_size, ahead))
    whole_and_chunked(lambda chunk_size: run(chunk_size, 0))


def elsewhere(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def log_likelihood(z: Tensor) -> Tensor:
        grads = torch.is_grad_enabled()

        def run() -> Tensor:
            with torch.set_grad_enabled(grads):
                return function(z)

        return in_thread(run)

    return log_likelihood


def test_a_likelihood_that_runs_in_another_thread():
    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        weight = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
        loc = torch.zeros(4, 2, dtype=DOUBLE, requires_grad=True)
        loss = fastvi.iwlb_loss(
            loc, torch.zeros_like(loc), elsewhere(lambda z: -(z.tanh() @ weight).square().sum(-1)),
            9, chunk_size=chunk_size, key=KEY,
        )  # fmt: skip
        return torch.autograd.grad(loss, (weight, loc))

    whole_and_chunked(run)


def test_nodes_of_another_thread_that_may_be_older_are_refused():
    """What depends on no sample might have been made before: then it is no chunk's own."""
    weight = torch.ones(2, 2, requires_grad=True)
    loc = torch.zeros(4, 2, requires_grad=True)
    log_likelihood = elsewhere(lambda z: -(z @ weight.exp()).square().sum(-1))
    fastvi.iwlb_loss(loc, torch.zeros(4, 2), log_likelihood, 9, chunk_size=9).backward()
    assert weight.grad is not None
    loss = fastvi.iwlb_loss(loc, torch.zeros(4, 2), log_likelihood, 9, chunk_size=4)
    with pytest.raises(RuntimeError, match="same parameters for every chunk"):
        loss.backward()


# ---- data-parallel networks ---------------------------------------------------------------------
@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_encoder_and_decoder_in_data_parallel(one_process: None):
    def run(chunk_size: int | None, wrap: Callable[[nn.Module], nn.Module]) -> tuple[Tensor, ...]:
        setting = Setting()
        parameters = [*setting.encoder.parameters(), *setting.decoder.parameters()]
        encoder, decoder = wrap(setting.encoder), wrap(setting.decoder)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = None
            hidden = encoder(setting.x)

            def log_likelihood(z: Tensor, hidden=hidden) -> Tensor:
                logits = decoder(z + hidden[:, :LATENT])
                return fastvi.ops.bernoulli_log_prob(setting.x, logits)

            loc, log_var = hidden.chunk(2, -1)
            loss = fastvi.iwlb_loss(loc, log_var, log_likelihood, 9, chunk_size=chunk_size, key=KEY)
            loss.backward()
        return tuple(p.grad for p in parameters if p.grad is not None)

    expected = run(None, lambda network: network)
    for chunk_size in (9, 4):
        assert_same(run(chunk_size, DistributedDataParallel), expected, 1e-10)
