"""Simulation-based calibration: the truth is as likely to be anywhere in the posterior."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import LogNormal, constraints

import fastvi

DATA_SETS, EACH, DRAWS, BINS = 1000, 5, 99, 10


def ranks(squeeze: float) -> Tensor:
    """Of each data set's truth among draws of its posterior, by one fit of all of them."""
    torch.manual_seed(0)
    truth = LogNormal(0.3, 0.7).sample((DATA_SETS,)).double()
    x = LogNormal(truth.log(), 0.5).sample((EACH,))

    def model(z, x: Tensor) -> dict:
        rate = z["rate"]
        density = LogNormal(rate.log()[:, None], 0.5).log_prob(x).sum((1, 2))
        return {"rate": LogNormal(0.3, 0.7), "x": density}

    guide = fastvi.guides.MeanFieldGaussian(
        {"rate": (DATA_SETS,)}, {"rate": constraints.positive}, dtype=torch.float64
    )
    objective = fastvi.objectives.ELBO(4, estimator="stl")
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    svi = fastvi.SVI(lambda z: model(z, x), guide, optimizer, objective)
    svi.fit(epochs=200)
    with torch.no_grad():
        guide.log_scale.add_(torch.tensor(squeeze).log())
    return (guide.sample(DRAWS)["rate"] < truth).sum(0)


def p_value(of: Tensor) -> float:
    counts = torch.histc(of.float(), BINS, 0, DRAWS + 1)
    return float(stats.chisquare(counts.numpy()).pvalue)


def test_ranks_are_uniform():
    assert p_value(ranks(1.0)) > 0.01


@pytest.mark.parametrize("squeeze", [0.7, 1.4], ids=["too narrow", "too wide"])
def test_a_wrong_posterior_is_noticed(squeeze: float):
    """The control."""
    assert p_value(ranks(squeeze)) < 1e-6
