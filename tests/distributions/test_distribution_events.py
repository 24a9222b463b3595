"""Independent and DiagNormal: batch dimensions as one event, summed by the kernel."""

from __future__ import annotations

import copy
import pickle
import sys
from unittest import mock

import pytest
import torch
from distribution_table import Family, families
from op_table import DEVICES
from torch import distributions as theirs

from fastvi import distributions as ours
from fastvi import ops

on_devices = pytest.mark.parametrize("device", DEVICES)


def diagonal(module, loc, scale):
    if module is ours:
        return ours.DiagNormal(loc, scale)
    return theirs.Independent(theirs.Normal(loc, scale), 1)


# ---- Independent --------------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("dims", [0, 1, 2], ids=lambda dims: f"dims{dims}")
@families
def test_log_prob_is_the_sum(family: Family, dims: int, device: str):
    parameters, value = family.draw(device=device, lead=(3,))
    inputs = [x.requires_grad_() for x in parameters.values()]
    found = ours.Independent(family.ours(**parameters), dims).log_prob(value)
    exact = theirs.Independent(family.theirs(**parameters), dims).log_prob(value)
    torch.testing.assert_close(found, exact)
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (found, exact)]
    torch.testing.assert_close(*gradients)


def test_one_kernel_sums():
    """No tensor of the size of the value is written."""
    p = ours.Independent(ours.Normal(torch.zeros(4, 5), torch.ones(4, 5)), 1)
    with mock.patch.object(ops, "gaussian_log_prob", wraps=ops.gaussian_log_prob) as kernel:
        assert p.log_prob(torch.zeros(3, 4, 5)).shape == (3, 4)
    kernel.assert_called_once()
    assert kernel.call_args.kwargs["event_dims"] == 1


def test_a_base_distribution_of_torch():
    base = theirs.Gamma(torch.ones(4, 5), torch.ones(4, 5))
    p, q = ours.Independent(base, 1), theirs.Independent(base, 1)
    x = torch.rand(3, 4, 5)
    torch.testing.assert_close(p.log_prob(x), q.log_prob(x))
    with pytest.raises(NotImplementedError, match="rsample_and_log_prob: expected the base.*Gamma"):
        p.rsample_and_log_prob(2)


@families
def test_independent_is_one_of_torch(family: Family):
    parameters, value = family.draw()
    p, q = ours.Independent(family.ours(**parameters), 1), None
    q = theirs.Independent(family.theirs(**parameters), 1)
    assert isinstance(p, theirs.Independent)
    assert (p.batch_shape, p.event_shape) == (q.batch_shape, q.event_shape)
    assert repr(p) == repr(q) and str(p.support) == str(q.support)
    torch.testing.assert_close(p.mean, q.mean, equal_nan=True)
    wide = p.expand((3, 4))
    assert type(wide) is ours.Independent
    torch.testing.assert_close(wide.log_prob(value), q.expand((3, 4)).log_prob(value))
    for same in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        torch.testing.assert_close(same.log_prob(value), p.log_prob(value), rtol=0, atol=0)


def test_a_subclass_with_a_density_of_its_own():
    """The event is the sum of what the subclass says, not of what its parent would."""

    class Tempered(ours.Normal):
        def log_prob(self, value):
            return 0.5 * super().log_prob(value)

    base = Tempered(torch.zeros(4, 5), torch.ones(4, 5))
    x = torch.randn(3, 4, 5)
    exact = 0.5 * theirs.Normal(0.0, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(ours.Independent(base, 1).log_prob(x), exact)


def test_too_many_dimensions():
    base = ours.Normal(torch.zeros(5), torch.ones(5))
    with pytest.raises(ValueError, match="reinterpreted_batch_ndims"):
        ours.Independent(base, 2)


def test_the_value_is_checked_before_it_is_summed():
    p = ours.Independent(ours.Bernoulli(torch.full((4, 5), 0.5)), 1)
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.full((4, 5), 0.5))


# ---- DiagNormal ---------------------------------------------------------------------------------
@on_devices
def test_diag_normal(device: str):
    loc = torch.randn(4, 5, dtype=torch.float64, device=device)
    scale = torch.rand(5, dtype=torch.float64, device=device) + 0.5
    p, q = (diagonal(module, loc, scale) for module in (ours, theirs))
    assert (p.batch_shape, p.event_shape) == ((4,), (5,))
    x = torch.randn(3, 4, 5, dtype=torch.float64, device=device)
    torch.testing.assert_close(p.log_prob(x), q.log_prob(x))
    torch.testing.assert_close(p.entropy(), q.entropy())
    torch.testing.assert_close(p.loc, loc)
    torch.testing.assert_close(p.scale, scale.expand(4, 5))
    assert repr(p) == "DiagNormal(loc: (4, 5), scale: (4, 5))"
    wide = p.expand((3, 4))
    assert type(wide) is ours.DiagNormal
    torch.testing.assert_close(wide.log_prob(x), q.log_prob(x))
    torch.testing.assert_close(copy.deepcopy(p).log_prob(x), q.log_prob(x))


@on_devices
def test_kl_divergence_of_diagonals(device: str):
    """In one kernel, and with torch's on either side; with gradients, and over another batch."""

    def parameters(*shape: int):
        scale = torch.rand(shape, dtype=torch.float64, device=device) + 0.5
        loc = torch.randn(shape, dtype=torch.float64, device=device)
        return loc.requires_grad_(), scale.requires_grad_()

    a, b = parameters(3, 4, 5), parameters(4, 5)
    (p, p_), (q, q_) = (tuple(diagonal(m, *x) for m in (ours, theirs)) for x in (a, b))
    exact = theirs.kl_divergence(p_, q_)
    slope = torch.autograd.grad(exact.sum(), [*a, *b], retain_graph=True)
    module = sys.modules["fastvi.distributions.normal"]
    with mock.patch.object(module, "kl_of_scales", wraps=module.kl_of_scales) as kernel:
        found = theirs.kl_divergence(p, q)
    kernel.assert_called_once()
    for kl in (found, theirs.kl_divergence(p, q_), theirs.kl_divergence(p_, q)):
        torch.testing.assert_close(kl, exact)
        torch.testing.assert_close(torch.autograd.grad(kl.sum(), [*a, *b]), slope)
    with pytest.raises(ValueError, match="[Ee]vent shapes differ"):
        theirs.kl_divergence(p, ours.DiagNormal(torch.zeros(2), torch.ones(2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_kl_divergence_has_the_type_of_the_parameters(dtype: torch.dtype):
    p = ours.DiagNormal(torch.ones(3, 4, dtype=dtype), torch.ones(3, 4, dtype=dtype))
    q = ours.DiagNormal(torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype))
    kl = theirs.kl_divergence(p, q)
    torch.testing.assert_close(kl, torch.full((3,), 2.0, dtype=dtype))


def test_forward_mode_of_the_divergence():
    from torch.autograd import forward_ad

    loc, one = torch.randn(4, 5).double(), torch.ones(4, 5).double()
    with forward_ad.dual_level():
        p = ours.DiagNormal(forward_ad.make_dual(loc, one), one)
        kl = theirs.kl_divergence(p, ours.DiagNormal(torch.zeros_like(one), one))
        tangent = forward_ad.unpack_dual(kl).tangent
    torch.testing.assert_close(tangent, loc.sum(-1))


def test_bad_diagonals():
    with pytest.raises(ValueError, match="DiagNormal: expected loc or scale to have at least one"):
        ours.DiagNormal(torch.tensor(0.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match="Expected parameter scale"):
        ours.DiagNormal(torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="within the support"):
        ours.DiagNormal(torch.zeros(3), torch.ones(3)).log_prob(torch.full((3,), torch.nan))
    bad = ours.DiagNormal(torch.zeros(3), -torch.ones(3), validate_args=False)
    assert bool(bad.log_prob(torch.zeros(3)).isnan())
