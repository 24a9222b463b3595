"""How many samples have to run backward: known weights, and what a diagnosis says of it."""

from __future__ import annotations

import dataclasses
import math
from unittest import TestCase

import pytest
import torch
from linear_gaussian import linear_vae

import fastvi

pytestmark = pytest.mark.native

INF, NAN = math.inf, math.nan
KEY = torch.tensor([5, 0])


@pytest.mark.parametrize(
    ("column", "growth", "expected"),
    [
        # Of n equal weights m >= n / g: 1 + n (1 / m - 1 / n) is the growth.
        ([0.0] * 1000, 1.1, 910.0),
        ([5.0] * 1000, 2.0, 500.0),
        ([0.0] * 100 + [-INF] * 100, 1.1, 91.0),
        ([0.0] + [-1e30] * 99, 1.1, 1.0),
        # Weights 8, 1, 1, 1, 1, squares 68. With m = 2 the first is certain and one of the four
        # others is chosen: 1 + 4 (4 - 1) / 68. With m = 3: 1 + 4 (2 - 1) / 68.
        ([math.log(8.0), 0.0, 0.0, 0.0, 0.0], 1.18, 2.0),
        ([math.log(8.0), 0.0, 0.0, 0.0, 0.0], 1.17, 3.0),
        ([math.log(8.0), 0.0, 0.0, 0.0, 0.0], 1.05, 4.0),
        ([-1e5] * 3, 1.1, 3.0),
        ([0.0], 1.1, 1.0),
        ([-INF] * 4, 1.1, NAN),
        ([0.0, INF, 0.0], 1.1, NAN),
        ([0.0, NAN, 0.0], 1.1, NAN),
    ],
    ids=["equal", "twice", "half", "dominated", "two", "three", "four", "far", "one", "no_weight",
         "inf", "nan"],
)  # fmt: skip
def test_needed_backward_samples_of_known_weights(column, growth, expected):
    """By the law, whose growth is given."""
    beside = torch.stack([torch.tensor(column), torch.zeros(len(column))], 1)
    # Half of what the variance may grow by is left for where the law falls short.
    given = 2 * growth - 1
    found = fastvi.needed_backward_samples(beside.view(-1, 2, 1), variance_growth=given)
    assert found.shape == (2, 1) and found.dtype == torch.float64
    torch.testing.assert_close(found[0, 0].item(), expected, rtol=0.0, atol=0.0, equal_nan=True)
    assert found[1, 0] == math.ceil(len(column) / growth)


def test_needed_backward_samples_of_no_data():
    assert fastvi.needed_backward_samples(torch.zeros(5, 0)).shape == (0,)


@pytest.mark.parametrize(
    ("growth", "error", "words"),
    [
        (1.0, ValueError, "variance_growth to be above 1 and finite, got 1.0"),
        (NAN, ValueError, "variance_growth to be"),
        ("1.1", TypeError, "variance_growth to be"),
    ],
    ids=["one", "nan", "text"],
)
def test_a_growth_that_is_none_is_named(growth, error, words):
    with pytest.raises(error, match=words):
        fastvi.needed_backward_samples(torch.zeros(5), variance_growth=growth)


def test_the_diagnosis_counts_samples_that_have_to_run_backward():
    """Equal weights need K / 1.05 of them, and few large weights are a few of any number."""
    vae, model = linear_vae()
    x = model.draw(3, torch.Generator().manual_seed(3))
    found = fastvi.diagnose(vae, x, num_samples=230, key=KEY, snr_draws=0)
    assert found.ladder == (1, 2, 5, 10, 20, 50, 100, 200, 230)
    expected = torch.tensor([1.0, 2, 5, 10, 20, 48, 96, 191, 220], dtype=torch.float64)
    torch.testing.assert_close(found.backward_samples, expected[:, None].expand(9, 3))
    assert (found.backward_speedup == 1.0).all()
    assert any(
        sentence.startswith("220 of 230 samples would have to run backward")
        and sentence.endswith("too many of them for backward_samples to save time.")
        for sentence in found.advice()
    )
    # m = 40 of 230 for one datum, 20 and 51 for the others, and all below.
    few = expected[:, None].expand(9, 3).clone()
    few[-1] = torch.tensor([40.0, 20.0, 51.0])
    saved = dataclasses.replace(found, backward_samples=few)
    assert saved.backward_speedup[-1].item() == 3 / (1 + 3 * 37 / 230)
    assert any(
        sentence.startswith("37 of 230 samples are enough in the backward pass")
        and "would take about 1/2.0 of the time" in sentence
        for sentence in saved.advice()
    )


def test_the_diagnosis_counts_what_the_loss_takes():
    """Breaks when what is advised is not what "auto" does with the same weights."""
    vae, model = linear_vae(widen=1.5, shift=1.0, latent=3)
    x = model.draw(8, torch.Generator().manual_seed(3))
    key = torch.stack((KEY[0], KEY[1]))
    found = fastvi.diagnose(vae, x, num_samples=300, key=key, snr_draws=0)
    criterion = fastvi.IWLBLoss(300, "iwae", backward_samples="auto")
    with TestCase().assertLogs("fastvi", "INFO") as said:
        vae.loss(x, criterion, key=key).backward()
    taken = float(said.records[-1].getMessage().split(" took ")[1].split(" ")[0])
    assert taken == pytest.approx(found.backward_samples[-1].mean().item(), abs=0.05)
    assert taken < 150
