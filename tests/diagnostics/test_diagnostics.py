"""Diagnostics of importance weights, against other implementations and against exact answers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from linear_gaussian import chi_square, linear_vae, make_model

import fastvi
from fastvi.diagnostics import weights_and_gradients

pytestmark = pytest.mark.native

INF, NAN = math.inf, math.nan


def pareto(k, shape, generator):
    """Log-weights whose upper tail has shape k exactly: the weights are u^-k."""
    return -k * torch.rand(shape, dtype=torch.float64, generator=generator).log()


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- effective sample size ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], 4.0),
        ([0.0, -INF, 0.0, -INF], 2.0),
        ([0.0, -1e30, -1e30, -1e30], 1.0),
        ([-1e5, -1e5, -1e5, -1e5], 4.0),
        ([-1e5, -1e5, -2e5, -2e5], 2.0),
        ([0.0, math.log(3.0), -INF, -INF], 1.6),
        ([-INF, -INF, -INF, -INF], 0.0),
        ([0.0, INF, 0.0, 0.0], NAN),
        ([0.0, NAN, 0.0, 0.0], NAN),
    ],
    ids=["equal", "half", "dominated", "far", "far_half", "known", "no_weight", "inf", "nan"],
)
def test_effective_sample_size_of_known_weights(column, expected):
    found = fastvi.effective_sample_size(torch.tensor(column))
    torch.testing.assert_close(found.item(), expected, rtol=1e-6, atol=0.0, equal_nan=True)


def test_effective_sample_size_is_its_formula_and_keeps_the_batch():
    log_w = 3 * torch.randn(50, 4, 3, dtype=torch.float64)
    w = log_w.exp()
    torch.testing.assert_close(
        fastvi.effective_sample_size(log_w), w.sum(0).square() / w.square().sum(0)
    )
    assert fastvi.effective_sample_size(torch.zeros(5, 0)).shape == (0,)


# Breaks when the sum of squares is taken wrong: E w^2 over (E w)^2 is 1 + chi^2, in closed form.
def test_effective_sample_size_of_a_gaussian_guide():
    model = make_model(features=3, latent=2)
    x = model.draw(4, seeded_generator(1))
    loc, log_var = model.posterior(x)
    q = (loc + 0.3 * torch.exp(0.5 * log_var), log_var + 0.4)
    expected = 1 / (1 + chi_square((loc, log_var), q))
    ratio = fastvi.effective_sample_size(log_weights(model, x, q, 200_000)) / 200_000
    torch.testing.assert_close(ratio, expected, rtol=0.01, atol=0.0)


def log_weights(model, x, q, num_samples, key=(3, 1)):
    z, log_q, log_p = fastvi.ops.gaussian_rsample(
        q[0],
        log_var=q[1].expand_as(q[0]),
        num_samples=num_samples,
        key=torch.tensor(key),
        prior=model.prior,
    )
    return model.log_likelihood(x, z) + log_p - log_q


# ---- Pareto k -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [25, 100, 226, 1000, 20_000], ids="K{}".format)
@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0], ids="spread{}".format)
def test_pareto_k_is_that_of_arviz(num_samples, spread):
    stats = pytest.importorskip("arviz_stats.base").array_stats
    log_w = spread * torch.randn(num_samples, 6, dtype=torch.float64) - 1e5
    # ArviZ takes the logarithm of the inverse weights.
    expected = [stats.psislw(-column.numpy(), axis=0)[1] for column in log_w.T]
    expected = torch.tensor([float(k) for k in expected], dtype=torch.float64)
    torch.testing.assert_close(fastvi.pareto_k(log_w), expected, rtol=1e-6, atol=1e-6)


def test_pareto_k_agrees_with_maximum_likelihood():
    """scipy's fit of the same tail, with the same weak prior, within its standard error."""
    scipy_stats = pytest.importorskip("scipy.stats")
    num_samples = 20_000
    size = int(3 * math.sqrt(num_samples))
    for k in (0.2, 0.8):
        log_w = pareto(k, (num_samples,), seeded_generator(4))
        w = log_w.exp().sort(descending=True).values
        fitted, _, _ = scipy_stats.genpareto.fit((w[:size] - w[size]).numpy(), floc=0)
        fitted = (size * fitted + 5) / (size + 10)
        standard_error = (1 + k) / math.sqrt(size)
        assert abs(fastvi.pareto_k(log_w).item() - fitted) < 0.5 * standard_error


@pytest.mark.parametrize("k", [0.1, 0.5, 0.7, 1.0, 1.5], ids="k{}".format)
def test_pareto_k_finds_a_known_shape(k):
    num_samples, columns = 20_000, 200
    found = fastvi.pareto_k(pareto(k, (num_samples, columns), seeded_generator(5)))
    size = 3 * math.sqrt(num_samples)
    # The prior moves k by 10 / (M + 10) of its way to a half.
    expected = (size * k + 5) / (size + 10)
    assert abs(found.mean().item() - expected) < 0.02
    assert abs(found.std().item() / ((1 + k) / math.sqrt(size)) - 1) < 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pareto_k_does_not_move_with_a_constant_or_the_order(dtype):
    log_w = torch.randn(500, 3).to(dtype)
    k = fastvi.pareto_k(log_w)
    torch.testing.assert_close(fastvi.pareto_k(log_w.flip(0)), k)
    # 2^-6 of a nat is what float32 resolves at 1e5: the constant keeps what the sum can hold.
    coarse = (64 * log_w).round() / 64
    torch.testing.assert_close(fastvi.pareto_k(coarse - 98304.0), fastvi.pareto_k(coarse))
    assert fastvi.pareto_k(log_w.reshape(500, 3, 1)).shape == (3, 1)


def test_pareto_k_where_there_is_no_fit():
    nothing, one = torch.full((100,), -INF), torch.full((100,), -INF)
    one[7] = 3.0
    dominated, few = torch.full((100,), -1e4), torch.full((100,), -INF)
    dominated[3], few[:3] = 0.0, torch.tensor([0.0, -1.0, -2.0])
    nan, inf = torch.randn(100), torch.randn(100)
    nan[0], inf[0] = NAN, INF
    columns = torch.stack([torch.zeros(100), nothing, one, dominated, few, nan, inf], dim=1)
    expected = torch.tensor([-INF, NAN, INF, INF, INF, NAN, NAN], dtype=torch.float64)
    torch.testing.assert_close(fastvi.pareto_k(columns), expected, equal_nan=True)
    # No tail of five weights below K = 25.
    assert fastvi.pareto_k(torch.randn(24, 2)).isnan().all()
    assert fastvi.pareto_k(torch.randn(25, 2)).isfinite().all()
    assert fastvi.pareto_k(torch.zeros(100, 0)).shape == (0,)


# ---- the gap ------------------------------------------------------------------------------------


def test_the_gap_is_the_jackknife():
    """The definition, with every bound without one sample computed by itself."""
    log_w = 2 * torch.randn(30, 4, dtype=torch.float64)
    without = [torch.cat([log_w[:k], log_w[k + 1 :]]) for k in range(30)]
    bound = fastvi.ops.iwlb(log_w)
    expected = 29 * (bound - torch.stack([fastvi.ops.iwlb(w) for w in without]).mean(0))
    torch.testing.assert_close(fastvi.evidence_gap(log_w), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1.0, 1.0, 1.0], 0.0),
        ([-1e5, -1e5, -1e5], 0.0),
        ([0.0, -INF, -INF], INF),
        # exp(-500) would vanish in 1 - w: the rest has to be summed by itself.
        ([0.0, -500.0, -500.0], (2 / 3) * (500 - math.log(2)) - 2 * math.log(1.5)),
        ([-INF, -INF, -INF], NAN),
        ([NAN, 0.0, 0.0], NAN),
        ([1.0], NAN),
    ],
    ids=["equal", "far", "one_weight", "dominated", "no_weight", "nan", "K1"],
)
def test_the_gap_of_known_weights(column, expected):
    found = fastvi.evidence_gap(torch.tensor(column)).item()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


# Breaks when the gap is not what the bound lacks. log p is exact here, and chi^2 too.
@pytest.mark.slow
@pytest.mark.parametrize("num_samples", [32, 128], ids="K{}".format)
def test_the_gap_is_what_the_bound_lacks(num_samples):
    model = make_model(features=1, latent=1)
    x = model.draw(1, seeded_generator(2))
    loc, log_var = model.posterior(x)
    q = (loc + 0.6 * torch.exp(0.5 * log_var), log_var + 0.4)
    replicas = 50_000
    log_w = log_weights(model, x, tuple(t.expand(replicas, 1) for t in q), num_samples)
    excess = fastvi.ops.iwlb(log_w) - model.log_evidence(x)
    gap = fastvi.evidence_gap(log_w)
    # E exp(L_K) = p: exp(L_K - log p) - 1 has mean zero, and takes the first-order noise away.
    lacking = torch.expm1(excess) - excess
    chi2 = chi_square((loc, log_var), q).item()
    torch.testing.assert_close(gap.mean().item(), chi2 / (2 * num_samples), rtol=0.1, atol=0.0)
    left = (lacking - gap).mean().item()
    assert abs(left) < 0.1 * lacking.mean().item()


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_signal_to_noise_of_known_gradients():
    """g = (3, 4) + 2 noise in two features: the mean is 5 long, the noise sqrt(8)."""
    loc = torch.zeros(1, 2, requires_grad=True)
    still = torch.zeros(3, requires_grad=True)
    idle = torch.zeros(3, requires_grad=True)

    def loss(key):
        z, _, _ = fastvi.ops.gaussian_rsample(loc, scale=torch.ones(1, 2), num_samples=1, key=key)
        return (torch.tensor([3.0, 4.0]) * z + z.square()).sum() + still.sum()

    groups = {"noisy": [loc], "still": [still], "idle": [idle]}
    found = fastvi.gradient_snr(loss, groups, num_draws=4000, key=torch.tensor([1, 0]))
    assert found["noisy"] == pytest.approx(5 / math.sqrt(8), rel=0.05)
    assert found["still"] == INF and math.isnan(found["idle"])
    assert loc.grad is None
    again = fastvi.gradient_snr(loss, [loc], num_draws=4000, key=torch.tensor([1, 0]))
    assert again == {"all": found["noisy"]}


# Without the noise of the mean taken out, the ratio would never be below 1 / sqrt(draws) = 0.1.
def test_a_gradient_without_signal_is_seen_as_such():
    loc = torch.zeros(200, 1, requires_grad=True)

    def loss(key):
        z, _, _ = fastvi.ops.gaussian_rsample(loc, scale=torch.ones(200, 1), num_samples=1, key=key)
        return z.square().sum()

    assert fastvi.gradient_snr(loss, [loc], num_draws=100, key=torch.tensor([1, 0]))["all"] < 0.05


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "measure",
    [fastvi.effective_sample_size, fastvi.pareto_k, fastvi.evidence_gap],
    ids=lambda measure: measure.__name__,
)
def test_bad_log_weights_are_named(measure):
    name = measure.__name__
    with pytest.raises(TypeError, match=f"{name}: expected log_w to be a tensor, got list"):
        measure([0.0])
    with pytest.raises(TypeError, match=f"{name}: expected log_w to be floating-point"):
        measure(torch.zeros(3, dtype=torch.int64))
    for shape in ((), (0, 4)):
        with pytest.raises(ValueError, match=f"{name}: expected log_w to have shape"):
            measure(torch.zeros(shape))


def test_bad_arguments_of_gradient_snr_are_named():
    x = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="gradient_snr: .*num_draws to be at least 2, got 1"):
        fastvi.gradient_snr(lambda key: x.sum(), [x], num_draws=1)
    for arguments, words in (
        ((None, [x]), "expected loss_fn to be a function"),
        ((lambda key: x.sum(), []), "got none in 'all'"),
        ((lambda key: x.sum(), {}), "got none in no group"),
        ((lambda key: x.sum(), [torch.zeros(2)]), "to need a gradient"),
        ((lambda key: x.sum(), {"encoder": ["x"]}), "each parameter of 'encoder'"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"gradient_snr: .*{words}"):
            fastvi.gradient_snr(*arguments)


# ---- the diagnosis ------------------------------------------------------------------------------


KEY = torch.tensor([5, 0])


def test_an_exact_guide_needs_one_sample():
    vae, model = linear_vae()
    x = model.draw(6, seeded_generator(3))
    found = fastvi.diagnose(vae, x, num_samples=200, key=KEY, snr_draws=4)
    exact = model.log_evidence(x)
    torch.testing.assert_close(found.ess, torch.full((6,), 200.0, dtype=torch.float64))
    torch.testing.assert_close(found.bounds, exact.expand(len(found.ladder), 6))
    torch.testing.assert_close(found.log_evidence, exact)
    torch.testing.assert_close(found.max_weight, torch.full((6,), 1 / 200, dtype=torch.float64))
    advice = " ".join(found.advice())
    assert "ESS 200 of 200" in advice and "K can be smaller" in advice
    assert "K = 1 will do" in advice


def test_the_bounds_of_a_wide_guide_rise_to_the_evidence():
    vae, model = linear_vae(widen=0.5, shift=0.5)
    x = model.draw(40, seeded_generator(3))
    found = fastvi.diagnose(vae, x, num_samples=2000, key=KEY, snr_draws=0)
    exact = model.log_evidence(x).mean()
    means = found.bounds.mean(1)
    # Bounds of small K are means over many groups, and may be compared with the next.
    assert (means[1:6] > means[:5]).all()
    assert means[0] < exact - 0.1
    error = (found.log_evidence - model.log_evidence(x)).std() / math.sqrt(40)
    assert (found.log_evidence.mean() - exact).abs() < 4 * error
    assert found.reliable.all() and found.snr == {}
    elbo = means[0].item()
    assert any("can be trusted" in sentence for sentence in found.advice())
    assert any(
        f"The ELBO is {found.log_evidence.mean().item() - elbo:.2f} nats below" in sentence
        for sentence in found.advice()
    )


def test_a_narrow_guide_is_told_to_widen():
    vae, model = linear_vae(widen=-3.0, latent=3)
    found = fastvi.diagnose(
        vae, model.draw(20, seeded_generator(3)), num_samples=500, key=KEY, snr_draws=0
    )
    first = found.advice()[0]
    assert found.pareto_k.median() > 0.7
    assert first.startswith("k-hat = ") and "more samples will not help" in first
    assert "Widen the guide" in first
    # No estimate of what K would be enough, where none is.
    assert not any("estimated log p (mean" in s or "about K =" in s for s in found.advice())


@pytest.mark.slow
def test_the_standard_gradient_is_advised_against():
    vae, model = linear_vae(widen=0.4, shift=0.6)
    x = model.draw(4, seeded_generator(3))
    found = fastvi.diagnose(
        vae, x, num_samples=1000, key=KEY, snr_samples=(1, 30, 1000), snr_draws=400
    )
    iwae, dreg = found.snr["iwae"]["encoder"], found.snr["dreg"]["encoder"]
    assert iwae[0] > 3 * iwae[-1] and dreg[-1] > 3 * dreg[0]
    assert found.advice()[-1].endswith("use dreg.")
    # The decoder's gradient is the same for both.
    assert found.snr["iwae"]["decoder"] == pytest.approx(found.snr["dreg"]["decoder"])


def test_the_same_key_gives_the_same_diagnosis_in_any_chunk(monkeypatch):
    vae, model = linear_vae(widen=0.5)
    x = model.draw(7, seeded_generator(3))
    whole = fastvi.diagnose(vae, x, num_samples=300, key=KEY, snr_draws=0)
    monkeypatch.setattr(weights_and_gradients, "_MOST_OUTPUTS", 64 * x.numel())
    chunked = fastvi.diagnose(vae, x, num_samples=300, key=KEY, snr_draws=0)
    torch.testing.assert_close(chunked.bounds, whole.bounds)
    torch.testing.assert_close(chunked.pareto_k, whole.pareto_k)
    # Two data at a time: other noise, but every datum is there, in its place.
    monkeypatch.setattr(weights_and_gradients, "_MOST_LOG_WEIGHTS", 600)
    parts = fastvi.diagnose(vae, x, num_samples=300, key=KEY, snr_draws=0)
    assert parts.ess.shape == (7,)
    torch.testing.assert_close(parts.log_evidence, model.log_evidence(x), rtol=0.0, atol=0.2)
    assert len(set(parts.ess.tolist())) == 7


def test_a_bound_that_is_not_finite_comes_first():
    vae, model = linear_vae()
    found = fastvi.diagnose(
        vae, model.draw(5, seeded_generator(3)), num_samples=30, key=KEY, snr_draws=0
    )
    bounds = found.bounds.clone()
    bounds[:, 2] = -INF
    broken = dataclasses.replace(found, bounds=bounds)
    assert broken.advice()[0].startswith("1 of 5 data have a bound that is not finite")


@pytest.mark.parametrize("num_samples", [1, 2, 24], ids="K{}".format)
def test_few_samples_are_said_to_be_few(num_samples):
    vae, model = linear_vae(widen=0.3)
    x = model.draw(3, seeded_generator(3))
    found = fastvi.diagnose(vae, x, num_samples=num_samples, key=KEY, snr_draws=2)
    assert any("k-hat needs at least 25" in sentence for sentence in found.advice())
    assert found.bounds.isfinite().all() and found.snr_samples[-1] <= num_samples


def test_bad_arguments_of_diagnose_are_named():
    vae, model = linear_vae()
    x = model.draw(3, seeded_generator(3))
    for arguments, options, words in (
        ((vae, x), {"num_samples": 0}, "num_samples to be from 1"),
        ((vae, x[:0]), {}, "with N at least 1"),
        ((vae, x[0]), {}, "expected x to have shape"),
        ((vae, "x"), {}, "expected x to be a tensor"),
        ((vae, x), {"snr_draws": -1}, "snr_draws"),
        ((vae, x), {"snr_draws": 1}, "at least 2"),
        ((vae, x), {"snr_data": 0}, "snr_data"),
        ((vae, x), {"snr_samples": (0,)}, "snr_samples"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            fastvi.diagnose(*arguments, **options)
