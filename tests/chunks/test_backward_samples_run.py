"""How a choice of few samples is carried out, how many are taken, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import TestCase

import pytest
import torch
from choices import mean_over_choices
from few_setting import (
    DOUBLE,
    FEATURES,
    KEY,
    LATENT,
    LOSSES,
    K,
    check_unbiased,
    gradient_of,
    named,
    some_data,
    vae,
)
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, Normal

import fastvi
from fastvi import objectives
from fastvi.objectives import Draws, Latent


# ---- a choice and how it is carried out ---------------------------------------------------------
@named(LOSSES)
def test_chunks_have_the_same_choice(name: str):
    model, x = vae(), some_data(3)
    results = [
        gradient_of(model, model.loss(x, LOSSES[name](backward_samples=4, **options), key=KEY))
        for options in ({}, {"chunk_size": 4}, {"chunk_size": 1}, {"chunk_size": "auto"})
    ]
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_another_key_chooses_others_and_threads_choose_the_same(threads):
    model, x = vae(), some_data(3)

    def grads(key: Tensor) -> Tensor:
        loss = model.loss(x, fastvi.IWLBLoss(200, backward_samples=3), key=key)
        return torch.cat([g.flatten() for g in gradient_of(model, loss)[1:]])

    threads(1)
    one = grads(KEY)
    threads(2)
    torch.testing.assert_close(grads(KEY), one, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(grads(torch.tensor([5, 8])), one)


@named(LOSSES)
def test_all_samples_are_the_whole_gradient_bit_for_bit(name: str):
    model, x = vae(), some_data(3)
    whole = gradient_of(model, model.loss(x, LOSSES[name](), key=KEY))
    for few in (K, K + 1, 10**9):
        found = gradient_of(model, model.loss(x, LOSSES[name](backward_samples=few), key=KEY))
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("chunk_size", [None, 3], ids=str)
def test_values_without_a_gradient_are_those_of_all(chunk_size: int | None):
    model, x = vae(), some_data(3)
    criterion = fastvi.IWLBLoss(K, chunk_size=chunk_size, backward_samples=2)
    expected = model.loss(x, fastvi.IWLBLoss(K), key=KEY).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(model.loss(x, criterion, key=KEY), expected)


def log_weights_as(values: Tensor, **options) -> tuple[Tensor, Tensor]:
    """A bound of given log-weights, (K, B), and its gradient by a shift of each datum's."""
    shift = torch.zeros(values.shape[1], dtype=DOUBLE, requires_grad=True)
    z = Latent("z", torch.zeros(values.shape), torch.zeros(values.shape, dtype=DOUBLE),
               reparameterised=True, parents=())  # fmt: skip
    z = Latent("z", torch.arange(len(values)).double()[:, None].expand(values.shape), z.log_q)
    bound = objectives.IWLB(len(values), "iwae", **options).bound(
        [z], lambda v: values.gather(0, v["z"].long()) + shift
    )
    (grad,) = torch.autograd.grad(bound.sum(), shift)
    return bound.detach(), grad


@pytest.mark.parametrize("few", [1, 2, 4])
def test_degenerate_weights(few: int):
    """What all samples have in common has no noise, and nothing is made of impossible ones."""
    inf, nan = math.inf, math.nan
    columns = {
        "alike": [1.0] * 5,
        "one has all": [-inf, -inf, 700.0, -inf, -inf],
        "one dominates": [0.0, -900.0, -900.0, -1e4, -900.0],
        "two are possible": [-inf, 2.0, -inf, -inf, 3.0],
        "large": [1e5, 1e5 + 1, 1e5 - 1, 1e5, 1e5],
        "none is possible": [-inf] * 5,
        "nan": [0.0, nan, 1.0, 2.0, 3.0],
    }
    values = torch.tensor(list(columns.values()), dtype=DOUBLE).t().contiguous()
    whole, whole_grad = log_weights_as(values)
    bound, grad = log_weights_as(values, backward_samples=few)
    torch.testing.assert_close(bound, whole, rtol=0.0, atol=0.0, equal_nan=True)
    torch.testing.assert_close(grad, whole_grad, rtol=1e-13, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("chunk_size", [None, 2], ids=str)
def test_tensors_that_are_captured_and_shared(chunk_size: int | None):
    """A gradient through a tensor with a graph of its own: at one point with every choice."""
    leaf = torch.randn(2, LATENT, dtype=DOUBLE, requires_grad=True)

    def run(**options) -> tuple[Tensor, ...]:
        loc = leaf.tanh()
        criterion = fastvi.IWLBLoss(K, chunk_size=chunk_size, reduction="sum", **options)
        log_likelihood = lambda z: -(z - 2 * loc - 1).square().sum(-1)  # noqa: E731
        loss = criterion(loc, 0.3 * loc, log_likelihood, key=KEY)
        return loss.detach(), *torch.autograd.grad(loss, [leaf])

    with pytest.MonkeyPatch.context() as monkeypatch:
        mean, _ = mean_over_choices(monkeypatch, lambda: run(backward_samples=2))
    torch.testing.assert_close(mean, run(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [None, 2], ids=str)
@pytest.mark.parametrize("few", [2, "auto"], ids=str)
def test_noise_in_the_model_is_refused(few: Any, chunk_size: int | None):
    """The chosen samples run again among others, where dropout drops other numbers."""
    torch.manual_seed(0)
    x = torch.rand(3, 40).round()
    decoder = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Dropout(0.3), nn.Linear(50, 40))
    loc = torch.zeros(3, 2, requires_grad=True)
    criterion = fastvi.IWLBLoss(20, chunk_size=chunk_size, backward_samples=few)
    with torch.no_grad():
        decoder[-1].weight.mul_(20)

    def loss() -> Tensor:
        return criterion(loc, torch.zeros(3, 2), fastvi.log_likelihood(decoder, x))

    with pytest.raises(RuntimeError, match="backward_samples.*dropout.*backward_samples=None"):
        loss().backward()
    decoder.eval()
    loss().backward()


def test_batch_norm_in_training_is_refused_and_in_evaluation_works():
    torch.manual_seed(0)
    x = torch.rand(3, 40).round()
    decoder = nn.Sequential(nn.Linear(2, 50), nn.BatchNorm1d(50), nn.Linear(50, 40))
    with torch.no_grad():
        decoder[-1].weight.mul_(20)
    criterion = fastvi.IWLBLoss(20, backward_samples=2)
    loc = torch.zeros(3, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="batch normalisation"):
        criterion(loc, torch.zeros(3, 2), fastvi.log_likelihood(decoder, x)).backward()
    decoder.eval()
    criterion(loc, torch.zeros(3, 2), fastvi.log_likelihood(decoder, x)).backward()


def test_modules_that_compute_once_and_lazy_ones(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    x = some_data()
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(LATENT, FEATURES)).double()
    lazy = nn.LazyLinear(FEATURES).double()
    loc = torch.randn(2, LATENT, dtype=DOUBLE, requires_grad=True)

    def run(decoder: nn.Module, **options) -> tuple[Tensor, ...]:
        criterion = fastvi.IWLBLoss(K, **options)
        loss = criterion(loc, 0 * loc, fastvi.log_likelihood(decoder, x), key=KEY)
        return loss.detach(), *torch.autograd.grad(loss, [loc, *decoder.parameters()])

    before = {name: value.clone() for name, value in spectral.state_dict().items()}

    def of_one_step(**options) -> tuple[Tensor, ...]:
        spectral.load_state_dict(before)
        return run(spectral, **options)

    check_unbiased(monkeypatch, of_one_step)
    run(lazy, backward_samples=2)
    check_unbiased(monkeypatch, lambda **options: run(lazy, **options))


@pytest.mark.slow
def test_compiled_decoders_and_steps(fresh_compiler):
    model, x = vae(), some_data(3)
    criterion = fastvi.IWLBLoss(K, backward_samples=2)
    expected = gradient_of(model, model.loss(x, criterion, key=KEY))
    step = torch.compile(lambda: model.loss(x, criterion, key=KEY))
    for found, value in zip(gradient_of(model, step()), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)
    model.decoder.compile()
    for found, value in zip(
        gradient_of(model, model.loss(x, criterion, key=KEY)), expected, strict=True
    ):
        torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 50], ids=str)
def test_memory_is_that_of_few(chunk_size: int | None):
    """No tensor with a graph is larger than those of the chosen samples."""
    largest: list[int] = []

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(LATENT, FEATURES, dtype=DOUBLE))

        def forward(self, z: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                largest.append(len(z))
            return z @ self.weight

    x, loc = some_data(3), torch.zeros(3, LATENT, dtype=DOUBLE, requires_grad=True)
    criterion = fastvi.IWLBLoss(400, chunk_size=chunk_size, backward_samples=8)
    criterion(loc, 0 * loc, fastvi.log_likelihood(Decoder(), x)).backward()
    assert largest and max(largest) == 3 * 8


# ---- "auto" -------------------------------------------------------------------------------------
@named(["iwae", "stl", "dreg", "rws", "rws_dreg", "dreg, alpha 0.5", "piwae", "jackknife"])
def test_auto_has_the_whole_gradient_in_the_mean(monkeypatch: pytest.MonkeyPatch, name: str):
    """As a list in which some data have more samples than others."""
    model, x = vae(4.0), some_data(3)

    def run(**options) -> tuple[Tensor, ...]:
        return gradient_of(model, model.loss(x, LOSSES[name](**options), key=KEY))

    auto = {"backward_samples": "auto", "variance_growth": 5.0}
    mean, number = mean_over_choices(monkeypatch, lambda: run(**auto))
    assert number > 1
    for found, expected in zip(mean, run(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    for options in ({"chunk_size": 1}, {"chunk_size": 2}):
        for found, expected in zip(run(**auto, **options), run(**auto), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("few", [4, "auto"], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype: torch.dtype, few: Any):
    """Products of few rows may round otherwise than those of many, and that is no other model."""
    torch.manual_seed(0)
    x = torch.rand(5, 300).round()
    decoder = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 300))
    loc = torch.zeros(5, 3, requires_grad=True)
    options: dict[str, Any] = {"variance_growth": 2.0} if few == "auto" else {}
    criterion = fastvi.IWLBLoss(64, backward_samples=few, **options)
    # The networks alone, and all of it.
    with torch.autocast("cpu", torch.bfloat16):
        criterion(loc, 0 * loc, fastvi.log_likelihood(decoder, x)).backward()
    decoder, low = decoder.to(dtype), loc.to(dtype)
    criterion(low, 0 * low, fastvi.log_likelihood(decoder, x.to(dtype))).backward()
    assert loc.grad is not None and bool(loc.grad.isfinite().all())


def test_auto_says_what_it_took_and_rests_where_it_gains_nothing():
    x = some_data(3)
    calls: list[int] = []

    def log_likelihood(slope: float):
        def function(z: Tensor) -> Tensor:
            calls.append(len(z))
            return slope * z.sum(-1)

        return function

    loc = torch.zeros(3, LATENT, requires_grad=True)
    criterion = fastvi.IWLBLoss(64, backward_samples="auto")
    with TestCase().assertLogs("fastvi", "INFO") as said:
        criterion(loc, 0 * loc, log_likelihood(6.0)).backward()
    (message,) = said.output
    assert "backward_samples='auto' took" in message and "of 64 samples" in message
    assert calls[0] == 64 and calls[1] < 32
    calls.clear()
    # Weights that are all alike: all run backward, and the next steps do not try again.
    criterion(loc, 0 * loc, log_likelihood(0.0)).backward()
    assert calls == [64, 64]
    calls.clear()
    criterion(loc, 0 * loc, log_likelihood(0.0)).backward()
    assert calls == [64]
    assert len(x) == 3


@pytest.mark.slow
def test_auto_keeps_the_variance_it_was_asked_to():
    """Over many keys: the variance over the samples, against that of all backward."""
    model, x = vae(3.0), some_data(2)
    keys = [torch.tensor([seed, 1]) for seed in range(400)]

    def variance(criterion: nn.Module) -> float:
        grads = [
            torch.cat([g.flatten() for g in gradient_of(model, model.loss(x, criterion, key=key))])
            for key in keys
        ]
        return float(torch.stack(grads).var(0).sum())

    whole = variance(fastvi.IWLBLoss(100, "iwae"))
    few = variance(fastvi.IWLBLoss(100, "iwae", backward_samples="auto", variance_growth=1.5))
    # A variance of 400 gradients is known to about a fifteenth; so is the other.
    assert few / whole < 1.5 * 1.3


# ---- bad input ----------------------------------------------------------------------------------
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "zero": (lambda: fastvi.IWLBLoss(4, backward_samples=0), ValueError, "from 1 to .*, got 0"),
    "negative": (lambda: objectives.IWLB(4, backward_samples=-2), ValueError, "got -2"),
    "float": (lambda: fastvi.IWLBLoss(4, backward_samples=2.0), TypeError, "int, got float"),
    "bool": (lambda: fastvi.MIWAELoss(4, 2, backward_samples=True), TypeError, "bool"),
    "word": (lambda: fastvi.IWLBLoss(4, backward_samples="few"), ValueError, "'auto', got 'few'"),
    "growth alone": (
        lambda: fastvi.IWLBLoss(4, variance_growth=1.2), ValueError, "backward_samples='auto'"
    ),
    "growth of a number": (
        lambda: fastvi.IWLBLoss(4, backward_samples=2, variance_growth=1.2), ValueError, "'auto'"
    ),
    "growth of one": (
        lambda: fastvi.IWLBLoss(4, backward_samples="auto", variance_growth=1.0),
        ValueError, "above 1 and finite, got 1.0",
    ),
    "no weights": (
        lambda: fastvi.IWLBLoss(4, alpha=1.0, backward_samples=2), ValueError, "without weights"
    ),
    "groups of one": (
        lambda: objectives.MIWAE(1, 8, backward_samples=2), ValueError, "use fewer num_samples"
    ),
    "the ELBO": (lambda: fastvi.ELBOLoss(4, backward_samples=2), TypeError, "backward_samples"),
    "the ELBO's share": (
        lambda: objectives.CIWAE(4, 1.0, backward_samples=2), ValueError, "without weights"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.replace(" ", "_"))
def test_bad_settings_are_refused(case: str):
    make, error, words = BAD[case]
    with pytest.raises(error, match=words):
        make()


def test_one_sample_is_all_of_them():
    model, x = vae(), some_data()
    found = gradient_of(model, model.loss(x, fastvi.IWLBLoss(1, backward_samples=1), key=KEY))
    whole = gradient_of(model, model.loss(x, fastvi.IWLBLoss(1), key=KEY))
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("few", [2, "auto"], ids=str)
def test_no_data(few: Any):
    loc = torch.zeros(0, 2, requires_grad=True)
    criterion = fastvi.IWLBLoss(K, backward_samples=few, reduction="sum")
    criterion(loc, 0 * loc, lambda z: -z.square().sum(-1)).backward()
    assert loc.grad is not None and loc.grad.shape == (0, 2)


def test_transforms_are_refused():
    criterion = fastvi.IWLBLoss(K, backward_samples=2)
    loss = torch.func.grad(lambda loc: criterion(loc, 0 * loc, lambda z: -z.square().sum(-1)))
    with pytest.raises(RuntimeError, match=r"backward_samples.*torch\.func"):
        loss(torch.zeros(3, 2))


def test_settings_are_shown():
    assert "backward_samples=5" in repr(fastvi.IWLBLoss(64, backward_samples=5))
    assert "backward_samples='auto'" in repr(objectives.VIMCO(64, backward_samples="auto"))
    assert "backward_samples" not in repr(fastvi.IWLBLoss(64)) + repr(objectives.IWLB(64))


@pytest.mark.parametrize("estimator", ["dreg", "iwae", "rws"])
def test_a_step_that_rests_is_the_whole_step(estimator: str):
    """After a try that gained nothing, of samples that are given and of samples that are drawn."""
    weight = nn.Parameter(torch.ones(3, 2, dtype=DOUBLE))
    of_rows = {"z": Independent(Normal(weight, 1.0), 1)}
    of_gammas = Gamma(weight.exp().sum(-1), 1.0)

    def step(objective: Any, given: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(8)
        latents: Any = Draws.of(of_rows)
        if given:
            latents = [Latent.draw("z", of_gammas, 16, path=True)]
        bound = objective.bound(latents, lambda v: 1e-3 * v["z"].reshape(16, 3, -1).sum(-1))
        (grad,) = torch.autograd.grad(bound.sum(), [weight], retain_graph=True)
        return bound.detach(), grad

    for given in (True, False):
        objective = objectives.IWLB(16, estimator, backward_samples="auto")
        whole = step(objectives.IWLB(16, estimator), given)
        for _ in range(2):  # what is tried, and found to need all, and then the rest
            for found, expected in zip(step(objective, given), whole, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
        assert objective.backward_samples.resting == 19
