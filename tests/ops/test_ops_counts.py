"""The densities of counts, of classes and of Laplace: against torch.distributions, and where torch
itself is not exact, against the mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from op_table import DEVICES
from torch import Tensor, distributions
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvi import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)


def draw(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + 1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype, device=ours.device)
    gradients = [
        torch.autograd.grad((out * weight.reshape(out.shape)).sum(), inputs, retain_graph=True)
        for out in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients)


# ---- torch.distributions ------------------------------------------------------------------------
@on_devices
def test_laplace(device: str):
    value, loc, log_scale = (draw(*s, device=device) for s in ((4, 5), (3, 4, 5), (5,)))
    inputs = [x.requires_grad_() for x in (value, loc, log_scale)]
    theirs = distributions.Laplace(loc, log_scale.exp()).log_prob(value).sum(-1)
    compare(ops.laplace_log_prob(value, loc, log_scale=log_scale), theirs, inputs)
    compare(ops.laplace_log_prob(value, loc, scale=log_scale.exp()), theirs, inputs)


@on_devices
def test_poisson(device: str):
    value = (3 * draw(4, 5, device=device).abs()).floor()
    log_rate = draw(3, 4, 5, device=device).requires_grad_()
    theirs = distributions.Poisson(log_rate.exp()).log_prob(value).sum(-1)
    compare(ops.poisson_log_prob(value, log_rate=log_rate), theirs, [log_rate])
    compare(ops.poisson_log_prob(value, log_rate.exp()), theirs, [log_rate])


@on_devices
def test_negative_binomial(device: str):
    """torch's total_count is the inverse dispersion, and its odds are mean over dispersion."""
    value = (3 * draw(4, 5, device=device).abs()).floor()
    log_mean = draw(3, 4, 5, device=device).requires_grad_()
    log_dispersion = draw(5, device=device).requires_grad_()
    theirs = distributions.NegativeBinomial(
        log_dispersion.exp(), logits=log_mean - log_dispersion
    ).log_prob(value)
    inputs = [log_mean, log_dispersion]
    for given in ({"log_dispersion": log_dispersion}, {"dispersion": log_dispersion.exp()}):
        ours = ops.negative_binomial_log_prob(value, log_mean.exp(), **given)
        compare(ours, theirs.sum(-1), inputs)


@on_devices
def test_categorical(device: str):
    logits = draw(3, 4, 5, device=device).requires_grad_()
    value = torch.tensor([0, 4, 2, 1], device=device)
    compare(
        ops.categorical_log_prob(value, logits),
        distributions.Categorical(logits=logits).log_prob(value),
        [logits],
    )


# ---- the zero-inflated density ------------------------------------------------------------------
@on_devices
def test_zero_inflated_is_the_mixture(device: str):
    value = (3 * draw(40, device=device).abs()).floor()
    assert (value == 0).any()
    mean, theta = draw(40, device=device).exp(), draw(40, device=device).mul(0.5).exp()
    gate = draw(40, device=device) - 1.0
    inputs = [x.detach().requires_grad_() for x in (mean, theta, gate)]
    density = ops.negative_binomial_log_prob(value, *inputs[:2], event_dims=0).exp()
    pi = inputs[2].sigmoid()
    theirs = (pi * (value == 0) + (1 - pi) * density).log()
    ours = ops.zero_inflated_negative_binomial_log_prob(value, *inputs, event_dims=0)
    compare(ours, theirs, inputs)


def test_a_gate_that_is_shut_leaves_the_negative_binomial():
    value, mean, theta = torch.arange(5.0), torch.full((5,), 2.5), torch.full((5,), 0.7)
    ours = ops.zero_inflated_negative_binomial_log_prob(
        value, mean, theta, torch.full((5,), -math.inf), event_dims=0
    )
    theirs = ops.negative_binomial_log_prob(value, mean, theta, event_dims=0)
    torch.testing.assert_close(ours, theirs)


# ---- mathematics --------------------------------------------------------------------------------
COUNTS: dict[str, Callable[[Tensor], Tensor]] = {
    "poisson": lambda x: ops.poisson_log_prob(x, torch.full_like(x, 3.5), event_dims=0),
    "negative_binomial": lambda x: ops.negative_binomial_log_prob(
        x, torch.full_like(x, 3.5), torch.full_like(x, 0.8), event_dims=0
    ),
    "zero_inflated": lambda x: ops.zero_inflated_negative_binomial_log_prob(
        x, torch.full_like(x, 3.5), torch.full_like(x, 0.8), torch.full_like(x, -0.4), event_dims=0
    ),
}


@pytest.mark.parametrize("density", COUNTS.values(), ids=COUNTS.keys())
def test_probabilities_of_all_counts_sum_to_one(density: Callable[[Tensor], Tensor]):
    total = density(torch.arange(2000, dtype=torch.float64)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@DTYPES
@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_log_gamma_over_its_range(name: str, dtype: torch.dtype):
    """Through the Poisson density of rate 1, whose only other term is -1."""
    value = torch.cat(
        [
            torch.logspace(-6, 6, 20_001, dtype=torch.float64),
            torch.linspace(0, 8, 20_001, dtype=torch.float64),
        ]
    ).to(dtype)
    value.requires_grad_()
    zero = torch.zeros_like(value)
    log_prob = ops.poisson_log_prob(value, log_rate=zero, event_dims=0)
    exact = value.detach().double() + 1
    if name == "lgamma":
        ours, true = -1 - log_prob, torch.lgamma(exact)
    else:
        ours, true = -torch.autograd.grad(log_prob.sum(), value)[0], torch.digamma(exact)
    # Of the larger of the number and the terms it is made of, which are about 1.
    error = (ours.detach().double() - true).abs() / (1 + true.abs())
    assert error.max() < 6 * torch.finfo(dtype).eps


@DTYPES
def test_a_count_that_is_certain_has_density_one(dtype: torch.dtype):
    """Exactly: log Gamma is zero at 1, and nothing is added that has to cancel."""
    zero, one = torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)
    assert ops.poisson_log_prob(zero, zero).item() == 0
    assert ops.poisson_log_prob(zero, log_rate=-torch.inf * one).item() == 0
    assert ops.poisson_log_prob(zero, 1e-30 * one).item() == -torch.tensor(1e-30, dtype=dtype)
    assert ops.negative_binomial_log_prob(zero, zero, one).item() == 0
    tiny = torch.tensor([1e-20], dtype=dtype, requires_grad=True)
    log_prob = ops.negative_binomial_log_prob(zero, tiny, one)
    torch.testing.assert_close(log_prob.item(), -1e-20, rtol=1e-6, atol=0)
    for density in (ops.poisson_log_prob, lambda x, m: ops.negative_binomial_log_prob(x, m, one)):
        mean = torch.zeros(1, dtype=dtype, requires_grad=True)
        assert torch.autograd.grad(density(zero, mean).sum(), mean)[0].item() == -1


@pytest.mark.parametrize("log", [False, True], ids=["dispersion", "log_dispersion"])
def test_a_large_dispersion_is_a_poisson_density(log: bool):
    """In float32, where the difference of the two log-gammas would be off by 27 nats."""
    value = torch.arange(20.0)
    mean = torch.full_like(value, 4.0).requires_grad_()
    theta = torch.full_like(value, 1e7)
    given = {"log_dispersion": theta.log()} if log else {"dispersion": theta}
    ours = ops.negative_binomial_log_prob(value, mean, **given, event_dims=0)
    # The first term of the expansion in 1 / theta is ((x - m)^2 - x) / 2 theta: 1e-5 here.
    theirs = ops.poisson_log_prob(value.double(), mean.detach().double(), event_dims=0)
    torch.testing.assert_close(ours.double(), theirs, rtol=3e-6, atol=2e-5)
    (gradient,) = torch.autograd.grad(ours.sum(), mean)
    torch.testing.assert_close(gradient, value / 4.0 - 1.0, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_large_dispersion():
    """d/dtheta is (x - (x - m)^2) / 2 theta^2 there, which is less than torch's rounding."""
    value, mean = torch.arange(1, 21.0), torch.full((20,), 4.0)
    theta = torch.full((20,), 1e4, requires_grad=True)
    log_prob = ops.negative_binomial_log_prob(value, mean, theta, event_dims=0)
    (gradient,) = torch.autograd.grad(log_prob.sum(), theta)
    expected = (value - (value - mean) ** 2) / 2e8
    torch.testing.assert_close(gradient, expected, rtol=3e-3, atol=5e-10)


@on_devices
def test_the_peak_of_laplace_has_no_slope(device: str):
    x = torch.ones(3, device=device, requires_grad=True)
    loc = torch.ones(3, device=device, requires_grad=True)
    log_prob = ops.laplace_log_prob(x, loc, scale=torch.ones(3, device=device))
    for gradient in torch.autograd.grad(log_prob, (x, loc)):
        assert (gradient == 0).all()


# ---- what is out of range -----------------------------------------------------------------------
@on_devices
def test_no_class_is_nan_and_never_a_read_out_of_range(device: str):
    logits = draw(4, 5, device=device).requires_grad_()
    value = torch.tensor([0, 5, -1, 2**40], device=device)
    log_prob = ops.categorical_log_prob(value, logits)
    assert log_prob.isnan().tolist() == [False, True, True, True]
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    assert gradient.isnan().any(-1).tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match=r"value to lie in \[0, 4\], got values from -1 to"):
        ops.categorical_log_prob(value, logits, validate_args=True)


@on_devices
def test_a_class_that_cannot_be(device: str):
    logits = torch.tensor([[0.0, -math.inf, 0.0]], device=device, requires_grad=True)
    value = torch.tensor([0, 1], device=device)
    log_prob = ops.categorical_log_prob(value, logits)
    assert log_prob.tolist() == pytest.approx([-math.log(2), -math.inf])
    (gradient,) = torch.autograd.grad(log_prob[0], logits)
    assert gradient[0].tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize("density", COUNTS.values(), ids=COUNTS.keys())
def test_a_negative_count_shows(density: Callable[[Tensor], Tensor]):
    assert density(torch.tensor([-2.5, -7.0])).isnan().all()


@pytest.mark.parametrize(
    "name", ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]
)
def test_a_negative_count_is_refused(name: str):
    one = torch.ones(3)
    call = getattr(ops, f"{name}_log_prob")
    others = {"poisson": 1, "negative_binomial": 2, "zero_inflated_negative_binomial": 3}[name]
    with pytest.raises(ValueError, match=rf"{name}_log_prob: expected value to be at least 0, got"):
        call(-one, *[one] * others, validate_args=True)
    for place in range(min(others, 2)):
        wrong = [one] * others
        wrong[place] = 0 * one
        with pytest.raises(ValueError, match="to be positive, got a smallest value of 0.0"):
            call(one, *wrong, validate_args=True)


x, short, classes = torch.ones(3), torch.ones(2), torch.zeros(3, dtype=torch.int64)
x_double = x.double()
BAD = {
    "no scale": (lambda t: ops.laplace_log_prob(t(x), t(x)), ValueError, "got neither"),
    "two rates": (
        lambda t: ops.poisson_log_prob(t(x), t(x), log_rate=t(x)),
        ValueError,
        "exactly one of rate and log_rate, got both",
    ),
    "shapes": (
        lambda t: ops.negative_binomial_log_prob(t(x), t(short), t(x)),
        ValueError,
        "expected mean to broadcast",
    ),
    "integer counts": (
        lambda t: ops.poisson_log_prob(t(classes), t(x)),
        TypeError,
        "expected value to be a float32",
    ),
    "dtypes": (
        lambda t: ops.negative_binomial_log_prob(t(x), t(x), log_dispersion=t(x_double)),
        TypeError,
        "expected log_dispersion to have the dtype of mean",
    ),
    "no gate": (
        lambda t: ops.zero_inflated_negative_binomial_log_prob(t(x), t(x), t(x)),
        TypeError,
        "expected gate_logits to be a tensor, got NoneType",
    ),
    "classes that are no integers": (
        lambda t: ops.categorical_log_prob(t(x), t(x)),
        TypeError,
        "expected value to be an integer tensor",
    ),
    "batches": (
        lambda t: ops.categorical_log_prob(t(classes), t(torch.ones(2, 5))),
        ValueError,
        r"expected value to broadcast with logits without its classes, shape \[2\]",
    ),
    "no classes": (
        lambda t: ops.categorical_log_prob(t(classes), t(torch.ones(3, 0))),
        ValueError,
        "expected logits to have at least one class",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), BAD.values(), ids=BAD.keys())
def test_refused_in_the_same_words_when_fake(call: Callable, error: type[Exception], says: str):
    with pytest.raises(error, match=says) as real:
        call(lambda tensor: tensor)
    with FakeTensorMode() as mode, pytest.raises(error) as fake:
        call(mode.from_tensor)
    assert str(fake.value).splitlines()[0] == str(real.value).splitlines()[0]
