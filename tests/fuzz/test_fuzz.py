"""The whole public API on what hypothesis draws: the same each time here, or hours of new examples.

``FASTVI_FUZZ_SECONDS=3600 pytest tests/fuzz/test_fuzz.py`` draws for an hour; a failure prints the
case and the blob that brings it back. The last tests plant faults, which the examples of CI must
find.
"""

from __future__ import annotations

import fuzz_running
import pytest
import torch
from fuzz_densities import check_density, density_calls
from fuzz_distributions import check_distribution, evaluations
from fuzz_draws import check_draw, draw_calls
from fuzz_faces import check_loss, settings
from fuzz_files import check_file, damages
from fuzz_linear import check_classes, check_linear, class_calls, linear_calls
from fuzz_models import check_deep, check_fit, deep_settings, fits
from fuzz_running import finds, fuzz
from fuzz_weights import check_diagnostics, check_weights, weight_calls

from fastvi import ops

pytestmark = [pytest.mark.native, pytest.mark.slow]
_NEGATIVE_BINOMIALS = ("negative_binomial_log_prob", "zero_inflated_negative_binomial_log_prob")


def _densities(*names: str):
    return density_calls(names)


test_normal = fuzz(160, case=_densities("gaussian_log_prob"))(check_density)
test_laplace = fuzz(120, case=_densities("laplace_log_prob"))(check_density)
test_bernoulli = fuzz(100, case=_densities("bernoulli_log_prob"))(check_density)
test_poisson = fuzz(120, case=_densities("poisson_log_prob"))(check_density)
test_negative_binomials = fuzz(160, case=_densities(*_NEGATIVE_BINOMIALS))(check_density)
test_divergence = fuzz(120, case=_densities("gaussian_kl"))(check_density)
test_classes = fuzz(150, case=class_calls())(check_classes)
test_linear_decoders = fuzz(150, case=linear_calls())(check_linear)
test_draws = fuzz(150, case=draw_calls())(check_draw)
test_bounds_of_weights = fuzz(250, case=weight_calls())(check_weights)
test_diagnostics = fuzz(100, case=weight_calls())(check_diagnostics)
test_distributions = fuzz(200, case=evaluations)(check_distribution)
test_losses = fuzz(120, case=settings)(check_loss)
test_deep_models = fuzz(80, case=deep_settings)(check_deep)
test_fits = fuzz(80, case=fits)(check_fit)
test_damaged_files = fuzz(150, case=damages)(check_file)


# ---- the fuzz can fail --------------------------------------------------------------------------
class _Doubled(torch.autograd.Function):
    """A number whose derivative is wrong."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def jvp(ctx, tangent):
        return tangent.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 2**-12)


def _wrong_derivative(value, loc, **named):
    return ops.gaussian_log_prob(value, _Doubled.apply(loc), **named)


def _wrong_broadcasting(value, loc, **named):
    # Over and over from its start: right for a loc per feature, and wrong for one per datum.
    shape = torch.broadcast_shapes(value.shape, loc.shape)
    if loc.numel():
        place = torch.arange(shape.numel()) % loc.numel()
        loc = loc.flatten()[place].reshape(shape)
    return ops.gaussian_log_prob(value, loc, **named)


def _a_few_ulps(value, loc, **named):
    return ops.gaussian_log_prob(value, loc, **named) * (1 + 2.0**-17)


def _lost_infinity(value, loc, **named):
    return ops.gaussian_log_prob(value, loc, **named).clamp(min=-1e30)


def _strides_ignored(value, loc, **named):
    if not value.is_contiguous() and value.stride() and 0 not in value.stride():
        value = value.as_strided(value.shape, value.contiguous().stride())
    return ops.gaussian_log_prob(value, loc, **named)


@pytest.mark.parametrize(
    "faulty",
    [_wrong_derivative, _wrong_broadcasting, _a_few_ulps, _lost_infinity, _strides_ignored],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_planted_fault_of_a_density_is_found(faulty):
    faulty.reference = ops.gaussian_log_prob.reference

    def check(case):
        try:
            check_density(case)
        except AssertionError:
            return  # A fault of the op itself is found above: here it is the planted one's turn.
        check_density(case, faulty)

    assert finds(check, 160, case=_densities("gaussian_log_prob"))


def _impossible_column_is_zero(log_w, dim=0, alpha=0.0):
    return torch.nan_to_num(ops.iwlb(log_w, dim=dim, alpha=alpha), neginf=0.0)


def _one_order_for_all(log_w, dim=0, alpha=0.0):
    return ops.iwlb(log_w, dim=dim, alpha=1.0 if alpha == 0.9999 else alpha)


@pytest.mark.parametrize(
    "faulty",
    [_impossible_column_is_zero, _one_order_for_all],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_planted_fault_of_a_bound_is_found(faulty):
    faulty.reference = ops.iwlb.reference

    def check(case):
        if case.terms:
            return
        try:
            check_weights(case)
        except AssertionError:
            return
        check_weights(case, faulty)

    assert finds(check, 250, case=weight_calls(("iwlb",)))


def test_the_time_is_shared_by_all_tests():
    here = [name for name, value in globals().items() if name.startswith("test_")]
    fuzzes = [name for name in here if getattr(globals()[name], "is_fuzz", False)]
    assert len(fuzzes) == fuzz_running.TESTS
