"""The sampler: its densities, the three gradients, priors and shapes."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from error_budget import assert_within_budget
from op_samples import GAUSSIAN_RSAMPLE, KEY
from op_table import DEVICES, EMULATED, Argument, Sample
from torch import Tensor
from torch.distributions import Independent, Normal

from fastvi.ops import gaussian_rsample, iwlb
from fastvi.ops._noise import standard_normal

module = sys.modules["fastvi.ops.gaussian_rsample"]
on_devices = pytest.mark.parametrize("device", DEVICES)
kinds = pytest.mark.parametrize("kind", ["scale", "log_scale", "log_var"])
SIGMA = {"scale": lambda s: s, "log_scale": torch.exp, "log_var": lambda s: (0.5 * s).exp()}


def draw(*shape: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_()


def key_on(device: str) -> Tensor:
    return torch.tensor(KEY, device=device)


def density(z: Tensor, loc: Tensor, sigma: Tensor) -> Tensor:
    return Independent(Normal(loc, sigma.expand_as(loc)), 1).log_prob(z)


# ---- values -------------------------------------------------------------------------------------
@on_devices
@kinds
@pytest.mark.parametrize("prior", ["standard", "learned", "per feature"])
def test_densities_are_those_of_the_sample(prior: str, kind: str, device: str):
    loc, spread = draw(4, 5, device=device), draw(4, 5, device=device)
    spread = spread.exp() if kind == "scale" else spread
    shape = {"standard": None, "learned": (4, 5), "per feature": (5,)}[prior]
    pair = None if shape is None else (draw(*shape, device=device), draw(*shape, device=device))
    z, log_q, log_p = gaussian_rsample(
        loc, **{kind: spread}, num_samples=7, key=key_on(device), prior=pair
    )
    torch.testing.assert_close(log_q, density(z, loc, SIGMA[kind](spread)))
    p_loc, p_log_var = pair or (torch.zeros_like(loc), torch.zeros_like(loc))
    p_loc, p_log_var = p_loc.expand_as(loc), p_log_var.expand_as(loc)
    torch.testing.assert_close(log_p, density(z, p_loc, (0.5 * p_log_var).exp()))


@on_devices
@kinds
@pytest.mark.parametrize("gradient", ["total", "path", "path_weighted"])
def test_the_three_scales_agree(gradient: str, kind: str, device: str):
    """The same samples, and gradients that the chain rule takes to those of log_scale."""
    loc, log_scale = draw(4, 5, device=device), draw(4, 5, device=device)
    spread_of = {"scale": torch.exp, "log_scale": lambda s: s, "log_var": lambda s: 2.0 * s}
    runs = []
    for name in ("log_scale", kind):
        out = module.rsample(
            loc, spread_of[name](log_scale), name, 6, key_on(device), 0, None, gradient
        )
        loss = (out[0] ** 2).sum() + (out[2] - 0.5 * out[1]).sin().sum()
        runs.append((*out, *torch.autograd.grad(loss, (loc, log_scale))))
    torch.testing.assert_close(runs[1], runs[0])


@on_devices
@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 1), ()], ids=str)
def test_a_prior_is_broadcast(shape: tuple[int, ...], device: str):
    """As its expanded copy, and the gradient is the copy's, summed."""
    loc, log_var = draw(4, 3, device=device), draw(4, 3, device=device)
    prior = (draw(*shape, device=device), draw(*shape, device=device))
    runs = []
    for pair in (prior, tuple(x.expand(4, 3).contiguous() for x in prior)):
        out = gaussian_rsample(loc, log_var=log_var, num_samples=6, key=key_on(device), prior=pair)
        loss = out[0].sin().sum() + out[1].sum() + (out[2] ** 2).sum()
        runs.append((*out, *torch.autograd.grad(loss, (loc, log_var, *prior))))
    torch.testing.assert_close(runs[0], runs[1])


@on_devices
def test_no_prior_is_the_standard_one(device: str):
    loc, log_var = draw(4, 3, device=device), draw(4, 3, device=device)
    zero = torch.zeros(3, dtype=torch.float64, device=device)
    ours, other = (
        gaussian_rsample(loc, log_var=log_var, num_samples=6, key=key_on(device), prior=prior)
        for prior in (None, (zero, zero))
    )
    torch.testing.assert_close(ours, other)


# ---- gradients ----------------------------------------------------------------------------------
def noise_and_outputs(prior: bool, gradient: str, device: str):
    """Inputs, the noise by the reference, the outputs, and the gradients that enter them."""
    loc, log_scale = draw(4, 5, device=device), draw(4, 5, device=device)
    pair = (draw(5, device=device), draw(5, device=device)) if prior else None
    eps = standard_normal(torch.tensor(KEY), 6, 4, 5).to(device)
    out = module.rsample(loc, log_scale, "log_scale", 6, key_on(device), 0, pair, gradient)
    grads = tuple(torch.randn_like(x) for x in out)
    return loc, log_scale, pair, eps, out, grads


@on_devices
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "learned"])
@pytest.mark.parametrize("gradient", ["total", "path", "path_weighted"])
def test_gradients_in_closed_form(gradient: str, prior: bool, device: str):
    """By hand, without autograd:

    u = g_z + g_p d log p / dz, minus g_q eps / sigma for the path; d loc = sum_k u,
    d log sigma = sum_k u sigma eps, minus g_q for the total; the weighted path takes u times
    w = g_q / sum_k g_q; the prior's own parameters always take plain g_p.
    """
    loc, log_scale, pair, eps, out, (g_z, g_q, g_p) = noise_and_outputs(prior, gradient, device)
    inputs = (loc, log_scale, *(pair or ()))
    ours = torch.autograd.grad(out, inputs, (g_z, g_q, g_p))
    sigma = log_scale.detach().exp()
    p_loc, p_log_var = pair or (torch.zeros_like(loc[0]), torch.zeros_like(loc[0]))
    gap = loc.detach() + sigma * eps - p_loc.detach()
    precision = torch.exp(-p_log_var.detach())
    u = g_z - g_p[..., None] * gap * precision
    d_log_scale = 0
    if gradient == "total":
        d_log_scale = -g_q[..., None]
    else:
        u = u - g_q[..., None] * eps / sigma
    if gradient == "path_weighted":
        u = u * (g_q / g_q.sum(0))[..., None]
    expected = [u.sum(0), (u * sigma * eps + d_log_scale).sum(0)]
    if prior:
        expected.append((g_p[..., None] * gap * precision).sum((0, 1)))
        expected.append((g_p[..., None] * 0.5 * (gap**2 * precision - 1)).sum((0, 1)))
    torch.testing.assert_close(ours, tuple(expected))


@on_devices
@pytest.mark.parametrize("prior", [None, (5,), (4, 5)], ids=["standard", "per feature", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@kinds
def test_weighted_path_error_budget(kind: str, dtype: torch.dtype, prior, device: str):
    tensors = {
        "loc": Argument((4, 5)),
        kind: Argument((4, 5), "positive" if kind == "scale" else "normal"),
    }
    if prior is not None:
        tensors |= {"prior_loc": Argument(prior), "prior_log_var": Argument(prior)}
    inputs = Sample("weighted", tensors).make(dtype, device)
    generator = torch.Generator().manual_seed(2)
    # As a bound sends them: the gradient of log q is minus that of log p.
    g_z, g_p = (torch.randn(shape, generator=generator).bfloat16() for shape in ((6, 4, 5), (6, 4)))
    g_p = g_p.abs()

    def run(of, leaves):
        pair = (leaves["prior_loc"], leaves["prior_log_var"]) if prior is not None else None
        out = of(leaves["loc"], leaves[kind], pair)
        return dict(zip(GAUSSIAN_RSAMPLE.outputs, out, strict=True))

    def ours(loc, spread, pair):
        return module.rsample(loc, spread, kind, 6, key_on(device), 0, pair, "path_weighted")

    def reference(loc, spread, pair):
        return module._plain(loc, spread, kind, 6, key_on(device), 0, pair, "path_weighted")

    with GAUSSIAN_RSAMPLE.kernel_noise(dtype):
        assert_within_budget(
            partial(run, ours),
            partial(run, reference),
            inputs,
            dtype,
            {
                name: g.to(device)
                for name, g in zip(GAUSSIAN_RSAMPLE.outputs, (g_z, -g_p, g_p), strict=True)
            },
        )


@on_devices
def test_weighted_path_is_the_dreg_estimator(device: str):
    """Through a real bound: sum_k w^2 dlog w/dz dz/dloc, and the prior keeps the plain weight."""
    loc, log_scale, pair, eps, out, _ = noise_and_outputs(True, "path_weighted", device)
    z, log_q, log_p = out
    bound = iwlb(log_p - log_q)
    d_loc, d_prior = torch.autograd.grad(bound.sum(), (loc, pair[0]))
    weight = torch.softmax((log_p - log_q).detach(), 0)[..., None]
    sigma, precision = log_scale.detach().exp(), torch.exp(-pair[1].detach())
    gap = z.detach() - pair[0].detach()
    through_z = eps / sigma - gap * precision
    torch.testing.assert_close(d_loc, (weight**2 * through_z).sum(0))
    torch.testing.assert_close(d_prior, (weight * gap * precision).sum((0, 1)))


@on_devices
@pytest.mark.parametrize("gradient", ["path", "path_weighted"])
def test_no_path_gradient_at_the_optimum(gradient: str, device: str):
    """Where q is the prior, log p - log q is constant: every single sample has gradient zero."""
    prior = (draw(4, 5, device=device), draw(4, 5, device=device))
    loc, log_var = (x.detach().clone().requires_grad_() for x in prior)
    _, log_q, log_p = module.rsample(loc, log_var, "log_var", 9, key_on(device), 0, prior, gradient)
    torch.testing.assert_close(log_q, log_p)
    gradients = torch.autograd.grad(iwlb(log_p - log_q).sum(), (loc, log_var))
    for x in gradients:
        torch.testing.assert_close(x, torch.zeros_like(x), rtol=0, atol=1e-12)


@on_devices
def test_weighted_path_with_no_weight_at_all(device: str):
    """The gradient of an impossible datum is zero, not 0 / 0."""
    loc, log_scale, _, _, out, (g_z, _, _) = noise_and_outputs(False, "path_weighted", device)
    zero = torch.zeros(6, 4, dtype=torch.float64, device=device)
    for x in torch.autograd.grad(out, (loc, log_scale), (g_z, zero, zero)):
        assert (x == 0).all()


@on_devices
def test_the_total_gradient_of_log_q_is_that_of_the_entropy(device: str):
    """d log q / d loc = 0 and d log q / d log sigma = -1 for each feature, sample by sample."""
    loc, log_scale = draw(4, 5, device=device), draw(4, 5, device=device)
    _, log_q, _ = gaussian_rsample(loc, log_scale=log_scale, num_samples=6, key=key_on(device))
    d_loc, d_log_scale = torch.autograd.grad(log_q.sum(), (loc, log_scale))
    assert (d_loc == 0).all()
    torch.testing.assert_close(d_log_scale, torch.full_like(d_log_scale, -6.0), rtol=0, atol=1e-12)


# ---- shapes and memory --------------------------------------------------------------------------
BIG = [
    pytest.param(1, 1_000_000, 1, id="a network's weights"),
    pytest.param(4096, 2, 3, id="4096 x 2"),
    pytest.param(1, 1, 1, id="one number"),
    pytest.param(1, 1, 100_000, id="many samples of one number"),
    pytest.param(2, 3, 50_000, id="many samples"),
]


@pytest.mark.slow
@pytest.mark.native
@on_devices
@pytest.mark.parametrize("gradient", ["total", "path_weighted"])
@pytest.mark.parametrize(("batch", "features", "num_samples"), BIG)
def test_sizes(batch: int, features: int, num_samples: int, gradient: str, device: str):
    tensors = {
        "loc": Argument((batch, features)),
        "log_var": Argument((batch, features), "small spread"),
        "prior_loc": Argument((features,)),
        "prior_log_var": Argument((features,), "small spread"),
    }
    inputs = Sample("big", tensors).make(torch.float32, device)

    def run(of, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        out = of(leaves["loc"], leaves["log_var"], (leaves["prior_loc"], leaves["prior_log_var"]))
        return dict(zip(GAUSSIAN_RSAMPLE.outputs, out, strict=True))

    def ours(loc, log_var, prior):
        return module.rsample(
            loc, log_var, "log_var", num_samples, key_on(device), 0, prior, gradient
        )

    def reference(loc, log_var, prior):
        return module._plain(
            loc, log_var, "log_var", num_samples, key_on(device), 0, prior, gradient
        )

    generator = torch.Generator().manual_seed(3)
    rows = (num_samples, batch)
    # As a bound sends them: the gradient of log q is minus that of log p.
    g_z, g_p = (
        torch.randn(shape, generator=generator).bfloat16().to(device)
        for shape in ((*rows, features), rows)
    )
    upstream = dict(zip(GAUSSIAN_RSAMPLE.outputs, (g_z, -g_p.abs(), g_p.abs()), strict=True))
    with GAUSSIAN_RSAMPLE.kernel_noise(torch.float32):
        assert_within_budget(
            partial(run, ours), partial(run, reference), inputs, torch.float32, upstream
        )


def test_low_precision_keeps_densities_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        loc, log_var = draw(4, 5, dtype=dtype), draw(4, 5, dtype=dtype)
        z, log_q, log_p = gaussian_rsample(loc, log_var=log_var, num_samples=2)
        assert (z.dtype, log_q.dtype, log_p.dtype) == (dtype, torch.float32, torch.float32)


def test_the_noise_is_not_stored():
    """Saved: the inputs and the key. Not z, not the noise."""
    saved = []
    loc, log_var = draw(7, 5), draw(7, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        gaussian_rsample(loc, log_var=log_var, num_samples=50)
    assert sum(x.numel() for x in saved) == loc.numel() + log_var.numel() + 2


def test_the_mean_over_samples_is_the_law():
    """Moments of z over many samples, each within 5 standard errors."""
    count = 500 if EMULATED else 200_000
    loc, log_var = torch.tensor([[0.5, -2.0, 30.0]]), torch.tensor([[0.0, 3.0, -4.0]])
    z = gaussian_rsample(loc, log_var=log_var, num_samples=count, key=key_on("cpu"))[0]
    unit = ((z.double() - loc) / (0.5 * log_var).double().exp()).squeeze(1)
    assert (unit.mean(0).abs() < 5 / count**0.5).all()
    assert ((unit.var(0) - 1).abs() < 5 * (2 / count) ** 0.5).all()
