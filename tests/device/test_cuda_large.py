"""More than 2^31 elements on a CUDA card: indices of 64 bits."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from fastvi.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_rsample,
    iwlb,
    laplace_log_prob,
    leave_one_out,
    linear_bernoulli_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_negative_binomial_log_prob,
)

pytestmark = [pytest.mark.cuda, pytest.mark.native]

KEY = (0x0123456789ABCDEF, 0x0FEDCBA987654321)
# Past what a signed 32-bit index can reach.
MANY = 2**31 + 2**16


@functools.cache
def key_on(device: str) -> Tensor:
    return torch.tensor(KEY, device=device)


@pytest.fixture
def room(request):
    """Skips where the card has not the memory, in bytes, that the test asks for."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 1.1 * request.param:
        pytest.skip(f"needs {request.param / 1e9:.0f} GB of free CUDA memory, has {free / 1e9:.0f}")
    yield
    torch.cuda.empty_cache()


def tensors(count: float) -> int:
    """The bytes of so many bfloat16 tensors of MANY elements."""
    return int(2 * MANY * count)


@pytest.mark.parametrize("room", [pytest.param(tensors(3), id="13 GB")], indirect=True)
def test_sampler_past_32_bit_indices(room):
    batch, features = 256, 256
    num_samples = MANY // (batch * features)
    loc = torch.randn(batch, features, device="cuda", dtype=torch.bfloat16).requires_grad_()
    log_var = torch.zeros_like(loc).requires_grad_()
    key = key_on("cuda")
    z, log_q, log_p = gaussian_rsample(loc, log_var=log_var, num_samples=num_samples, key=key)
    assert z.numel() > 2**31
    for first in (0, num_samples - 2):
        part = gaussian_rsample(loc, log_var=log_var, num_samples=2, key=key, sample_offset=first)
        for whole, alone in zip((z, log_q, log_p), part, strict=True):
            torch.testing.assert_close(whole[first : first + 2], alone)
    # One at the ends and zero between: the gradient is that of the ends alone.
    upstream = torch.zeros_like(z)
    upstream[0], upstream[-1] = 1.0, 2.0
    [found] = torch.autograd.grad(z, loc, upstream)
    assert torch.equal(found, torch.full_like(loc, 3.0))


LIKELIHOODS = [
    pytest.param(bernoulli_log_prob, id="bernoulli_log_prob"),
    pytest.param(
        lambda value, loc: gaussian_log_prob(value, loc, log_var=torch.zeros_like(value[0])),
        id="gaussian_log_prob",
    ),
    pytest.param(
        lambda value, loc: laplace_log_prob(value, loc, scale=torch.ones_like(value[0])),
        id="laplace_log_prob",
    ),
    pytest.param(
        lambda value, log_rate: poisson_log_prob(value, log_rate=log_rate), id="poisson_log_prob"
    ),
    pytest.param(
        lambda value, log_dispersion: negative_binomial_log_prob(
            value, torch.ones_like(value), log_dispersion=log_dispersion
        ),
        id="negative_binomial_log_prob",
    ),
    pytest.param(
        lambda value, gate: zero_inflated_negative_binomial_log_prob(
            value, torch.ones_like(value), torch.ones_like(value[0]), gate
        ),
        id="zero_inflated_negative_binomial_log_prob",
    ),
    pytest.param(
        lambda value, logits: categorical_log_prob(value.long().sum(-1), logits),
        id="categorical_log_prob",
    ),
]


@pytest.mark.parametrize("room", [pytest.param(tensors(3), id="13 GB")], indirect=True)
@pytest.mark.parametrize("op", LIKELIHOODS)
def test_likelihood_past_32_bit_indices(op, room):
    batch, features = 64, 1024
    num_samples = MANY // (batch * features)
    value = (torch.rand(batch, features, device="cuda") > 0.5).bfloat16()
    shape = (num_samples, batch, features)
    parameter = torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_()
    assert parameter.numel() > 2**31
    log_prob = op(value, parameter)
    [gradient] = torch.autograd.grad(log_prob.sum(), parameter)
    for ends in (slice(0, 2), slice(num_samples - 2, num_samples)):
        part = parameter.detach()[ends].clone().requires_grad_()
        alone = op(value, part)
        torch.testing.assert_close(log_prob[ends], alone)
        torch.testing.assert_close(gradient[ends], torch.autograd.grad(alone.sum(), part)[0])


@pytest.mark.parametrize("room", [pytest.param(tensors(4), id="17 GB")], indirect=True)
def test_bound_past_32_bit_indices(room):
    num_samples, batch = MANY // 64, 64
    log_w = torch.full((num_samples, batch), -30.0, device="cuda", dtype=torch.bfloat16)
    # The last sample outweighs all the others: e^30 against 2^25 times e^-30.
    log_w[-1] = 30.0
    log_w.requires_grad_()
    assert log_w.numel() > 2**31
    bound = iwlb(log_w)
    samples = torch.tensor(float(num_samples), device="cuda")
    torch.testing.assert_close(bound, (30.0 - samples.log()).expand(batch))
    [gradient] = torch.autograd.grad(bound.sum(), log_w)
    torch.testing.assert_close(gradient[-1], torch.ones_like(gradient[-1]))
    assert gradient[:-1].abs().max().item() < 1e-20


@pytest.mark.parametrize("room", [pytest.param(tensors(8), id="34 GB")], indirect=True)
def test_bounds_without_each_past_32_bit_indices(room):
    num_samples, batch = MANY // 64, 64
    log_w = torch.full((num_samples, batch), -30.0, device="cuda", dtype=torch.bfloat16)
    log_w[-1] = 30.0
    log_w.requires_grad_()
    bound = leave_one_out(log_w)
    others = torch.tensor(float(num_samples - 1), device="cuda")
    torch.testing.assert_close(bound[-1], torch.full((batch,), -30.0, device="cuda"))
    for place in (0, -2):
        torch.testing.assert_close(bound[place], (30.0 - others.log()).expand(batch))
    [gradient] = torch.autograd.grad(bound[-1].sum(), log_w)
    assert (gradient[-1] == 0).all()
    torch.testing.assert_close(gradient[0].float(), (1.0 / others).expand(batch), rtol=4e-3, atol=0)


@pytest.mark.parametrize("room", [pytest.param(tensors(1), id="4 GB")], indirect=True)
def test_linear_past_32_bit_indices(room):
    """The logits, which never exist as a whole, would have more elements than that."""
    features, batch = 1024, 64
    num_samples = MANY // (batch * features)
    hidden = torch.randn(num_samples, batch, 16, device="cuda").requires_grad_()
    weight = torch.randn(features, 16, device="cuda")
    value = (torch.rand(batch, features, device="cuda") > 0.5).float()
    log_prob = linear_bernoulli_log_prob(hidden, weight, None, value)
    [gradient] = torch.autograd.grad(log_prob.sum(), hidden)
    for ends in (slice(0, 2), slice(num_samples - 2, num_samples)):
        part = hidden.detach()[ends].clone().requires_grad_()
        alone = linear_bernoulli_log_prob(part, weight, None, value)
        torch.testing.assert_close(log_prob[ends], alone, rtol=1e-5, atol=1e-2)
        [expected] = torch.autograd.grad(alone.sum(), part)
        torch.testing.assert_close(gradient[ends], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("room", [pytest.param(tensors(5), id="21 GB")], indirect=True)
def test_kl_past_32_bit_indices(room):
    features = 1024
    batch = MANY // features
    loc = torch.randn(batch, features, device="cuda", dtype=torch.bfloat16).requires_grad_()
    log_var = torch.full_like(loc, 0.5).requires_grad_()
    kl = gaussian_kl(loc, log_var)
    gradients = torch.autograd.grad(kl.sum(), (loc, log_var))
    for ends in (slice(0, 3), slice(batch - 3, batch)):
        leaves = [x.detach()[ends].clone().requires_grad_() for x in (loc, log_var)]
        alone = gaussian_kl(*leaves)
        torch.testing.assert_close(kl[ends], alone)
        expected = torch.autograd.grad(alone.sum(), leaves)
        torch.testing.assert_close([gradient[ends] for gradient in gradients], list(expected))
