"""Bounds in chunks: the same value, gradient and noise as all samples at once."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from linear_gaussian import make_model
from torch import Tensor, nn

import fastvi
from fastvi.streaming import chunk_size as chunk_sizes

ROOT = Path(__file__).parents[1]
BATCH, LATENT, FEATURES = 4, 3, 6
DOUBLE = torch.float64


@dataclass
class Setting:
    """Two small networks, a learned prior, data and a key."""

    dtype: torch.dtype = DOUBLE
    key: Tensor = field(default_factory=lambda: torch.tensor([5, 7]))

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.encoder = nn.Linear(FEATURES, 2 * LATENT).to(self.dtype)
        self.decoder: nn.Module = nn.Sequential(
            nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, FEATURES)
        ).to(self.dtype)
        self.prior = tuple(nn.Parameter(0.3 * torch.randn(LATENT, dtype=self.dtype)) for _ in "ab")
        self.x = (torch.rand(BATCH, FEATURES) > 0.5).to(self.dtype)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.encoder.parameters(), *self.decoder.parameters(), *self.prior]

    def log_likelihood(self, z: Tensor) -> Tensor:
        return fastvi.ops.bernoulli_log_prob(self.x, self.decoder(z))

    def loss(self, criterion: Callable[..., Tensor], log_likelihood=None) -> Tensor:
        loc, log_var = self.encoder(self.x).chunk(2, -1)
        return criterion(
            loc, log_var, log_likelihood or self.log_likelihood, key=self.key, prior=self.prior
        )

    def run(self, criterion: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """The loss and its gradient."""
        loss = self.loss(criterion)
        grads = torch.autograd.grad(loss.sum(), self.parameters, allow_unused=True)
        return loss.detach(), *(g for g in grads if g is not None)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def iwlb(estimator: str, alpha: float = 0.0) -> Callable[..., nn.Module]:
    return lambda **options: fastvi.IWLBLoss(17, estimator, alpha=alpha, **options)


# By name: a loss of 17 or 18 samples that takes chunk_size.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    **{name: iwlb(name) for name in ("iwae", "stl", "dreg", "rws", "rws_dreg")},
    **{f"renyi {a} {e}": iwlb(e, a) for a in (0.5, 1.0, 2.0) for e in ("iwae", "stl", "dreg")},
    "elbo analytic": lambda **o: fastvi.ELBOLoss(17, "analytic", 1.7, **o),
    "elbo monte carlo": lambda **o: fastvi.ELBOLoss(17, "monte_carlo", 0.6, **o),
    "elbo stl": lambda **o: fastvi.ELBOLoss(17, "monte_carlo", estimator="stl", **o),
    "jackknife": lambda **o: fastvi.JackknifeLoss(17, "iwae", **o),
    "jackknife dreg": lambda **o: fastvi.JackknifeLoss(17, "dreg", **o),
    "miwae": lambda **o: fastvi.MIWAELoss(6, 3, "iwae", **o),
    "miwae dreg": lambda **o: fastvi.MIWAELoss(6, 3, "dreg", **o),
    "piwae dreg": lambda **o: fastvi.PIWAELoss(6, 3, "dreg", **o),
    "ciwae dreg": lambda **o: fastvi.CIWAELoss(17, 0.3, "dreg", **o),
}
losses = pytest.mark.parametrize("name", LOSSES, ids=lambda name: name.replace(" ", "_"))


# Breaks when a chunk's samples get other weights, or other noise, than among all samples.
@losses
@pytest.mark.parametrize("chunk_size", [1, 5, 16, 17])
def test_any_chunk_size_gives_the_whole(name: str, chunk_size: int):
    setting = Setting()
    expected = setting.run(LOSSES[name](reduction="none"))
    actual = setting.run(LOSSES[name](reduction="none", chunk_size=chunk_size))
    assert_same(actual, expected, 1e-10)


# Breaks when the sampler is driven otherwise than the op drives it: here the graph is plain torch.
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0], ids=lambda alpha: f"alpha={alpha}")
def test_total_gradient_is_that_of_plain_torch(alpha: float):
    setting = Setting()

    def plain(loc, log_var, log_likelihood, key, prior):
        z, log_q, log_p = fastvi.ops.gaussian_rsample.reference(
            loc, log_var=log_var, num_samples=17, key=key, prior=prior
        )
        log_w = log_likelihood(z) + log_p - log_q
        return -fastvi.ops.iwlb.reference(log_w, alpha=alpha).mean()

    expected = setting.run(plain)
    assert_same(setting.run(iwlb("iwae", alpha)(chunk_size=5)), expected, 1e-10)


# Breaks when float32 sums over chunks lose more than the sum over all samples does.
@pytest.mark.parametrize("name", ["iwae", "dreg", "elbo_monte_carlo"])
def test_float32_stays_within_twice_the_error(name: str):
    name = name.replace("_", " ")
    exact = Setting().run(LOSSES[name]())
    plain = Setting(torch.float32).run(LOSSES[name]())
    chunked = Setting(torch.float32).run(LOSSES[name](chunk_size=2))
    for true, whole, parts in zip(exact, plain, chunked, strict=True):
        budget = 2 * (whole.double() - true).abs().max() + 4e-6 * true.abs().max()
        assert (parts.double() - true).abs().max() <= budget


def test_noise_is_the_same_bits():
    setting, seen = Setting(torch.float32), []

    def log_likelihood(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return setting.log_likelihood(z)

    for chunk_size in (None, 1, 7):
        seen.append(None)
        setting.loss(fastvi.IWLBLoss(20, chunk_size=chunk_size), log_likelihood)
    runs, current = [], []
    for z in [*seen[1:], None]:
        if z is None:
            runs.append(torch.cat(current))
            current = []
        else:
            current.append(z)
    assert len(runs) == 3 and runs[0].shape[0] == 20
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


# ---- the exact gradient -------------------------------------------------------------------------
def test_linear_gaussian_posterior_is_exact():
    """With q the posterior, every sample's weight is p(x), and DReG's guide gradient is zero."""
    model = make_model()
    x = model.draw(8, torch.Generator().manual_seed(0))
    loc, log_var = (t.requires_grad_() for t in model.posterior(x))
    loss = fastvi.iwlb_loss(
        loc, log_var, lambda z: model.log_likelihood(x, z), 50, chunk_size=7, reduction="none",
        prior=model.prior,
    )  # fmt: skip
    torch.testing.assert_close(-loss, model.log_evidence(x), rtol=0, atol=1e-10)
    for grad in torch.autograd.grad(loss.sum(), (loc, log_var)):
        assert grad.abs().max() < 1e-10


@pytest.mark.parametrize("value", [-1e5, 0.0, 3e4], ids=lambda value: f"{value:g}")
def test_far_log_weights(value: float):
    setting = Setting(torch.float32)

    def shifted(criterion):
        return setting.run(lambda *a, **k: criterion(a[0], a[1], lambda z: a[2](z) + value, **k))

    whole, parts = shifted(fastvi.IWLBLoss(30)), shifted(fastvi.IWLBLoss(30, chunk_size=7))
    for a, b in zip(parts[1:], whole[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4 * b.abs().max().item())
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-6, atol=0)


def test_impossible_samples_and_data():
    setting = Setting()

    def log_likelihood(z: Tensor) -> Tensor:
        log_px = setting.log_likelihood(z)
        log_px = torch.where(z[..., 0] > 0.3, log_px, -torch.inf)
        impossible = torch.tensor([False, True, False, False])
        return log_px.masked_fill(impossible, -torch.inf)

    for chunk_size in (None, 3):
        loss = setting.loss(
            fastvi.IWLBLoss(40, chunk_size=chunk_size, reduction="none"), log_likelihood
        )
        assert loss.isinf().tolist() == [False, True, False, False]
        grads = torch.autograd.grad(loss.sum(), setting.parameters)
        assert all(grad.isfinite().all() for grad in grads)
        if chunk_size is None:
            expected = grads
    assert_same(grads, expected, 1e-10)


# ---- decoders -----------------------------------------------------------------------------------
def test_parameters_shared_with_the_encoder():
    setting = Setting()
    shared = nn.Parameter(0.1 * torch.randn(FEATURES, 8, dtype=DOUBLE))
    to_q = nn.Linear(8, 2 * LATENT).double()
    to_h = nn.Linear(LATENT, 8).double()
    results = []
    for chunk_size in (None, 4):
        hidden = setting.x @ shared
        loc, log_var = to_q(hidden).chunk(2, -1)

        # The hidden layer is captured too: a tensor with a graph of its own.
        def log_likelihood(z, hidden=hidden):
            logits = (to_h(z).tanh() + hidden) @ shared.T
            return fastvi.ops.bernoulli_log_prob(setting.x, logits)

        loss = fastvi.iwlb_loss(
            loc, log_var, log_likelihood, 11, chunk_size=chunk_size, key=setting.key
        )
        parameters = [shared, *to_q.parameters(), *to_h.parameters()]
        results.append(torch.autograd.grad(loss, parameters))
    assert_same(results[1], results[0], 1e-10)


def test_dropout_draws_the_same_masks_in_both_passes():
    setting = Setting()
    masks: list[Tensor] = []

    class Recorded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = (torch.rand(x.shape) > 0.5).to(x.dtype)
            masks.append(mask)
            return x * mask

    setting.decoder = nn.Sequential(nn.Linear(LATENT, 8), Recorded(), nn.Linear(8, FEATURES))
    setting.decoder.double()
    torch.manual_seed(3)
    loss = setting.loss(fastvi.IWLBLoss(10, chunk_size=3))
    after = torch.rand(3)
    state = torch.get_rng_state()
    loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    forward, again = masks[:4], masks[4:]
    assert len(again) == 3 and all(
        torch.equal(a, b) for a, b in zip(forward[:3], again, strict=True)
    )
    torch.manual_seed(3)
    masks.clear()
    setting.loss(fastvi.IWLBLoss(10, chunk_size=3))
    assert torch.equal(torch.rand(3), after)


def test_hooks_see_the_whole_gradient_once():
    setting = Setting()
    seen: list[Tensor] = []
    weight = setting.decoder[0].weight
    weight.register_hook(lambda grad: seen.append(grad.clone()) or grad.clamp(-1e-3, 1e-3))
    setting.loss(fastvi.IWLBLoss(12, chunk_size=5)).backward()
    assert len(seen) == 1
    torch.testing.assert_close(weight.grad, seen[0].clamp(-1e-3, 1e-3))
    whole = Setting()
    whole.loss(fastvi.IWLBLoss(12)).backward()
    torch.testing.assert_close(seen[0], whole.decoder[0].weight.grad, rtol=1e-10, atol=1e-10)


def test_gradient_accumulation_and_a_second_backward():
    setting, once = Setting(), Setting()
    criterion = fastvi.IWLBLoss(12, chunk_size=5)
    once.loss(criterion).backward()
    loss = setting.loss(criterion)
    loss.backward(retain_graph=True)
    loss.backward()
    for a, b in zip(setting.parameters, once.parameters, strict=True):
        torch.testing.assert_close(a.grad, 2 * b.grad, rtol=1e-10, atol=1e-12)


def test_autocast_is_that_of_the_forward_pass():
    setting = Setting(torch.float32)
    dtypes: list[torch.dtype] = []

    def log_likelihood(z: Tensor) -> Tensor:
        logits = setting.decoder(z)
        dtypes.append(logits.dtype)
        return fastvi.ops.bernoulli_log_prob(setting.x, logits)

    results = []
    for chunk_size in (None, 4):
        with torch.autocast("cpu", torch.bfloat16):
            loss = setting.loss(fastvi.IWLBLoss(12, chunk_size=chunk_size), log_likelihood)
        results.append((loss.detach(), *torch.autograd.grad(loss, setting.parameters)))
    assert set(dtypes) == {torch.bfloat16}
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm() + 1e-6


def test_frozen_parts():
    for frozen in ("encoder", "decoder"):
        whole, parts = Setting(), Setting()
        for setting in (whole, parts):
            getattr(setting, frozen).requires_grad_(False)
            setting.prior = tuple(p.detach() for p in setting.prior)
        wanted = [p for p in whole.parameters if p.requires_grad]
        expected = torch.autograd.grad(whole.loss(fastvi.IWLBLoss(9)), wanted)
        wanted = [p for p in parts.parameters if p.requires_grad]
        actual = torch.autograd.grad(parts.loss(fastvi.IWLBLoss(9, chunk_size=2)), wanted)
        assert_same(actual, expected, 1e-10)


def test_no_graph_without_gradients():
    setting = Setting()
    with torch.no_grad():
        loss = setting.loss(fastvi.IWLBLoss(9, chunk_size=2))
    assert loss.grad_fn is None
    torch.testing.assert_close(loss, setting.loss(fastvi.IWLBLoss(9)).detach())


def test_compiled_decoder_and_compiled_loss():
    setting, expected = Setting(torch.float32), Setting(torch.float32)
    criterion = fastvi.IWLBLoss(12, chunk_size=5)
    want = expected.run(criterion)
    setting.decoder.compile(backend="aot_eager")
    assert_same(setting.run(criterion), want, 1e-5)
    whole = torch.compile(setting.loss, backend="aot_eager")
    loss = whole(criterion)
    grads = torch.autograd.grad(loss, setting.parameters)
    assert_same((loss.detach(), *grads), want, 1e-5)


def test_vae_takes_chunks():
    torch.manual_seed(0)
    x = (torch.rand(5, FEATURES) > 0.5).double()
    vae = fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES)).double()
    other = copy.deepcopy(vae)
    key = fastvi.ops.new_key()
    vae.loss(x, fastvi.IWLBLoss(20), key).backward()
    other.loss(x, fastvi.IWLBLoss(20, chunk_size=6), key).backward()
    for a, b in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


# ---- chunk_size="auto" --------------------------------------------------------------------------
def test_auto_keeps_to_the_budget_and_says_so(caplog: pytest.LogCaptureFixture):
    setting = Setting()
    with caplog.at_level(logging.INFO, logger="fastvi"):
        small = setting.run(fastvi.IWLBLoss(3000, chunk_size="auto", memory_budget=10**5))
        setting.run(fastvi.IWLBLoss(3000, chunk_size="auto", memory_budget=10**6))
    sizes = [record.args[1] for record in caplog.records]
    assert 1 <= sizes[0] < sizes[1] < 3000
    assert "chunk_size='auto' took" in caplog.text
    assert_same(small, setting.run(fastvi.IWLBLoss(3000)), 1e-10)
    assert chunk_sizes.default_budget(torch.device("cpu")) > 2**20


# ---- bad input ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        pytest.param({"chunk_size": 0}, ValueError, "chunk_size", id="zero"),
        pytest.param({"chunk_size": -3}, ValueError, "chunk_size", id="negative"),
        pytest.param({"chunk_size": 11}, ValueError, "at most num_samples, 10", id="above K"),
        pytest.param({"chunk_size": 2.0}, TypeError, "chunk_size", id="float"),
        pytest.param({"chunk_size": "big"}, ValueError, "'auto'", id="unknown word"),
        pytest.param({"memory_budget": 10}, ValueError, "memory_budget", id="budget alone"),
        pytest.param({"chunk_size": "auto", "memory_budget": 0}, ValueError, "positive", id="none"),
        pytest.param({"estimator": "rws", "alpha": 0.5}, ValueError, "alpha", id="rws renyi"),
        pytest.param({"alpha": float("nan")}, ValueError, "alpha", id="alpha nan"),
        pytest.param({"group": 3}, RuntimeError, "init_process_group", id="no group"),
    ],
)
def test_bad_options(options, error, says):
    zeros = torch.zeros(4, 2)
    with pytest.raises(error, match=says):
        fastvi.iwlb_loss(zeros, zeros, lambda z: z.sum(-1), 10, **options)


def test_wrong_shape_of_the_likelihood():
    zeros = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"\(K, \*batch\) = \[3, 4\]"):
        fastvi.iwlb_loss(zeros, zeros, lambda z: z, 10, chunk_size=3)


def test_a_likelihood_that_changes_between_the_passes():
    calls = []

    def log_likelihood(z: Tensor) -> Tensor:
        calls.append(1)
        return -z.square().sum(-1) * len(calls)

    loc = torch.zeros(4, 2, requires_grad=True)
    loss = fastvi.iwlb_loss(loc, torch.zeros(4, 2), log_likelihood, 10, chunk_size=3)
    with pytest.raises(RuntimeError, match="same values"):
        loss.backward()


def test_parameters_of_some_chunks_only():
    first = nn.Parameter(torch.ones(2))
    sizes = []

    def log_likelihood(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return (z * first).sum(-1) if len(z) == 4 else -z.square().sum(-1)

    loc = torch.zeros(3, 2, requires_grad=True)
    loss = fastvi.iwlb_loss(loc, torch.zeros(3, 2), log_likelihood, 10, chunk_size=4)
    with pytest.raises(RuntimeError, match=r"same parameters for every chunk.*\[2\]"):
        loss.backward()


def test_double_backward_is_refused():
    setting = Setting()
    loss = setting.loss(fastvi.IWLBLoss(9, chunk_size=2))
    (grad, *_) = torch.autograd.grad(loss, setting.parameters, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_torch_func_is_refused():
    def loss(loc):
        return fastvi.iwlb_loss(loc, torch.zeros(4, 2), lambda z: z.sum(-1), 6, chunk_size=2)

    with pytest.raises(RuntimeError, match="torch.func"):
        torch.func.grad(loss)(torch.zeros(4, 2))


# ---- memory -------------------------------------------------------------------------------------
MEMORY = """
import ctypes, re, sys, torch, fastvi
from pathlib import Path
from torch import nn
torch.set_num_threads(2)
samples, streamed = int(sys.argv[1]), sys.argv[2] == "streamed"
decoder = nn.Sequential(
    nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784)
)
x = (torch.rand(2, 784) > 0.5).float()
loc = torch.zeros(2, 50, requires_grad=True)
log_var = torch.zeros(2, 50, requires_grad=True)
def step(k):
    loss = fastvi.iwlb_loss(
        loc, log_var, lambda z: fastvi.ops.bernoulli_log_prob(x, decoder(z)), k,
        chunk_size=min(k, 500) if streamed else None,
    )
    loss.backward()
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
step(500)
before = peak()
step(samples)
print((peak() - before) / 1024)
"""


@pytest.mark.native
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_samples():
    """MiB by which 20 times the samples raise the peak of a fresh process."""

    def growth(samples: int, how: str) -> float:
        command = [sys.executable, "-c", MEMORY, str(samples), how]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True
        )
        return float(done.stdout)

    assert growth(10_000, "streamed") < 24
    # The measure sees what it is for.
    assert growth(10_000, "whole") > 100
