"""A Bernoulli's log-density from many probabilities, in blocks, against torch's own."""

from __future__ import annotations

import pytest
import torch

from fastvi.distributions import Bernoulli, Independent
from fastvi.distributions._probabilities import blocks_of

SHAPES = [((10,), (900, 40, 10)), ((40, 10), (900, 40, 10)), ((900, 1, 10), (900, 40, 10))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("event_dims", [0, 1, 2], ids=lambda n: f"event {n}")
@pytest.mark.parametrize("value_shape,shape", SHAPES, ids=["row", "batch", "each"])
def test_as_torch_with_what_it_clamps(value_shape, shape, event_dims, dtype):
    probs = torch.rand(shape, dtype=dtype)
    probs[0, 0, :4] = torch.tensor([0.0, 1.0, 1e-12, 1.0], dtype=dtype)
    x = torch.rand(value_shape, dtype=dtype).round()
    assert 0 < blocks_of(x, probs, event_dims) < len(probs)
    upstream = torch.randn(shape[: 3 - event_dims], dtype=dtype)
    # torch in float64, which clamps at an epsilon of its own: first at that of the tested dtype.
    eps = torch.finfo(dtype).eps
    answers = []
    for kind, wide in ((Bernoulli, dtype), (torch.distributions.Bernoulli, torch.float64)):
        leaf = probs.to(wide, copy=True).requires_grad_()
        clamped = leaf if kind is Bernoulli else leaf.clamp(eps, 1 - eps)
        wrap = Independent if kind is Bernoulli else torch.distributions.Independent
        fn = wrap(kind(clamped, validate_args=False), event_dims)
        log_prob = fn.log_prob(x.to(wide))
        (grad,) = torch.autograd.grad(log_prob, leaf, upstream.to(wide))
        answers.append((log_prob.double(), grad.double()))
    tolerance = {"rtol": 1e-5, "atol": 2e-4} if dtype == torch.float32 else {}
    for ours, exact in zip(*answers, strict=True):
        torch.testing.assert_close(ours, exact, **tolerance)


def test_where_blocks_do_not_serve():
    probs, x = torch.rand(900, 40, 10), torch.ones(10)
    assert blocks_of(x, probs[:5], 1) == 0
    assert blocks_of(x, probs.mT.contiguous().mT, 1) == 0
    assert blocks_of(x.requires_grad_(), probs, 1) == 0
    assert blocks_of(torch.ones(2, 900, 40, 10), probs, 1) == 0
    value = torch.rand(2, 900, 40, 10).round()
    torch.testing.assert_close(
        Bernoulli(probs).log_prob(value), torch.distributions.Bernoulli(probs).log_prob(value)
    )
