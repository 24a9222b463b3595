"""The numbers of latent features, against torch's and SciPy's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

import fastvi
from fastvi.diagnostics.latents import LatentFeatures, measure_latents

integrate = pytest.importorskip("scipy.integrate")
pytestmark = pytest.mark.native


class Given(nn.Module):
    """An encoder that returns what it is given: each datum is (loc, log_var)."""

    def forward(self, x):
        return x.chunk(2, -1)


def measured(loc, scale, prior=None) -> LatentFeatures:
    x = torch.cat((loc, 2 * scale.log()), -1)
    return measure_latents(fastvi.VAE(Given(), nn.Linear(loc.shape[-1], 3), prior=prior), x)


def ugly(n=40, d=3):
    """Means far apart beside narrow posteriors, wide ones, and the prior itself."""
    loc = torch.randn(n, d) * torch.tensor([3.0, 0.5, 0.0])
    scale = torch.rand(n, d) * torch.tensor([0.02, 0.9, 0.0]) + torch.tensor([1e-3, 0.3, 1.0])
    return loc, scale


@pytest.mark.parametrize("given", [False, True], ids=["standard prior", "prior"])
def test_the_divergence_of_each_feature_is_torch_s(given):
    loc, scale = ugly()
    prior = (torch.tensor([0.3, -1.0, 0.0]), torch.tensor([0.2, 1.0, -1.0])) if given else None
    found = measured(loc, scale, prior)
    p = Normal(prior[0], (0.5 * prior[1]).exp()) if given else Normal(0.0, 1.0)
    p = Normal(p.loc.double(), p.scale.double())
    # The encoder's log-variance, which is rounded to float32.
    scale = (0.5 * (2 * scale.log()).double()).exp()
    expected = kl_divergence(Normal(loc.double(), scale), p.expand(loc.shape))
    torch.testing.assert_close(found.kl, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.activity, loc.double().var(0))
    assert found.active.tolist() == [True, True, False]


def test_the_sum_over_features_is_the_elbo_s():
    torch.manual_seed(1)
    vae = fastvi.VAE(nn.Linear(6, 8), nn.Linear(4, 6))
    x = torch.rand(50, 6)
    loc, log_var = vae.encode(x)
    found = measure_latents(vae, x)
    expected = fastvi.ops.gaussian_kl(loc, log_var).double()
    torch.testing.assert_close(found.kl.sum(1), expected, rtol=1e-5, atol=1e-6)


def test_the_aggregated_posterior_is_scipy_s_integral():
    loc, scale = ugly(12)
    scale = scale.clamp(min=0.05)
    prior = (torch.tensor([0.5, 0.0, 0.2]), torch.tensor([1.0, -0.5, 0.0]))
    found = measured(loc, scale, prior)
    for d in range(3):
        p = Normal(found.prior_loc[d], found.prior_scale[d])

        def integrand(z, d=d, p=p):
            z = torch.tensor([z], dtype=torch.float64)
            q = found.density(d, z)
            return 0.0 if q == 0 else (q * (q.log() - p.log_prob(z))).item()

        points = sorted(found.loc[:, d].tolist())
        expected, _ = integrate.quad(
            integrand, points[0] - 8, points[-1] + 8, points=points, limit=2000
        )
        # The quadrature of 32 nodes over a mixture whose parts do not overlap or do.
        assert found.marginal_kl[d].item() == pytest.approx(expected, abs=2e-3)


def test_the_density_is_a_density():
    loc, scale = ugly()
    found = measured(loc, scale)
    z = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    for d in (0, 1, 2):
        assert torch.trapezoid(found.density(d, z), z).item() == pytest.approx(1.0, abs=1e-6)


def test_a_datum_that_is_the_prior_tells_nothing():
    found = measured(torch.zeros(5, 2), torch.ones(5, 2))
    torch.testing.assert_close(found.kl, torch.zeros(5, 2, dtype=torch.float64))
    torch.testing.assert_close(found.marginal_kl, torch.zeros(2, dtype=torch.float64))
    assert not found.active.any()


def test_data_far_apart_that_are_alike_hold_no_information():
    """Where q is the same for all data, the whole divergence is the aggregated posterior's."""
    found = measured(torch.full((9, 1), 1.5), torch.full((9, 1), 0.4))
    torch.testing.assert_close(found.marginal_kl, found.kl[0], rtol=1e-9, atol=1e-9)


def test_information_is_at_most_the_logarithm_of_the_data():
    loc, scale = ugly(30)
    found = measured(loc, scale)
    information = found.kl.mean(0) - found.marginal_kl
    assert (information > -1e-9).all() and (information < math.log(30) + 1e-6).all()
    # Narrow posteriors apart tell which datum it was.
    assert information[0] > math.log(30) - 0.7


def test_one_datum_has_no_activity():
    found = measured(torch.zeros(1, 2), torch.ones(1, 2))
    assert found.activity.isnan().all() and not found.active.any()


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        ([1.0], TypeError, "x"),
        (torch.zeros(4), ValueError, "shape .N, .event."),
        (torch.zeros(0, 4), ValueError, "N at least 1"),
    ],
    ids=["a list", "one dimension", "no data"],
)
def test_bad_data(x, error, says):
    with pytest.raises(error, match=says):
        measure_latents(fastvi.VAE(Given(), nn.Linear(2, 3)), x)


def test_models_that_have_no_pair_are_refused():
    prior = torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2), 1.0), 1)
    with pytest.raises(ValueError, match="expected a prior that is a pair"):
        measure_latents(fastvi.VAE(Given(), nn.Linear(2, 3), prior=prior), torch.zeros(4, 4))

    def encoder(x):
        return torch.distributions.Independent(Normal(x, 1.0), 1)

    with pytest.raises(TypeError, match="expected encoder.x. to be .loc, log_var."):
        measure_latents(fastvi.VAE(encoder, nn.Linear(2, 3)), torch.zeros(4, 2))
