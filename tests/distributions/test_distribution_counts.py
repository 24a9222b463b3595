"""The distributions of counts: both parametrisations, against SciPy and torch."""

from __future__ import annotations

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
from op_table import DEVICES
from scipy import stats
from torch import Tensor
from torch import distributions as theirs

from fastvi import distributions as ours
from fastvi import ops

on_devices = pytest.mark.parametrize("device", DEVICES)
COUNTS = torch.tensor([0.0, 1.0, 2.0, 7.0, 40.0, 3000.0], dtype=torch.float64)
MEAN = torch.tensor([0.01, 1.0, 5.0, 300.0], dtype=torch.float64)[:, None]
DISPERSIONS = [0.05, 1.0, 20.0, 1e4]


def scipy_nb(mean: Tensor, dispersion: float):
    return stats.nbinom(dispersion, dispersion / (dispersion + mean.numpy()))


def zinb(**options):
    return ours.ZeroInflatedNegativeBinomial(**options)


# ---- NegativeBinomial ---------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("dispersion", DISPERSIONS, ids=str)
def test_mean_and_dispersion_against_scipy(dispersion: float, device: str):
    p = ours.NegativeBinomial(mean=MEAN.to(device), dispersion=dispersion)
    exact = scipy_nb(MEAN, dispersion)
    torch.testing.assert_close(
        p.log_prob(COUNTS.to(device)).cpu(),
        torch.from_numpy(exact.logpmf(COUNTS.numpy())),
        rtol=1e-9,
        atol=1e-9,
    )
    for name, value in (("mean", exact.mean()), ("variance", exact.var())):
        torch.testing.assert_close(getattr(p, name).cpu(), torch.from_numpy(value))


def test_the_three_pairs_are_one_distribution():
    mean, theta = torch.rand(3, 4).double() + 0.5, torch.rand(4).double() + 0.5
    value = torch.arange(4).double()
    p = ours.NegativeBinomial(mean=mean, dispersion=theta)
    same = [
        ours.NegativeBinomial(p.total_count, p.probs),
        ours.NegativeBinomial(total_count=p.total_count, logits=p.logits),
        theirs.NegativeBinomial(p.total_count, logits=p.logits),
    ]
    for q in same:
        for name in ("mean", "variance", "mode", "probs", "logits", "total_count"):
            torch.testing.assert_close(getattr(p, name), getattr(q, name))
        torch.testing.assert_close(p.log_prob(value), q.log_prob(value))
    assert same[0].dispersion is same[0].total_count


def test_gradients_by_mean_and_dispersion():
    """Those of torch's formula, through its parameters."""
    inputs = [
        torch.rand(3, 4, dtype=torch.float64).add(0.5).requires_grad_(),
        torch.rand(4, dtype=torch.float64).add(0.5).requires_grad_(),
    ]
    mean, theta = inputs
    value = torch.arange(12, dtype=torch.float64).reshape(3, 4)
    found = ours.NegativeBinomial(mean=mean, dispersion=theta).log_prob(value)
    exact = theirs.NegativeBinomial(theta.expand(3, 4), logits=mean.log() - theta.log()).log_prob(
        value
    )
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), inputs) for out in (found, exact))
    )


def test_float32_holds_where_torch_loses_all_digits():
    """Near a Poisson distribution two log-gammas of 10^8 cancel."""
    mean, theta, x = torch.tensor([7.0]), torch.tensor([1e7]), torch.tensor([9.0])
    exact = torch.tensor(stats.poisson(7.0).logpmf(9), dtype=torch.float32)[None]
    for p in (
        ours.NegativeBinomial(mean=mean, dispersion=theta),
        ours.NegativeBinomial(theta, logits=(mean / theta).log()),
    ):
        torch.testing.assert_close(p.log_prob(x), exact, rtol=1e-5, atol=1e-5)
    lost = theirs.NegativeBinomial(theta, logits=(mean / theta).log()).log_prob(x)
    assert (lost - exact).abs() > 1


@pytest.mark.parametrize("validate_args", [True, False], ids=str)
@pytest.mark.parametrize(
    ("total_count", "logits"),
    [(0.0, 1.0), (0.0, 120.0), (3.0, 120.0), (1e-3, 88.0), (2.0, -120.0)],
    ids=lambda x: str(x),
)
def test_where_the_kernel_has_no_mean_torch_answers(total_count, logits, validate_args: bool):
    parameters = {"total_count": torch.tensor([total_count]), "logits": torch.tensor([logits])}
    value = torch.tensor([[0.0], [4.0]])
    found, exact = (
        module.NegativeBinomial(**parameters, validate_args=validate_args).log_prob(value)
        for module in (ours, theirs)
    )
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_mean_of_zero_makes_zero_certain():
    p = ours.NegativeBinomial(mean=torch.zeros(2), dispersion=torch.ones(2))
    torch.testing.assert_close(p.log_prob(torch.tensor([0.0, 1.0])), torch.tensor([0.0, -math.inf]))
    torch.testing.assert_close(p.sample((10,)), torch.zeros(10, 2))


def test_whole_numbers_are_counts():
    p = ours.NegativeBinomial(mean=torch.ones(3), dispersion=2.0)
    counts = torch.tensor([0, 1, 5])
    torch.testing.assert_close(p.log_prob(counts), p.log_prob(counts.float()), rtol=0, atol=0)
    rate = ours.Poisson(torch.ones(3))
    torch.testing.assert_close(rate.log_prob(counts), rate.log_prob(counts.float()))


def test_expand_and_copies():
    value = torch.arange(12.0).reshape(3, 4)
    for p in (
        ours.NegativeBinomial(mean=torch.rand(4) + 0.5, dispersion=torch.rand(4) + 0.5),
        zinb(mean=torch.rand(4) + 0.5, dispersion=1.5, gate=torch.rand(4)),
        zinb(total_count=2.0, logits=torch.randn(4), gate_logits=torch.randn(4)),
    ):
        exact = p.log_prob(value)
        wide = p.expand((3, 4))
        assert type(wide) is type(p) and wide.batch_shape == (3, 4)
        for q in (wide, copy.deepcopy(p), pickle.loads(pickle.dumps(p)), wide.expand((2, 3, 4))):
            torch.testing.assert_close(q.log_prob(value).reshape(-1, 3, 4)[-1], exact)
        torch.testing.assert_close(wide.mean[0], p.mean)


MIXED = {
    "none": {},
    "mean-alone": {"mean": torch.ones(2)},
    "dispersion-alone": {"dispersion": torch.ones(2)},
    "mean-and-total-count": {"mean": torch.ones(2), "total_count": torch.ones(2)},
    "all": {"mean": 1.0, "dispersion": 1.0, "total_count": 1.0, "probs": torch.ones(2) / 2},
    "probs-alone": {"probs": torch.ones(2) / 2},
}


@pytest.mark.parametrize("given", MIXED.values(), ids=MIXED.keys())
@pytest.mark.parametrize("name", ["NegativeBinomial", "ZeroInflatedNegativeBinomial"])
def test_parameters_that_are_no_pair(name: str, given: dict):
    gate = {"gate": 0.5} if name.startswith("Zero") else {}
    with pytest.raises(
        ValueError, match=rf"^{name}: expected total_count with probs or logits, or mean"
    ):
        getattr(ours, name)(**given, **gate)


def test_bad_parameters():
    one = torch.ones(3)
    with pytest.raises(ValueError, match="but not both"):
        ours.NegativeBinomial(one)
    with pytest.raises(ValueError, match="Expected parameter mean"):
        ours.NegativeBinomial(mean=-one, dispersion=one)
    for bad in (0.0, -1.0, torch.nan):
        with pytest.raises(ValueError, match="Expected parameter dispersion"):
            ours.NegativeBinomial(mean=one, dispersion=torch.tensor([1.0, bad, 1.0]))
    for given in ({}, {"gate": one / 2, "gate_logits": one}):
        with pytest.raises(ValueError, match="expected exactly one of gate and gate_logits, got"):
            zinb(mean=one, dispersion=one, **given)
    with pytest.raises(ValueError, match="Expected parameter gate "):
        zinb(mean=one, dispersion=one, gate=2 * one)
    with pytest.raises(ValueError, match="Expected parameter gate_logits"):
        zinb(mean=one, dispersion=one, gate_logits=one * torch.nan)
    for p in (
        ours.NegativeBinomial(mean=one, dispersion=one),
        zinb(mean=one, dispersion=one, gate=0.5),
    ):
        for value in (-1.0, 0.5, torch.nan):
            with pytest.raises(ValueError, match="within the support"):
                p.log_prob(torch.tensor([1.0, value, 0.0]))


# ---- ZeroInflatedNegativeBinomial ---------------------------------------------------------------
@on_devices
@pytest.mark.parametrize("dispersion", DISPERSIONS, ids=str)
@pytest.mark.parametrize("form", ["gate", "gate_logits"])
def test_zero_inflated_against_scipy(form: str, dispersion: float, device: str):
    gate = torch.tensor(0.3, dtype=torch.float64)
    given = {form: (gate if form == "gate" else torch.logit(gate)).to(device)}
    p = zinb(mean=MEAN.to(device), dispersion=dispersion, **given)
    base = scipy_nb(MEAN, dispersion)
    probs = 0.7 * base.pmf(COUNTS.numpy()) + 0.3 * (COUNTS.numpy() == 0)
    possible = torch.from_numpy(probs > 1e-290)
    found = p.log_prob(COUNTS.to(device)).cpu()
    torch.testing.assert_close(
        found[possible], torch.from_numpy(probs).log()[possible], rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(p.mean.cpu(), torch.from_numpy(0.7 * base.mean()))
    second = 0.7 * (base.var() + base.mean() ** 2)
    torch.testing.assert_close(
        p.variance.cpu(), torch.from_numpy(second - (0.7 * base.mean()) ** 2)
    )


def test_zero_inflated_gradients():
    """Those of the mixture written out."""
    inputs = [torch.rand(3, 4, dtype=torch.float64).add(0.5).requires_grad_() for _ in range(3)]
    mean, theta, gate = inputs
    value = torch.tensor([0.0, 1.0, 0.0, 5.0], dtype=torch.float64)
    found = zinb(mean=mean, dispersion=theta, gate_logits=gate).log_prob(value)
    nb = theirs.NegativeBinomial(theta, logits=mean.log() - theta.log()).log_prob(value).exp()
    exact = (gate.sigmoid() * (value == 0) + (1 - gate.sigmoid()) * nb).log()
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), inputs) for out in (found, exact))
    )


def test_zero_inflated_without_the_kernel():
    """Where the kernel cannot serve, the mixture is composed of plain formulas."""
    value = torch.tensor([0.0, 1.0, 5.0])
    parameters = {
        "total_count": torch.ones(3),
        "logits": torch.randn(3),
        "gate_logits": torch.randn(3),
    }
    exact = zinb(**parameters).log_prob(value)
    with mock.patch.object(
        ops, "zero_inflated_negative_binomial_log_prob", side_effect=AssertionError
    ):
        with pytest.raises(AssertionError):
            zinb(**parameters).log_prob(value)
        found = zinb(**parameters).log_prob(value.double())
    torch.testing.assert_close(found, exact.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", [0.0, 1.0], ids=str)
def test_gates_at_the_ends(gate: float):
    """Kept just inside, as torch keeps a probability whose logits it takes."""
    p = zinb(mean=torch.ones(2), dispersion=1.0, gate=torch.tensor(gate))
    value = torch.tensor([0.0, 1.0])
    eps = torch.finfo(torch.float32).eps
    clamped = min(max(gate, eps), 1 - eps)
    nb = ours.NegativeBinomial(mean=torch.ones(2), dispersion=1.0).log_prob(value).exp()
    exact = (clamped * (value == 0) + (1 - clamped) * nb).log()
    torch.testing.assert_close(p.log_prob(value), exact, rtol=1e-4, atol=1e-5)
    assert bool(p.log_prob(value).isfinite().all())


# ---- samples ------------------------------------------------------------------------------------
def test_moments_of_samples():
    """Within five standard errors of the mean."""
    torch.manual_seed(1)
    n = 20_000
    for p in (
        ours.NegativeBinomial(mean=torch.tensor([0.5, 20.0]), dispersion=torch.tensor([2.0, 5.0])),
        zinb(mean=torch.tensor([0.5, 20.0]), dispersion=3.0, gate=0.3),
        ours.Poisson(torch.tensor([0.5, 20.0])),
    ):
        x = p.sample((n,))
        assert x.shape == (n, 2) and bool((x == x.floor()).all()) and x.dtype == torch.float32
        assert bool(((x.mean(0) - p.mean).abs() < 5 * p.stddev / math.sqrt(n)).all())
        zeros = p.log_prob(torch.zeros(2)).exp()
        error = (zeros * (1 - zeros) / n).sqrt()
        assert bool((((x == 0).float().mean(0) - zeros).abs() < 5 * error + 1e-9).all())


# ---- events and torch.func ----------------------------------------------------------------------
def test_genes_are_an_event():
    mean = torch.rand(10, 4, 20) + 0.5
    theta, gate, counts = torch.rand(20) + 0.5, torch.randn(20), torch.arange(80.0).reshape(4, 20)
    p = ours.Independent(ours.NegativeBinomial(mean=mean, dispersion=theta), 1)
    torch.testing.assert_close(
        p.log_prob(counts), ops.negative_binomial_log_prob(counts, mean, theta), rtol=0, atol=0
    )
    p = ours.Independent(zinb(mean=mean, dispersion=theta, gate_logits=gate), 1)
    exact = ops.zero_inflated_negative_binomial_log_prob(counts, mean, theta, gate)
    torch.testing.assert_close(p.log_prob(counts), exact, rtol=0, atol=0)


def test_torch_func_and_second_derivatives():
    value = torch.tensor([0.0, 2.0]).double()

    def total(mean: Tensor, theta: Tensor) -> Tensor:
        options = {"mean": mean, "dispersion": theta, "validate_args": False}
        return ours.NegativeBinomial(**options).log_prob(value).sum()

    inputs = torch.tensor([0.7, 1.3]).double(), torch.tensor([2.0, 0.4]).double()
    leaves = [x.clone().requires_grad_() for x in inputs]
    exact = torch.autograd.grad(total(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(torch.func.grad(total, (0, 1))(*inputs), exact)
    hessian = torch.func.hessian(total)(*inputs)
    step = torch.tensor([1e-6, 0.0]).double()
    ahead, behind = (torch.func.grad(total)(inputs[0] + s * step, inputs[1]) for s in (1, -1))
    torch.testing.assert_close(hessian[0], (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)
    second = torch.autograd.grad(exact[0][0], leaves)
    torch.testing.assert_close(second[0], (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.native
def test_compile_in_one_graph(fresh_compiler):
    def log_prob(value: Tensor, mean: Tensor, theta: Tensor, gate: Tensor) -> Tensor:
        options = {"mean": mean, "dispersion": theta, "validate_args": False}
        plain = ours.NegativeBinomial(**options).log_prob(value)
        return plain + zinb(**options, gate_logits=gate).log_prob(value)

    inputs = torch.tensor([0.0, 2.0]), torch.rand(3, 2) + 0.5, torch.rand(2) + 0.5, torch.randn(2)
    compiled = torch.compile(log_prob, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), log_prob(*inputs))


@pytest.mark.parametrize("gate", [0.0, 0.2, 0.9], ids=str)
def test_mode_of_the_zero_inflated(gate: float):
    """The likeliest of all counts up to a few standard deviations."""
    mean = torch.tensor([0.3, 2.5, 12.0, 40.0], dtype=torch.float64)
    dispersion = torch.tensor([0.5, 1.5, 4.0, 90.0], dtype=torch.float64)
    p = ours.ZeroInflatedNegativeBinomial(mean=mean, dispersion=dispersion, gate=gate)
    counts = torch.arange(200.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(p.mode, p.log_prob(counts).argmax(0).double())


def test_parameters_of_the_zero_inflated_are_those_of_its_counts():
    p = ours.ZeroInflatedNegativeBinomial(mean=torch.tensor([1.0, 3.0]), dispersion=2.0, gate=0.5)
    again = ours.ZeroInflatedNegativeBinomial(p.total_count, probs=p.probs, gate=p.gate)
    torch.testing.assert_close(again.mean, p.mean)
    again = ours.ZeroInflatedNegativeBinomial(p.total_count, logits=p.logits, gate=p.gate)
    torch.testing.assert_close(again.expand((5, 2)).total_count, torch.full((5, 2), 2.0))
    torch.testing.assert_close(again.mean, p.mean)
