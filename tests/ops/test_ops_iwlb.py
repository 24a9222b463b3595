"""The bound: its guards, and what is true of it for any log-weights."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from op_table import DEVICES, EMULATED
from torch import Tensor

from fastvi.ops import iwlb

on_devices = pytest.mark.parametrize("device", DEVICES)
in_dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64], ids=["float32", "float64"]
)
along = pytest.mark.parametrize("dim", [0, -1], ids=["samples first", "samples last"])
orders = pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, -1.0], ids=lambda a: f"alpha {a}")
LONG = 257 if EMULATED else 20011


def bound_and_weights(log_w: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = log_w.detach().clone().requires_grad_()
    bound = iwlb(leaf, **options)
    return bound.detach(), torch.autograd.grad(bound.sum(), leaf)[0]


def columns(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def laid(log_w: Tensor, dim: int) -> Tensor:
    """[K, B] as it is, or [B, K]."""
    return log_w if dim == 0 else log_w.T.contiguous()


# ---- guards -------------------------------------------------------------------------------------
@on_devices
@in_dtypes
@along
@orders
@pytest.mark.parametrize("num_samples", [1, 2, 33, LONG])
def test_a_column_of_minus_infinity(num_samples, alpha, dim, dtype, device):
    """Impossible under every sample: -inf, and a zero gradient where torch and JAX give NaN."""
    log_w = columns(num_samples, 5, dtype=dtype, device=device)
    log_w[:, 3] = -torch.inf
    bound, weights = bound_and_weights(laid(log_w, dim), dim=dim, alpha=alpha)
    weights = laid(weights, dim)
    assert bound[3] == -torch.inf
    assert (weights[:, 3] == 0).all()
    others = [0, 1, 2, 4]
    expected, expected_weights = bound_and_weights(log_w[:, others], alpha=alpha)
    torch.testing.assert_close(bound[others], expected)
    torch.testing.assert_close(weights[:, others], expected_weights)


@on_devices
@in_dtypes
@along
@orders
@pytest.mark.parametrize("num_samples", [2, 33, LONG])
def test_one_sample_of_minus_infinity(num_samples, alpha, dim, dtype, device):
    """It weighs nothing; from alpha = 1 on it makes the bound -inf, which no direction improves."""
    log_w = columns(num_samples, 5, dtype=dtype, device=device)
    log_w[num_samples // 2, 3] = -torch.inf
    bound, weights = bound_and_weights(laid(log_w, dim), dim=dim, alpha=alpha)
    weights = laid(weights, dim)
    if alpha >= 1.0:
        assert bound[3] == -torch.inf
        assert (weights[:, 3] == 0).all()
    else:
        assert torch.isfinite(bound[3])
        assert weights[num_samples // 2, 3] == 0
        torch.testing.assert_close(weights[:, 3].sum(), weights.new_tensor(1.0))
    others = [0, 1, 2, 4]
    expected, expected_weights = bound_and_weights(log_w[:, others], alpha=alpha)
    torch.testing.assert_close(bound[others], expected)
    torch.testing.assert_close(weights[:, others], expected_weights)


@pytest.mark.native
@orders
@pytest.mark.parametrize("place", [slice(None), 1], ids=["all", "one"])
def test_minus_infinity_under_transforms(place: slice | int, alpha: float):
    """What the kernel says, from grad, from vmap of grad, and from the reference itself."""
    log_w = columns(5, 3, dtype=torch.float64)
    log_w[place, 1] = -torch.inf
    bound, weights = bound_and_weights(log_w, alpha=alpha)

    def total(x: Tensor) -> Tensor:
        return iwlb(x, alpha=alpha).sum()

    torch.testing.assert_close(torch.func.grad(total)(log_w), weights)
    by_datum = torch.func.vmap(torch.func.grad(total), in_dims=1, out_dims=1)(log_w)
    torch.testing.assert_close(by_datum, weights)
    leaf = log_w.clone().requires_grad_()
    expected = iwlb.reference(leaf, alpha=alpha)
    torch.testing.assert_close(bound, expected.detach())
    torch.testing.assert_close(torch.autograd.grad(expected.sum(), leaf)[0], weights)


@on_devices
def test_a_column_of_minus_infinity_from_terms(device: str):
    terms = [columns(9, 3, device=device).requires_grad_() for _ in range(3)]
    with torch.no_grad():
        terms[0][:, 1] = -torch.inf
    bound = iwlb(*terms)
    gradients = torch.autograd.grad(bound.sum(), terms)
    assert torch.isinf(bound).tolist() == [False, True, False]
    for gradient in gradients:
        assert (gradient[:, 1] == 0).all()
        assert (gradient[:, 0] != 0).all()


@on_devices
@in_dtypes
@along
@pytest.mark.parametrize("place", [0, 16, LONG - 1])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0], ids=["alpha 0", "alpha 0.5", "alpha 1"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_what_is_not_a_number_shows(value, alpha, place, dim, dtype, device):
    log_w = columns(LONG, 3, dtype=dtype, device=device)
    log_w[place, 1] = float(value)
    bound, weights = bound_and_weights(laid(log_w, dim), dim=dim, alpha=alpha)
    torch.testing.assert_close(
        bound[1], torch.tensor(float(value), dtype=dtype, device=device), equal_nan=True
    )
    assert torch.isfinite(bound[[0, 2]]).all()
    weights = laid(weights, dim)
    assert torch.isfinite(weights[:, [0, 2]]).all()
    if alpha != 1.0:
        assert torch.isnan(weights[:, 1]).any()


@on_devices
@in_dtypes
@along
def test_one_weight_dominates(dim: int, dtype: torch.dtype, device: str):
    log_w = columns(LONG, 2, dtype=dtype, device=device) - 1000.0
    log_w[7] = -3.0
    bound, weights = bound_and_weights(laid(log_w, dim), dim=dim)
    exact = torch.full((2,), -3.0 - math.log(LONG), dtype=dtype, device=device)
    torch.testing.assert_close(bound, exact)
    expected = torch.zeros_like(log_w)
    expected[7] = 1.0
    torch.testing.assert_close(laid(weights, dim), expected, rtol=0, atol=0)


@on_devices
@in_dtypes
@pytest.mark.parametrize("c", [4096.0, -65536.0, -100000.0])
def test_adding_a_constant_adds_it(c: float, dtype: torch.dtype, device: str):
    """The sums are exact, so that the weights are the same bits and the bound rounds once."""
    log_w = torch.round(columns(101, 7, dtype=dtype, device=device) * 64) / 64
    assert torch.equal((log_w + c) - c, log_w)
    bound, weights = bound_and_weights(log_w)
    moved, moved_weights = bound_and_weights(log_w + c)
    assert torch.equal(weights, moved_weights)
    # Half a unit in the last place of each of the two results.
    ulp = torch.finfo(dtype).eps * (abs(c) + 8.0)
    assert ((moved.double() - c) - bound.double()).abs().max() <= ulp


@on_devices
@in_dtypes
@pytest.mark.parametrize("value", [-1e5, -3.3, 0.0, 1e4])
def test_equal_weights_give_their_value(value: float, dtype: torch.dtype, device: str):
    log_w = torch.full((127, 5), value, dtype=dtype, device=device)
    bound, weights = bound_and_weights(log_w)
    assert torch.equal(bound, log_w[0])
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 127))


@on_devices
def test_infinitely_many_infinities(device: str):
    """Nothing but +inf: the bound is +inf, no sign of NaN in it."""
    bound, _ = bound_and_weights(torch.full((5, 2), torch.inf, device=device))
    assert (bound == torch.inf).all()


# ---- laws ---------------------------------------------------------------------------------------
@on_devices
@in_dtypes
@along
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0], ids=lambda a: f"alpha {a}")
def test_one_sample_is_the_elbo(alpha: float, dim: int, dtype: torch.dtype, device: str):
    log_w = columns(1, 37, dtype=dtype, device=device)
    bound, weights = bound_and_weights(laid(log_w, dim), dim=dim, alpha=alpha)
    torch.testing.assert_close(bound, log_w[0], rtol=0, atol=0)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0, atol=0)


@on_devices
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 0.999, 1.0, 1.001, 2.0], ids=lambda a: f"{a}")
def test_the_weights_sum_to_one(alpha: float, device: str):
    _, weights = bound_and_weights(
        columns(301, 11, dtype=torch.float64, device=device), alpha=alpha
    )
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))


@on_devices
def test_the_bound_falls_with_alpha_from_the_largest_weight(device: str):
    log_w = columns(301, 11, dtype=torch.float64, device=device)
    alphas = [-50.0, -1.0, 0.0, 0.5, 0.999, 1.0, 1.001, 2.0, 50.0]
    bounds = [log_w.amax(0), *(iwlb(log_w, alpha=alpha) for alpha in alphas), log_w.amin(0)]
    for larger, smaller in zip(bounds, bounds[1:], strict=False):
        assert (larger > smaller).all()


def test_alpha_one_is_the_mean():
    log_w = columns(301, 11, dtype=torch.float64)
    torch.testing.assert_close(iwlb(log_w, alpha=1.0), log_w.mean(0))
    for near in (1 - 1e-6, 1 + 1e-6):
        torch.testing.assert_close(iwlb(log_w, alpha=near), log_w.mean(0), rtol=0, atol=1e-5)


@on_devices
@in_dtypes
@along
@pytest.mark.parametrize("c", [0.1, 1e-2, 1e-4, 1e-6, 1e-8, 1e-12, -1e-4, -1e-8])
@pytest.mark.parametrize("spread", [3.0, 300.0])
def test_near_alpha_one(spread: float, c: float, dim: int, dtype: torch.dtype, device: str):
    """The bound keeps its digits where all powers are close to 1, and where some are not."""
    log_w = spread * columns(50, 7, dtype=dtype, device=device)
    # (1 - alpha) is not c, and matters: the formula takes it as it is.
    alpha = 1.0 - c
    exact = [Decimal(0)] * 7
    with localcontext(prec=60):
        order = Decimal(1) - Decimal(alpha)
        for b, column in enumerate(log_w.T.tolist()):
            mean = sum((order * Decimal(x)).exp() for x in column) / len(column)
            exact[b] = mean.ln() / order
    expected = torch.tensor([float(x) for x in exact], dtype=torch.float64, device=device)
    ulp = torch.finfo(dtype).eps * spread
    for bound in (iwlb(laid(log_w, dim), dim, alpha), iwlb.reference(laid(log_w, dim), dim, alpha)):
        assert (bound.double() - expected).abs().max() <= 64 * ulp
    terms = (2.0 * log_w, log_w, 2.0 * log_w)
    bound = iwlb(*(laid(x, dim) for x in terms), dim=dim, alpha=alpha)
    assert (bound.double() - expected).abs().max() <= 64 * ulp


@on_devices
def test_order_of_samples(device: str):
    log_w = columns(LONG, 3, dtype=torch.float64, device=device)
    order = torch.randperm(LONG, device=device)
    bound, weights = bound_and_weights(log_w)
    shuffled, shuffled_weights = bound_and_weights(log_w[order])
    torch.testing.assert_close(shuffled, bound)
    torch.testing.assert_close(shuffled_weights, weights[order])


@pytest.mark.native
@pytest.mark.parametrize("batch", [1, 2, 255, 256, 257])
@pytest.mark.parametrize("edge", [-1, 0, 1])
def test_around_the_cuts_of_the_reduction(edge: int, batch: int):
    """K just below, at and above the sizes at which the columns are cut."""
    for cut in (32, 8192 // min(batch, 256), 2 * 8192 // min(batch, 256)):
        log_w = columns(cut + edge, batch, dtype=torch.float64)
        torch.testing.assert_close(iwlb(log_w), torch.logsumexp(log_w, 0) - math.log(cut + edge))
        last = iwlb(log_w.T.contiguous(), dim=1)
        torch.testing.assert_close(last, torch.logsumexp(log_w, 0) - math.log(cut + edge))


@pytest.mark.native
def test_a_million_samples_in_float32():
    """Every weight counts: a running float32 sum would lose the small ones."""
    log_w = columns(1_000_000, 2)
    exact = torch.logsumexp(log_w.double(), 0) - math.log(1_000_000)
    torch.testing.assert_close(iwlb(log_w).double(), exact, rtol=0, atol=5e-7)


# ---- the two forms and the arguments ------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0], ids=lambda a: f"alpha {a}")
def test_every_dimension(alpha: float, dim: int, device: str):
    log_w = columns(4, 5, 6, dtype=torch.float64, device=device)
    bound, weights = bound_and_weights(log_w, dim=dim, alpha=alpha)
    moved, moved_weights = bound_and_weights(log_w.movedim(dim, 0).contiguous(), alpha=alpha)
    assert bound.shape == log_w.movedim(dim, 0).shape[1:]
    torch.testing.assert_close(bound, moved)
    torch.testing.assert_close(weights.movedim(dim, 0), moved_weights)


@on_devices
@along
@pytest.mark.parametrize("alpha", [0.0, 1.0], ids=lambda a: f"alpha {a}")
def test_three_terms(alpha: float, dim: int, device: str):
    terms = [
        laid(columns(33, 17, dtype=torch.float64, device=device), dim).requires_grad_()
        for _ in range(3)
    ]
    log_px, log_pz, log_qz = terms
    bound = iwlb(*terms, dim=dim, alpha=alpha)
    expected, weights = bound_and_weights(log_px + log_pz - log_qz, dim=dim, alpha=alpha)
    torch.testing.assert_close(bound, expected)
    gradients = torch.autograd.grad(bound.sum(), terms)
    for gradient, sign in zip(gradients, (1.0, 1.0, -1.0), strict=True):
        torch.testing.assert_close(gradient, sign * weights)


FORMS = pytest.mark.parametrize("of", [iwlb, iwlb.reference], ids=["op", "reference"])


@FORMS
def test_arguments_by_position_and_by_name(of):
    log_w = columns(4, 5)
    expected = iwlb(log_w, dim=1, alpha=0.5)
    for bound in (
        of(log_w, 1, 0.5),
        of(log_w, 1, alpha=0.5),
        of(log_w=log_w, dim=1, alpha=0.5),
        of(log_w, alpha=0.5, dim=-1),
        of(log_w, np.int64(1), np.float64(0.5)),
    ):
        torch.testing.assert_close(bound, expected)
    torch.testing.assert_close(of(log_w, 1), iwlb(log_w, dim=1))
    torch.testing.assert_close(of(log_w=log_w), iwlb(log_w))


@FORMS
def test_terms_by_position_and_by_name(of):
    x, z, q = (columns(4, 5) for _ in range(3))
    expected = iwlb(x + z - q, dim=1, alpha=0.5)
    for bound in (
        of(x, z, q, dim=1, alpha=0.5),
        of(x, z, log_qz=q, dim=1, alpha=0.5),
        of(x, log_qz=q, log_pz=z, dim=1, alpha=0.5),
        of(log_px=x, log_pz=z, log_qz=q, dim=1, alpha=0.5),
    ):
        torch.testing.assert_close(bound, expected)
    with pytest.raises(TypeError, match="iwlb: expected .*got 4 by position"):
        of(x, z, q, 1)


def test_the_result_is_float32_for_low_precision():
    for dtype in (torch.float16, torch.bfloat16):
        bound, weights = bound_and_weights(columns(9, 3, dtype=dtype))
        assert (bound.dtype, weights.dtype) == (torch.float32, dtype)


def test_the_backward_keeps_one_number_per_datum():
    """Saved: the log-weights and two numbers for each datum, not the normalised weights."""
    saved = []
    log_w = columns(101, 7).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        iwlb(log_w)
    assert log_w.data_ptr() in {x.data_ptr() for x in saved}
    assert sum(x.numel() for x in saved) == log_w.numel() + 2 * 7


def test_the_twin_keeps_a_small_weight():
    log_w = torch.tensor([0.0, -16.0], dtype=torch.float64)
    weights = torch.softmax(0.5 * log_w, 0)
    found = torch.func.grad(lambda x: iwlb(x, alpha=0.5))(log_w)
    torch.testing.assert_close(found, weights, rtol=8 * 2.0**-52, atol=0)
