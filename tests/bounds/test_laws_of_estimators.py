"""Laws in K of the gradients of the bound's relatives, and of the other estimators of its own.

On log-log axes over K the variance of a guide's gradient is a line, and so is its ratio of signal
to noise. What the slopes must be, with v_k ~ 1/K the normalised weights and "path" and "score" the
two parts of d log w_k:

- A sum of v_k f(z_k) is a ratio of two means. It goes to the posterior's mean of f, and its
  variance falls as 1/K. That is "stl" (f the path) and "rws" (f the score). For "rws_dreg" the
  weight v_k (1 - v_k) is v_k to first order. The limit is not zero: the ratio grows as K^(1/2).
- Where the bound has a limit that depends on the guide, the mean of its gradient is of order one,
  and the variance of the part with weight 1/K or v_k is of order 1/K: the Renyi bound, whose
  "dreg" has the weight alpha v_k + (1 - alpha) v_k^2, and CIWAE with its share of the ELBO.
- MIWAE is a mean of M independent IWLBs, and PIWAE gives the guide the same gradient: in K the
  laws of the IWLB, in M those of a mean (Rainforth et al., 2018).
- The jackknife takes the 1/K term out of the mean. The first-order noise of the total derivative
  stays. The doubly reparameterised path of sample k has the weight
  v_k^2 (1/K + 2 v_k - 3 sum_j v_j^2 + ...), of order K^-3: a sum of K such terms has mean K^-2 and
  noise K^(-5/2), whether from each term or from the factor that all share.

The slopes are those of K = 32 to 256; what is left of the next order in 1/K, and the sampling error
of a variance from 10 000 replicas, 1.5 %, make up the tolerances. Keys are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_laws import setting, signal_to_noise, slope
from torch import Tensor, nn

import fastvi

pytestmark = [pytest.mark.native, pytest.mark.slow]

SAMPLES = (32, 64, 128, 256)
REPLICAS = 10_000
Criterion = Callable[[int], nn.Module]


def gradients(make: Criterion, counts: tuple[int, ...]) -> list[Tensor]:
    """Independent gradients with respect to loc [R], for each of the counts."""
    model, x, (exact_loc, log_var) = setting("cpu")
    found = []
    for count in counts:
        loc = exact_loc.expand(REPLICAS, 1).clone().requires_grad_()
        criterion = make(count)
        loss = criterion(
            loc,
            log_var.expand(REPLICAS, 1),
            lambda z: model.log_likelihood(x, z),
            key=torch.tensor([7, count]),
        )
        found.append(torch.autograd.grad(-loss.sum(), loc)[0][:, 0].double())
    return found


def bound(estimator: str, alpha: float = 0.0) -> Criterion:
    return lambda k: fastvi.IWLBLoss(k, estimator, alpha=alpha, reduction="none")


# What, its slopes of variance and of signal to noise, and how sharply the latter is known: a ratio
# of 0.03 to 0.1, as that of "iwae", to a tenth of itself or less.
LAWS = [
    ("stl", bound("stl"), -1.0, 0.5, 0.06),
    ("rws", bound("rws"), -1.0, 0.5, 0.06),
    ("rws_dreg", bound("rws_dreg"), -1.0, 0.5, 0.06),
    ("renyi-iwae", bound("iwae", 0.5), -1.0, 0.5, 0.06),
    ("renyi-dreg", bound("dreg", 0.5), -1.0, 0.5, 0.06),
    ("renyi-stl", bound("stl", 0.5), -1.0, 0.5, 0.06),
    ("renyi-dreg-near-elbo", bound("dreg", 0.9), -1.0, 0.5, 0.06),
    # Below zero the powers w^(1 - alpha) have heavier tails than w.
    ("renyi-iwae-below-zero", bound("iwae", -0.5), -1.0, 0.5, 0.1),
    ("renyi-dreg-below-zero", bound("dreg", -0.5), -1.0, 0.5, 0.1),
    (
        "ciwae-iwae",
        lambda k: fastvi.CIWAELoss(k, 0.3, estimator="iwae", reduction="none"),
        -1.0,
        0.5,
        0.06,
    ),
    (
        "ciwae-dreg",
        lambda k: fastvi.CIWAELoss(k, 0.3, estimator="dreg", reduction="none"),
        -1.0,
        0.5,
        0.06,
    ),
    (
        "miwae-iwae",
        lambda k: fastvi.MIWAELoss(k, 2, estimator="iwae", reduction="none"),
        -1.0,
        -0.5,
        0.3,
    ),
    (
        "miwae-dreg",
        lambda k: fastvi.MIWAELoss(k, 2, estimator="dreg", reduction="none"),
        -3.0,
        0.5,
        0.06,
    ),
    (
        "piwae-iwae",
        lambda k: fastvi.PIWAELoss(k, 2, estimator="iwae", reduction="none"),
        -1.0,
        -0.5,
        0.3,
    ),
    (
        "piwae-dreg",
        lambda k: fastvi.PIWAELoss(k, 2, estimator="dreg", reduction="none"),
        -3.0,
        0.5,
        0.06,
    ),
    (
        "jackknife-dreg",
        lambda k: fastvi.JackknifeLoss(k, "dreg", reduction="none"),
        -5.0,
        0.5,
        0.06,
    ),
]


# Breaks when an estimator weighs its samples by another power of v, or loses part of its gradient.
@pytest.mark.parametrize(
    ("make", "of_variance", "of_ratio", "tolerance"),
    [pytest.param(*law[1:], id=law[0]) for law in LAWS],
)
def test_the_law_over_k(make: Criterion, of_variance: float, of_ratio: float, tolerance: float):
    grads = gradients(make, SAMPLES)
    assert abs(slope([grad.var() for grad in grads], SAMPLES) - of_variance) < 0.15
    assert abs(slope([signal_to_noise(grad) for grad in grads], SAMPLES) - of_ratio) < tolerance


# Its mean, of order K^-2, drowns: what can be seen is that the noise of the IWLB is still there.
def test_the_total_gradient_of_the_jackknife_keeps_the_noise_of_the_bound():
    grads = gradients(lambda k: fastvi.JackknifeLoss(k, "iwae", reduction="none"), SAMPLES)
    assert abs(slope([grad.var() for grad in grads], SAMPLES) + 1.0) < 0.15
    plain = gradients(bound("iwae"), SAMPLES)
    for ours, theirs in zip(grads, plain, strict=True):
        assert abs(ours.var() / theirs.var() - 1.0) < 0.1


# Breaks when the groups of MIWAE share anything.
def test_the_law_over_groups():
    groups = (4, 8, 16, 32)
    grads = gradients(lambda m: fastvi.MIWAELoss(16, m, estimator="iwae", reduction="none"), groups)
    assert abs(slope([grad.var() for grad in grads], groups) + 1.0) < 0.05
    assert abs(slope([signal_to_noise(grad) for grad in grads], groups) - 0.5) < 0.1
