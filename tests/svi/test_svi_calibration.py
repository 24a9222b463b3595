"""Simulation-based calibration: the truth is as likely to be anywhere in the posterior."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import LogNormal, constraints

import fastvi

DATA_SETS, EACH, DRAWS, BINS = 1000, 5, 99, 10


class Fitted(NamedTuple):
    guide: fastvi.guides.MeanFieldGaussian
    truth: Tensor


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    """One fit of all data sets."""
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
    return Fitted(guide, truth)


def p_value(fitted: Fitted, squeeze: float) -> float:
    """Of each truth's rank among draws of its posterior, after the scales were multiplied."""
    guide = copy.deepcopy(fitted.guide)
    with torch.no_grad():
        guide.log_scale.add_(torch.tensor(squeeze).log())
    ranks = (guide.sample(DRAWS)["rate"] < fitted.truth).sum(0)
    counts = torch.histc(ranks.float(), BINS, 0, DRAWS + 1)
    return float(stats.chisquare(counts.numpy()).pvalue)


@pytest.mark.slow
def test_ranks_are_uniform(fitted: Fitted):
    assert p_value(fitted, 1.0) > 0.01


@pytest.mark.parametrize("squeeze", [0.7, 1.4], ids=["too narrow", "too wide"])
def test_a_wrong_posterior_is_noticed(fitted: Fitted, squeeze: float):
    """The control."""
    assert p_value(fitted, squeeze) < 1e-6
