"""Bounds in chunks: the same value, gradient and noise as all samples at once."""

from __future__ import annotations

import copy
from unittest import TestCase

import pytest
import torch
from chunks_setting import (
    BATCH,
    DOUBLE,
    FEATURES,
    LATENT,
    LOSSES,
    Setting,
    assert_same,
    iwlb,
)
from linear_gaussian import make_model
from torch import Tensor, nn

import fastvi
from fastvi.chunks import chunk_size as chunk_sizes

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


def test_batch_normalisation_in_evaluation_mode():
    def run(chunk_size: int | None) -> tuple[Tensor, ...]:
        setting = Setting()
        norm = nn.BatchNorm1d(BATCH).double()
        norm.running_mean = torch.linspace(-1.0, 1.0, BATCH, dtype=DOUBLE)
        setting.decoder = nn.Sequential(
            nn.Linear(LATENT, 8), norm, nn.Tanh(), nn.Linear(8, FEATURES)
        )
        setting.decoder.double().eval()
        return setting.run(fastvi.IWLBLoss(12, chunk_size=chunk_size))

    assert_same(run(5), run(None), 1e-10)


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


@pytest.mark.slow
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
    vae.loss(x, fastvi.IWLBLoss(20), key=key).backward()
    other.loss(x, fastvi.IWLBLoss(20, chunk_size=6), key=key).backward()
    for a, b in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)


# ---- chunk_size="auto" --------------------------------------------------------------------------
@pytest.mark.slow
def test_auto_keeps_to_the_budget_and_says_so(monkeypatch):
    monkeypatch.setattr(chunk_sizes, "_said", set())
    setting = Setting()
    with TestCase().assertLogs("fastvi", "INFO") as said:
        small = setting.run(fastvi.IWLBLoss(3000, chunk_size="auto", memory_budget=10**5))
        setting.run(fastvi.IWLBLoss(3000, chunk_size="auto", memory_budget=10**6))
    sizes = [record.args[1] for record in said.records]
    assert 1 <= sizes[0] < sizes[1] < 3000
    assert "chunk_size='auto' took" in "".join(said.output)
    assert_same(small, setting.run(fastvi.IWLBLoss(3000)), 1e-10)
    assert chunk_sizes.default_budget(torch.device("cpu")) > 2**20
