"""Draws from a key: the same numbers for the same key, of the right law, with their density."""

from __future__ import annotations

import math

import pytest
import torch
from distribution_table import Family, families
from op_table import DEVICES
from scipy import stats
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastvi import distributions as ours
from fastvi import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
SAMPLES = 20_000
# A false alarm of one in a million: the keys are fixed, so it is the luck of one day.
RARE = 1e-6
DRAWN = ("Normal", "Laplace", "Bernoulli", "Categorical")


def key(device: str = "cpu") -> Tensor:
    return torch.tensor([0x1234_5678_9ABC, 42], device=device)


def draw(p, num_samples: int, **options) -> tuple[Tensor, Tensor]:
    """Through whichever of the two methods there is."""
    method = "rsample_and_log_prob" if p.has_rsample else "sample_and_log_prob"
    return getattr(p, method)(num_samples, **{"key": key(p.mean.device), **options})


def only_drawn(family: Family) -> None:
    if family.name not in DRAWN:
        pytest.skip("drawn by torch's sampler alone")


@on_devices
@families
def test_density_is_that_of_the_sample(family: Family, device: str):
    only_drawn(family)
    parameters, _ = family.draw(device=device)
    p = family.ours(**parameters)
    x, log_p = draw(p, 6)
    assert x.shape == log_p.shape == (6, 4, 5)
    torch.testing.assert_close(log_p, family.theirs(**parameters).log_prob(x))
    event = ours.Independent(p, 1)
    y, log_q = draw(event, 6)
    torch.testing.assert_close(y, x, rtol=0, atol=0)
    torch.testing.assert_close(log_q, log_p.sum(-1))


@on_devices
@families
def test_same_key_same_numbers_whatever_the_chunks(family: Family, device: str):
    only_drawn(family)
    parameters, _ = family.draw(device=device)
    p = family.ours(**parameters)
    whole, log_whole = draw(p, 7)
    parts = [draw(p, count, sample_offset=start) for start, count in ((0, 3), (3, 1), (4, 3))]
    torch.testing.assert_close(torch.cat([x for x, _ in parts]), whole, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([lp for _, lp in parts]), log_whole, rtol=0, atol=0)
    other, _ = draw(p, 7, key=key(device) + 1)
    assert not torch.equal(other, whole)


@families
def test_torch_manual_seed_governs_the_key(family: Family):
    only_drawn(family)
    p = family.ours(**family.draw()[0])
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(draw(p, 5, key=None)[0])
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.equal(runs[0], runs[2])


# ---- the law ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["Normal", "Laplace"])
def test_law_of_the_continuous(name: str):
    """Kolmogorov and Smirnov, and the first two moments within five standard errors."""
    p = getattr(ours, name)(torch.tensor([0.7, -3.0]).double(), torch.tensor([0.3, 2.0]).double())
    x, _ = p.rsample_and_log_prob(SAMPLES, key=key())
    for column, loc, scale in zip(x.T, p.loc, p.scale, strict=True):
        law = {"Normal": stats.norm, "Laplace": stats.laplace}[name](loc.item(), scale.item())
        assert stats.kstest(column.numpy(), law.cdf).pvalue > RARE
    error = p.stddev / math.sqrt(SAMPLES)
    assert bool(((x.mean(0) - p.mean).abs() < 5 * error).all())
    kurtosis = {"Normal": 3.0, "Laplace": 6.0}[name]
    error = p.variance * math.sqrt((kurtosis - 1) / SAMPLES)
    assert bool(((x.var(0) - p.variance).abs() < 5 * error).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["logits", "probs"])
def test_law_of_the_binary(form: str, dtype: torch.dtype):
    parameter = torch.tensor([0.002, 0.25, 0.5, 0.9, 0.998], dtype=dtype)
    parameter = torch.logit(parameter.double()).to(dtype) if form == "logits" else parameter
    p = ours.Bernoulli(**{form: parameter})
    x, _ = p.sample_and_log_prob(SAMPLES, key=key())
    assert x.dtype == dtype and set(x.unique().tolist()) == {0.0, 1.0}
    exact = parameter.double().sigmoid() if form == "logits" else parameter.double()
    for column, prob in zip(x.double().T, exact, strict=True):
        assert stats.binomtest(int(column.sum()), SAMPLES, prob.item()).pvalue > RARE


@pytest.mark.parametrize("form", ["logits", "probs"])
def test_law_of_the_classes(form: str):
    weight = torch.tensor([[0.1, 0.0, 0.4, 0.5], [1.0, 2.0, 3.0, 0.0]]).double()
    p = ours.Categorical(**{form: weight.log() if form == "logits" else weight})
    x, _ = p.sample_and_log_prob(SAMPLES, key=key())
    for column, probs in zip(x.T, weight / weight.sum(-1, keepdim=True), strict=True):
        times = column.bincount(minlength=4)
        assert bool((times[probs == 0] == 0).all())
        possible = probs > 0
        found = stats.chisquare(times[possible].numpy(), (SAMPLES * probs[possible]).numpy())
        assert found.pvalue > RARE


def test_certain_outcomes():
    p = ours.Bernoulli(torch.tensor([0.0, 1.0]))
    x, _ = p.sample_and_log_prob(1000, key=key())
    torch.testing.assert_close(x, torch.tensor([0.0, 1.0]).expand(1000, 2))
    p = ours.Bernoulli(logits=torch.tensor([-200.0, 200.0]))
    x, log_p = p.sample_and_log_prob(1000, key=key())
    torch.testing.assert_close(x, torch.tensor([0.0, 1.0]).expand(1000, 2))
    torch.testing.assert_close(log_p, torch.zeros(1000, 2))


def test_features_are_drawn_apart():
    """Neighbours in the batch, in the event and among the samples have nothing to do with another.

    Correlations of n pairs have a standard error of 1/sqrt(n).
    """
    p = ours.Bernoulli(logits=torch.zeros(50, 40, dtype=torch.float64))
    x = 2 * p.sample_and_log_prob(20, key=key())[0] - 1
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[..., 1:], x[..., :-1])):
        assert (a * b).mean().abs() < 5 / math.sqrt(a.numel())


# ---- gradients ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["Normal", "Laplace"])
def test_reparameterised_gradients(name: str):
    """z = loc + scale * unit, and log q through z and through its parameters."""
    loc = torch.randn(3, dtype=torch.float64).requires_grad_()
    scale = (torch.rand(3, dtype=torch.float64) + 0.5).requires_grad_()
    p = getattr(ours, name)(loc, scale)
    z, log_q = p.rsample_and_log_prob(5, key=key())
    unit = ((z - loc) / scale).detach()
    again = loc + scale * unit
    torch.testing.assert_close(z, again)
    exact = getattr(torch.distributions, name)(loc, scale).log_prob(again)
    weight = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    for found, true in ((z, again), (log_q, exact), (z * log_q, again * exact)):
        torch.testing.assert_close(
            *(
                torch.autograd.grad((out * weight).sum(), [loc, scale], retain_graph=True)
                for out in (found, true)
            )
        )


@pytest.mark.parametrize("name", ["Bernoulli", "Categorical"])
def test_nothing_flows_through_what_is_not_reparameterised(name: str):
    logits = torch.randn(3, 4, dtype=torch.float64).requires_grad_()
    p = getattr(ours, name)(logits=logits)
    x, log_p = p.sample_and_log_prob(6, key=key())
    assert not x.requires_grad
    exact = getattr(torch.distributions, name)(logits=logits).log_prob(x)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), logits) for out in (log_p, exact))
    )


def test_a_diagonal_is_one_kernel():
    loc, scale = torch.randn(4, 5), torch.rand(4, 5) + 0.5
    z, log_q, _ = ops.gaussian_rsample(loc, scale=scale, num_samples=6, key=key())
    for p in (ours.DiagNormal(loc, scale), ours.Independent(ours.Normal(loc, scale), 1)):
        found = p.rsample_and_log_prob(6, key=key())
        torch.testing.assert_close(found, (z, log_q), rtol=0, atol=0)


class RecordOps(TorchDispatchMode):
    """The fastvi ops that a computation calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastvi":
            self.names.append(func._schema.name.removeprefix("fastvi::"))
        return func(*args, **(kwargs or {}))


ONE_KERNEL = [
    pytest.param("Normal", ("loc", "scale"), "gaussian_rsample", id="normal"),
    pytest.param("Laplace", ("loc", "scale"), "laplace_rsample", id="laplace"),
    pytest.param("Bernoulli", ("logits",), "bernoulli_sample", id="bernoulli"),
    pytest.param("Categorical", ("logits",), "categorical_sample", id="categorical"),
]


@pytest.mark.parametrize("event_dims", [0, 1, 2])
@pytest.mark.parametrize(("name", "parameters", "op"), ONE_KERNEL)
def test_a_draw_is_one_kernel(name: str, parameters: tuple[str, ...], op: str, event_dims: int):
    """And so is its backward pass, whether the densities are summed over an event or not."""
    given = {parameter: torch.rand(4, 5, 6).requires_grad_() for parameter in parameters}
    p = ours.Independent(getattr(ours, name)(**given), event_dims)
    with RecordOps() as record:
        _, log_p = draw(p, 7)
        log_p.sum().backward()
    assert record.names == [op, f"_{op}_backward"]


@pytest.mark.parametrize("name", ["Normal", "Laplace"])
def test_two_types_are_promoted(name: str):
    """As torch's own draw promotes them."""
    loc, scale = torch.randn(4, 5), torch.rand(4, 5).double() + 0.5
    p = getattr(ours, name)(loc, scale)
    for q in (p, ours.Independent(p, 1)):
        z, log_q = q.rsample_and_log_prob(3, key=key())
        assert z.dtype == log_q.dtype == p.rsample().dtype == torch.float64
        wide = ours.Independent(getattr(ours, name)(loc.double(), scale), 1 - (q is p))
        torch.testing.assert_close((z, log_q), wide.rsample_and_log_prob(3, key=key()))


def test_draws_by_probabilities_do_not_depend_on_what_was_asked_before():
    """bfloat16 log-odds are clamped at 1/128: numbers that lie nearer to 0 would be drawn often."""
    probs = torch.full((1000,), 1e-4).bfloat16()
    fresh, used = ours.Bernoulli(probs), ours.Bernoulli(probs)
    assert used.logits.isfinite().all()
    expected = fresh.sample_and_log_prob(10, key=key())
    for p in (used, used.expand((1000,))):
        torch.testing.assert_close(p.sample_and_log_prob(10, key=key()), expected, rtol=0, atol=0)


def test_log_densities_of_halves_are_float32():
    p = ours.DiagNormal(torch.zeros(3, 784).bfloat16(), torch.ones(3, 784).bfloat16())
    z, log_q = p.rsample_and_log_prob(4, key=key())
    assert z.dtype == torch.bfloat16 and log_q.dtype == torch.float32
    z, log_q = p.base_dist.rsample_and_log_prob(4, key=key())
    assert z.dtype == torch.bfloat16 and log_q.dtype == torch.float32
    for form in ("logits", "probs"):
        q = ours.Categorical(**{form: torch.ones(3, 7).bfloat16()})
        assert q.sample_and_log_prob(4, key=key())[1].dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3)], ids=lambda s: str(list(s)))
@pytest.mark.parametrize("name", ["Normal", "Laplace", "Bernoulli"])
def test_small_batches(name: str, shape: tuple[int, ...]):
    one = torch.full(shape, 0.5)
    p = ours.Bernoulli(one) if name == "Bernoulli" else getattr(ours, name)(one, one)
    x, log_p = draw(p, 3)
    assert x.shape == log_p.shape == (3, *shape)
    torch.testing.assert_close(log_p, p.log_prob(x))


# ---- torch.func and bad input -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["Normal", "Laplace"])
def test_draws_under_torch_func(name: str):
    def total(loc: Tensor, scale: Tensor) -> Tensor:
        p = getattr(ours, name)(loc, scale, validate_args=False)
        z, log_q = p.rsample_and_log_prob(5, key=key())
        return (z * log_q).sum()

    inputs = torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64) + 0.5
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = torch.autograd.grad(total(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(total, (0, 1))(*inputs), exact)
    _, tangent = torch.func.jvp(total, inputs, inputs)
    torch.testing.assert_close(
        tangent, sum((g * x).sum() for g, x in zip(exact, inputs, strict=True))
    )


def test_forward_mode_outside_torch_func_raises():
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        p = ours.Normal(torch.zeros(3), torch.ones(3))
        with pytest.raises(NotImplementedError, match=r"torch\.func"):
            p.rsample_and_log_prob(2, key=key())


@families
def test_bad_numbers_of_samples(family: Family):
    only_drawn(family)
    p = family.ours(**family.draw()[0])
    for q in (p, ours.Independent(p, 1)):
        with pytest.raises(ValueError, match="num_samples to be from 1"):
            draw(q, 0)
        with pytest.raises(TypeError, match="num_samples to be an int"):
            draw(q, 2.0)
        with pytest.raises(ValueError, match="sample_offset to be from 0"):
            draw(q, 2, sample_offset=-1)
        with pytest.raises((ValueError, TypeError), match="key"):
            draw(q, 2, key=torch.zeros(3))


def test_what_is_not_reparameterised_has_no_such_draw():
    for p in (ours.Bernoulli(torch.tensor([0.5])), ours.Categorical(torch.ones(2, 3))):
        assert not hasattr(p, "rsample_and_log_prob")
        with pytest.raises(NotImplementedError, match="rsample_and_log_prob"):
            ours.Independent(p, 1).rsample_and_log_prob(2)


# ---- shapes -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["Normal", "Laplace", "Bernoulli", "Categorical", "Independent"])
def test_a_shape_gives_the_samples_of_its_number_in_that_shape(name: str):
    zeros = torch.zeros(4, 3)
    q = {
        "Normal": lambda: ours.Normal(zeros, 1.0),
        "Laplace": lambda: ours.Laplace(zeros, 1.0),
        "Bernoulli": lambda: ours.Bernoulli(logits=zeros),
        "Categorical": lambda: ours.Categorical(logits=zeros),
        "Independent": lambda: ours.DiagNormal(zeros, torch.ones(4, 3)),
    }[name]()
    draw = q.rsample_and_log_prob if q.has_rsample else q.sample_and_log_prob
    key = ops.new_key()
    x, log_p = draw(6, key=key)
    for shape in ((2, 3), torch.Size((2, 3)), [2, 3]):
        shaped, log_shaped = draw(shape, key=key)
        assert torch.equal(shaped, x.reshape(2, 3, *x.shape[1:]))
        assert torch.equal(log_shaped, log_p.reshape(2, 3, *log_p.shape[1:]))
    one, log_one = draw((), key=key)
    assert torch.equal(one, x[0]) and torch.equal(log_one, log_p[0])
    with pytest.raises(ValueError, match="each size of the shape to be from 1"):
        draw((2, 0), key=key)
    with pytest.raises(TypeError, match="each size of the shape to be an int, got float"):
        draw((2.0,), key=key)
