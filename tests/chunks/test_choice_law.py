"""The law by which the variance of a gradient grows, where few of the samples run backward."""

from __future__ import annotations

import math

import pytest
import torch

import fastvi
from fastvi.chunks.choice import growth, included

pytestmark = pytest.mark.native

DOUBLE = torch.float64
K = 40


def normal(*shape):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(7))


WEIGHTS = {
    "alike": lambda: torch.ones(K, dtype=DOUBLE),
    "near": lambda: (0.3 * normal(K)).exp(),
    "spread": lambda: normal(K).exp(),
    "concentrated": lambda: (3 * normal(K)).exp(),
    "one": lambda: torch.cat([normal(1).exp() * 1e6, normal(K - 1).exp()]),
    "with zeros": lambda: normal(K).exp() * (torch.arange(K) % 3 > 0),
}


def mean_within(found: torch.Tensor, expected: float) -> None:
    """The mean of independent draws is what is expected, up to five of its standard errors."""
    error = found.std() / math.sqrt(len(found))
    # Where no draw differs from another, their sum has roundings alone.
    assert abs(found.mean() - expected) <= 5 * error + 1e-12 * expected


@pytest.mark.parametrize("few", [1, 3, 10, 39], ids="m{}".format)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_law_is_what_a_simulation_finds(weights, few):
    """Derivatives of their own for each sample; the sum over the chosen has the law's variance."""
    draws, v = 20_000, weights()
    generator = torch.Generator().manual_seed(few)
    uniform = torch.rand(draws, dtype=DOUBLE, generator=generator)
    index, inverse = included(v.expand(draws, K), torch.full((draws,), few), uniform, few)
    d = torch.randn(draws, K, dtype=DOUBLE, generator=generator)
    sums = (v[index] * inverse * d.gather(1, index)).sum(1)
    expected = growth(v[None], torch.tensor([few])).item()
    mean_within(sums.square() / v.square().sum(), expected)


@pytest.mark.parametrize("few", [1, 3, 10, 39, 40], ids="m{}".format)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_law_lies_between_its_short_forms(weights, few):
    v = weights()
    ess = (v.sum().square() / v.square().sum()).item()
    found = growth(v[None], torch.tensor([few])).item()
    # Some sums of K numbers: no more roundings than this.
    slack = 1 + 8 * K * torch.finfo(DOUBLE).eps
    assert max(1.0, ess / few) <= found * slack
    assert found <= (1 + ess * (1 / few - 1 / K)) * slack


def test_weights_that_are_alike_have_the_growth_of_fewer_samples():
    few = torch.arange(1, K + 1)
    found = growth(torch.full((K, K), 0.3, dtype=DOUBLE), few)
    torch.testing.assert_close(found, K / few.double(), rtol=1e-13, atol=0.0)


# A guide whose log-weights are known: half a deviation off in one latent, exact in the other. The
# model's parameter stands before the exact one, and is zero: its derivative in log w is z, which is
# independent of the weights, with mean zero and variance one. So the law is exact.
DATA = 4000


def gradients(theta, num_samples, shift, **options):
    loc = torch.zeros(DATA, 2, dtype=DOUBLE)
    loc[:, 0] = shift
    criterion = fastvi.IWLBLoss(num_samples, reduction="sum", **options)
    loss = criterion(
        loc, torch.zeros_like(loc), lambda z: theta * z[..., 1], key=torch.tensor([3, 0])
    )
    return torch.autograd.grad(loss, theta)[0]


@pytest.mark.parametrize("few", [2, 8, 24], ids="m{}".format)
@pytest.mark.parametrize("shift", [0.3, 1.5], ids=["spread", "concentrated"])
def test_the_gradient_of_a_model_has_the_variance_of_the_law(shift, few):
    theta = torch.zeros(DATA, dtype=DOUBLE, requires_grad=True)
    whole = gradients(theta, K, shift)
    chosen = gradients(theta, K, shift, backward_samples=few)
    loc = torch.zeros(DATA, 2, dtype=DOUBLE)
    loc[:, 0] = shift
    z, log_q, log_p = fastvi.ops.gaussian_rsample(
        loc, log_var=torch.zeros_like(loc), num_samples=K, key=torch.tensor([3, 0])
    )
    weights = torch.softmax(log_p - log_q, 0)
    torch.testing.assert_close(whole, -(weights * z[..., 1]).sum(0), rtol=1e-9, atol=1e-9)
    squares = weights.square().sum(0)
    law = growth(weights.t().contiguous(), torch.full((DATA,), few))
    mean_within(whole.square() / squares, 1.0)
    # Given the weights, the variance of each datum is its squares by its growth.
    mean_within(chosen.square() / (squares * law), 1.0)
    # And what the choice adds is no part of what was there: the means agree.
    mean_within(chosen - whole, 0.0)


@pytest.mark.parametrize("wanted", [1.05, 1.1, 2.0], ids="{}".format)
def test_auto_takes_the_least_that_the_law_allows(wanted):
    """Half of what the variance may grow by is left for where the law falls short."""
    log_w = 2 * normal(K, 50)
    few = fastvi.needed_backward_samples(log_w, variance_growth=2 * wanted - 1).long()
    measure = torch.softmax(log_w, 0).t().contiguous()
    assert (growth(measure, few) <= wanted).all()
    less = few[few > 1] - 1
    assert len(less) > 10 and (growth(measure[few > 1], less) > wanted).all()
