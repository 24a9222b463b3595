"""The log-densities against torch.distributions, their events, and low precision."""

from __future__ import annotations

import math

import pytest
import torch
from op_table import DEVICES
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn.functional import binary_cross_entropy_with_logits

from fastvi.ops import bernoulli_log_prob, gaussian_log_prob

on_devices = pytest.mark.parametrize("device", DEVICES)
in_event_dims = pytest.mark.parametrize("event_dims", [0, 1, 2, 3])


def draw(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_()


def independent(base, event_dims: int):
    return Independent(base, event_dims) if event_dims else base


def compare(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(theirs)
    runs = [torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, theirs)]
    torch.testing.assert_close(*runs)


# ---- against torch.distributions ----------------------------------------------------------------
@on_devices
@in_event_dims
def test_bernoulli(event_dims: int, device: str):
    logits = draw(3, 4, 5, device=device)
    value = (draw(4, 5, device=device) > 0).double()
    base = Bernoulli(logits=logits, validate_args=False)
    theirs = independent(base, event_dims).log_prob(value)
    compare(bernoulli_log_prob(value, logits, event_dims=event_dims), theirs, [logits])


@on_devices
@in_event_dims
@pytest.mark.parametrize("kind", ["scale", "log_scale", "log_var"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (5,), (4, 1), ()], ids=str)
def test_gaussian(shape: tuple[int, ...], kind: str, event_dims: int, device: str):
    """With a scale per sample, per feature, per datum, and a single one: gradients are summed."""
    value, loc = draw(4, 5, device=device), draw(3, 4, 5, device=device)
    spread = draw(*shape, device=device)
    given = spread.exp() if kind == "scale" else spread
    sigma = (0.5 * spread).exp() if kind == "log_var" else spread.exp()
    theirs = independent(Normal(loc, sigma), event_dims).log_prob(value)
    ours = gaussian_log_prob(value, loc, **{kind: given}, event_dims=event_dims)
    compare(ours, theirs, [value, loc, spread])


@on_devices
@pytest.mark.parametrize(
    "shapes",
    [
        ((5,), (3, 4, 5)),
        ((), (3, 4, 5)),
        ((3, 1, 5), (1, 4, 5)),
        ((3, 4, 5), (5,)),
        ((4, 1), (3, 1, 5)),
    ],
    ids=str,
)
def test_broadcast_is_that_of_copies(shapes: tuple[tuple[int, ...], ...], device: str):
    """Either side may be the smaller, and the result is that of expanded copies."""
    value, other = draw(*shapes[0], device=device), draw(*shapes[1], device=device)
    full = torch.broadcast_shapes(*shapes)
    wide_value, wide_other = (x.expand(full).contiguous() for x in (value, other))
    unit, wide_unit = value.sigmoid(), wide_value.sigmoid()
    compare(
        bernoulli_log_prob(unit, other), bernoulli_log_prob(wide_unit, wide_other), [value, other]
    )
    one = torch.ones((), dtype=torch.float64, device=device)
    compare(
        gaussian_log_prob(value, other, scale=one),
        gaussian_log_prob(wide_value, wide_other, scale=one),
        [value, other],
    )


def test_a_parameter_alone_has_the_whole_shape():
    """The scale may be what carries the samples."""
    value, loc, log_var = draw(5), draw(4, 5), draw(3, 4, 5)
    ours = gaussian_log_prob(value, loc, log_var=log_var)
    theirs = Independent(Normal(loc, (0.5 * log_var).exp()), 1).log_prob(value)
    compare(ours, theirs, [value, loc, log_var])


# ---- Bernoulli ----------------------------------------------------------------------------------
@on_devices
def test_bernoulli_of_grey_values_is_the_cross_entropy(device: str):
    value, logits = draw(4, 5, device=device).sigmoid().detach(), draw(4, 5, device=device)
    theirs = -binary_cross_entropy_with_logits(logits, value, reduction="none")
    compare(bernoulli_log_prob(value, logits, event_dims=0), theirs, [logits])


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_bernoulli_far_out(dtype: torch.dtype, device: str):
    """No overflow, and a likely outcome keeps its tiny log-probability."""
    logits = torch.tensor([-1e4, -200.0, -60.0, 60.0, 200.0, 1e4], dtype=dtype, device=device)
    logits.requires_grad_()
    unlikely = (logits.detach() < 0).to(dtype)
    log_prob = bernoulli_log_prob(unlikely, logits, event_dims=0)
    torch.testing.assert_close(log_prob, -logits.detach().abs(), rtol=1e-7, atol=0)
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    torch.testing.assert_close(gradient, -logits.detach().sign())
    likely = bernoulli_log_prob(1 - unlikely, logits, event_dims=0)
    assert (likely <= 0).all()
    expected = -math.exp(-60.0)
    torch.testing.assert_close(likely[2:4].double().cpu(), torch.full((2,), expected).double())


@on_devices
def test_both_outcomes_share_one(device: str):
    logits = (10 * draw(1000, device=device)).detach()
    outcomes = [
        bernoulli_log_prob(torch.full_like(logits, x), logits, event_dims=0) for x in (0, 1)
    ]
    torch.testing.assert_close(
        torch.logaddexp(*outcomes), torch.zeros_like(logits), rtol=0, atol=1e-12
    )


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("value_dtype", ["same", "float32"])
def test_a_picture_in_low_precision(value_dtype: str, dtype: torch.dtype, device: str):
    """Summed in bfloat16 it would be wrong by 2 nats; a float32 value is not rounded to it."""
    logits = draw(3, 2, 784, device=device).detach().to(dtype).requires_grad_()
    value = draw(2, 784, device=device).sigmoid().detach()
    value = value.to(dtype if value_dtype == "same" else torch.float32)
    ours = bernoulli_log_prob(value, logits)
    wide = logits.detach().double().requires_grad_()
    exact = bernoulli_log_prob(value.double(), wide)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-3)
    (gradient,) = torch.autograd.grad(ours.sum(), logits)
    assert gradient.dtype == dtype
    (exact_gradient,) = torch.autograd.grad(exact.sum(), wide)
    torch.testing.assert_close(gradient, exact_gradient.to(dtype))


# ---- Gaussian -----------------------------------------------------------------------------------
@on_devices
def test_gaussian_is_a_density(device: str):
    """It integrates to one."""
    x = torch.linspace(-40, 40, 100_001, dtype=torch.float64, device=device)
    loc = torch.tensor(1.5, dtype=torch.float64, device=device)
    for log_var in (-2.0, 0.0, 3.0):
        spread = torch.tensor(log_var, dtype=torch.float64, device=device)
        density = gaussian_log_prob(x, loc, log_var=spread, event_dims=0).exp()
        torch.testing.assert_close(torch.trapezoid(density, x), torch.ones_like(loc))


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_gaussian_with_a_float32_value(dtype: torch.dtype, device: str):
    value = draw(7, device=device).float().detach()
    loc = draw(3, 7, device=device).detach().to(dtype)
    scale = torch.ones((), dtype=dtype, device=device)
    ours = gaussian_log_prob(value, loc, scale=scale)
    exact = gaussian_log_prob(value.double(), loc.double(), scale=scale.double())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=1e-5)


# ---- memory -------------------------------------------------------------------------------------
def test_only_the_inputs_are_saved():
    value, loc, scale = draw(4, 5), draw(30, 4, 5), draw(5).exp().detach().requires_grad_()
    for call, inputs in (
        (lambda: bernoulli_log_prob(value.detach(), loc), (value, loc)),
        (lambda: gaussian_log_prob(value, loc, scale=scale), (value, loc, scale)),
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, s=saved: s.append(x) or x, lambda x: x
        ):
            call()
        assert {x.data_ptr() for x in saved} <= {x.data_ptr() for x in inputs}
        assert sum(x.numel() for x in saved) <= sum(x.numel() for x in inputs)


@on_devices
@pytest.mark.parametrize("prepared", [False, True], ids=["a width each", "one width"])
@pytest.mark.parametrize("kind", ["scale", "log_scale", "log_var"])
def test_a_width_whose_inverse_overflows(kind: str, prepared: bool, device: str):
    """1 / sigma is infinite in float32; at the mean that is no reason for NaN."""
    log_sigma = torch.full((() if prepared else (3, 4)), -90.0, dtype=torch.float64)
    spread = {"scale": log_sigma.exp(), "log_scale": log_sigma, "log_var": 2 * log_sigma}[kind]
    spread = spread.float().to(device).requires_grad_()
    loc = torch.full((3, 4), 0.3, device=device, requires_grad=True)
    ours = gaussian_log_prob(loc.detach(), loc, **{kind: spread})
    expected = torch.full((3,), 4 * (90.0 - 0.5 * math.log(2 * math.pi)), device=device)
    torch.testing.assert_close(ours, expected)
    gradient, by_spread = torch.autograd.grad(ours.sum(), [loc, spread])
    assert (gradient == 0).all()
    assert (by_spread < 0).all()


def test_the_bernoulli_twin_has_the_logit_as_its_slope():
    value = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    logits = torch.tensor([1e-18, -2e-9, 700.0, -3e5], dtype=torch.float64)
    slope = torch.func.grad(lambda x: bernoulli_log_prob(x, logits).sum())(value)
    torch.testing.assert_close(slope, logits, rtol=2.0**-52, atol=0)
