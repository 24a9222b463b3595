"""The divergence against torch.distributions, and where it is known without it."""

from __future__ import annotations

import pytest
import torch
from op_table import DEVICES
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from fastvi.ops import gaussian_kl, gaussian_rsample

on_devices = pytest.mark.parametrize("device", DEVICES)


def draw(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_()


def by_torch(loc: Tensor, log_var: Tensor, p_loc: Tensor, p_log_var: Tensor) -> Tensor:
    q, p = (
        Independent(Normal(m.expand(4, 5), (0.5 * v).exp().expand(4, 5)), 1)
        for m, v in ((loc, log_var), (p_loc, p_log_var))
    )
    return kl_divergence(q, p)


@on_devices
@pytest.mark.parametrize("prior", [None, (4, 5), (5,), (4, 1), ()], ids=str)
@pytest.mark.parametrize("log_var", [(4, 5), (5,), ()], ids=str)
def test_against_torch(log_var: tuple[int, ...], prior: tuple[int, ...] | None, device: str):
    loc, spread = draw(4, 5, device=device), draw(*log_var, device=device)
    pair = None if prior is None else (draw(*prior, device=device), draw(*prior, device=device))
    inputs = (loc, spread, *(pair or ()))
    zero = torch.zeros(4, 5, dtype=torch.float64, device=device)
    ours, theirs = gaussian_kl(loc, spread, pair), by_torch(loc, spread, *(pair or (zero, zero)))
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(theirs)
    runs = [torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, theirs)]
    torch.testing.assert_close(*runs)


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_zero_at_the_prior(dtype: torch.dtype, device: str):
    """Exactly zero, and so is its gradient."""
    loc, log_var = draw(4, 5, dtype=dtype, device=device), draw(4, 5, dtype=dtype, device=device)
    kl = gaussian_kl(loc, log_var, (loc.detach(), log_var.detach()))
    assert (kl == 0).all()
    for gradient in torch.autograd.grad(kl.sum(), (loc, log_var)):
        assert (gradient == 0).all()


@on_devices
def test_never_negative_near_the_prior(device: str):
    """The terms cancel there; in float32 the sum stays at zero or above, up to its rounding."""
    log_var = torch.linspace(-1e-2, 1e-2, 2001, device=device)[:, None]
    kl = gaussian_kl(torch.zeros_like(log_var), log_var)
    exact = gaussian_kl(torch.zeros_like(log_var).double(), log_var.double())
    torch.testing.assert_close(kl.double(), exact, rtol=0, atol=2**-23)


@pytest.mark.native
def test_is_the_mean_of_the_log_ratio():
    """By the sampler: within 5 standard errors of the mean of log q - log p."""
    loc, log_var = draw(4, 5).detach(), draw(4, 5).detach()
    prior = (draw(5).detach(), draw(5).detach())
    _, log_q, log_p = gaussian_rsample(
        loc, log_var=log_var, num_samples=20_000, key=torch.tensor([1, 2]), prior=prior
    )
    ratio = log_q - log_p
    error = ratio.std(0) / 20_000**0.5
    assert ((ratio.mean(0) - gaussian_kl(loc, log_var, prior)).abs() < 5 * error).all()


def test_low_precision_is_summed_in_float32():
    loc, log_var = draw(3, 1000).detach().bfloat16(), draw(3, 1000).detach().bfloat16()
    kl = gaussian_kl(loc, log_var)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(
        kl.double(), gaussian_kl(loc.double(), log_var.double()), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("run", [gaussian_kl, gaussian_kl.reference], ids=["kernel", "reference"])
def test_no_digit_is_lost_between_near_and_far(run):
    """In float64, where e^g - 1 - g cancels: against 40 digits, at every size of g."""
    mpmath = pytest.importorskip("mpmath")
    g = torch.logspace(-12, 1, 400, dtype=torch.float64)
    g = torch.cat([-g, g])
    with mpmath.workdps(40):
        exact = [(mpmath.exp(x) - 1 - x) / 2 for x in map(mpmath.mpf, g.tolist())]
        found = run(torch.zeros(len(g), 1, dtype=torch.float64), g[:, None]).tolist()
        error = [abs(mpmath.mpf(y) / true - 1) for y, true in zip(found, exact, strict=True)]
    # Outside of a quarter the terms are up to 30 times as large as their sum, of which each is
    # rounded once.
    assert max(error) < 60 * 2.0**-53
