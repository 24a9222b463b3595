"""The tail of the weights that a diagnosis keeps, and the Pareto distribution fitted to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastvi
from fastvi.diagnostics.diagnosis import diagnose
from fastvi.diagnostics.measures import fit_pareto, tail_size

pytestmark = pytest.mark.native


@pytest.mark.parametrize("size", [5, 40, 300], ids="M{}".format)
@pytest.mark.parametrize("k", [-0.4, 0.2, 1.1], ids="k{}".format)
def test_shape_and_scale_are_arviz_s(size, k):
    base = pytest.importorskip("arviz_stats.base.diagnostics")._DiagnosticsBase
    uniform = torch.rand(size, 4, dtype=torch.float64)
    excess = (2.5 * (uniform**-k - 1) / k).sort(0).values
    shape, scale = fit_pareto(excess)
    for column, a, b in zip(excess.T.numpy(), shape, scale, strict=True):
        np.testing.assert_allclose(base._gpdfit(column), (a.item(), b.item()), rtol=1e-9)


def test_the_scale_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    excess = stats.genpareto.rvs(0.3, scale=1.7, size=20_000, random_state=0)
    shape, scale = fit_pareto(torch.tensor(np.sort(excess))[:, None])
    # Of 20 000 numbers: three standard errors.
    assert shape.item() == pytest.approx(0.3, abs=3 * 1.3 / 20_000**0.5)
    assert scale.item() == pytest.approx(1.7, abs=3 * 1.7 * 2.7**0.5 / 20_000**0.5)


@pytest.mark.parametrize("num_samples", [1, 20, 25, 300], ids="K{}".format)
def test_the_tail_gives_k_hat_and_the_bound_again(num_samples):
    vae = fastvi.VAE(nn.Linear(9, 4), nn.Linear(2, 9))
    x, key = torch.rand(6, 9).round(), fastvi.ops.new_key()
    found = diagnose(vae, x, num_samples=num_samples, key=key, snr_draws=0)
    size = tail_size(num_samples)
    assert found.tail.shape == (size + 1, 6)
    with torch.no_grad():
        log_w = vae.log_weights(x, num_samples, key=key).double()
    largest = log_w.sort(0, descending=True).values[: size + 1]
    torch.testing.assert_close(found.tail + found.bounds[-1], largest)
    if size >= 5:
        weights = found.tail.exp().flip(0)
        k, _ = fit_pareto(weights[1:] - weights[0])
        torch.testing.assert_close(k, found.pareto_k, rtol=1e-6, atol=1e-8)
