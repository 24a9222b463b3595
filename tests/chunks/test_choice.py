"""Which samples run backward: the probabilities of a choice, and the weights of the chosen."""

from __future__ import annotations

import pytest
import torch
from choices import probabilities, steps
from torch import Tensor

from fastvi.bounds.weighers import Groups, Jackknife, Renyi
from fastvi.chunks.choice import choose, enough, growth, included
from fastvi.chunks.few import uniform_of

DOUBLE = torch.float64
WEIGHTS = {
    "alike": torch.full((12,), 1 / 12, dtype=DOUBLE),
    "one dominates": torch.tensor([1e-9] * 5 + [1.0] + [1e-9] * 6, dtype=DOUBLE),
    "one has all": torch.tensor([0.0] * 5 + [1.0] + [0.0] * 6, dtype=DOUBLE),
    "two have all": torch.tensor([0.0, 0.5, 0.0, 0.5] + [0.0] * 8, dtype=DOUBLE),
    "ties": torch.tensor([0.3, 0.3, 0.3] + [0.1 / 9] * 9, dtype=DOUBLE),
    "spread": torch.linspace(-4, 4, 12, dtype=DOUBLE).softmax(0),
    "far apart": torch.linspace(0, -600, 12, dtype=DOUBLE).exp(),
}


def chances(measure: Tensor, count: int) -> Tensor:
    """How often each sample is chosen, exactly: the length of the u at which it is."""
    ends = torch.cat([torch.tensor([0.0, 1.0], dtype=DOUBLE), steps(measure, count)]).sort().values
    middles, lengths = (ends[1:] + ends[:-1]) / 2, ends.diff()
    width = measure.expand(len(middles), -1)
    index, inverse = included(width, torch.full((len(middles),), count), middles, count)
    found = torch.zeros_like(measure)
    for chosen, taken, length in zip(index, inverse, lengths, strict=True):
        found.index_add_(0, chosen[taken > 0], length.expand(int((taken > 0).sum())))
    return found


@pytest.mark.parametrize("count", [1, 2, 5, 11, 12], ids=lambda m: f"{m} of 12")
@pytest.mark.parametrize("name", WEIGHTS, ids=lambda name: name)
def test_probabilities_of_a_choice(name: str, count: int):
    """Each sample is chosen as often as min(1, c w) says, and the weights keep their sum."""
    measure = WEIGHTS[name]
    expected = probabilities(measure, count)
    torch.testing.assert_close(chances(measure, count), expected, rtol=1e-9, atol=1e-9)
    for u in (2.0**-31, 0.3, 1.0 - 2.0**-31):
        index, inverse = included(
            measure[None], torch.tensor([count]), torch.tensor([u], dtype=DOUBLE), count
        )
        adjusted = measure[index] * inverse
        # A sum of m numbers: m roundings.
        torch.testing.assert_close(adjusted.sum(), measure.sum(), rtol=12 * 2.0**-52, atol=0.0)
        taken = index[inverse > 0]
        assert len(taken.unique()) == len(taken) == min(count, int((measure > 0).sum()))
        torch.testing.assert_close(
            inverse[inverse > 0], expected[taken].reciprocal(), rtol=1e-12, atol=0.0
        )


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    """The highest of many samples are looked for in blocks, and weights are made in blocks."""
    torch.manual_seed(0)
    log_w = 2 * torch.randn(300, 5, dtype=DOUBLE)
    counts = {"model": torch.tensor([1, 7, 40, 120, 300])}
    for weigher in (Renyi(300, "iwae"), Groups(3, 100, "dreg")):
        sums = gathered(weigher, log_w)
        uniform = torch.linspace(0.1, 0.9, 5, dtype=DOUBLE)[None]
        expected = choose(sums, 0, log_w, counts, uniform, as_list=False)
        for block in (8 * 16, 8 * 299, 8 * 300):
            monkeypatch.setattr("fastvi.chunks.choice._BLOCK", block)
            found = choose(sums, 0, log_w, counts, uniform, as_list=False)
            assert torch.equal(found.index, expected.index)
            torch.testing.assert_close(found.weights.model, expected.weights.model)
        monkeypatch.undo()


def test_data_have_counts_of_their_own():
    measure = torch.stack(list(WEIGHTS.values()))
    count = torch.tensor([1, 2, 3, 4, 5, 6, 7])
    index, inverse = included(measure, count, torch.full((7,), 0.4, dtype=DOUBLE), 7)
    assert index.shape == (7, 7)
    for row, number in enumerate(count.tolist()):
        alone, of_it = included(
            measure[row, None], count[row, None], torch.tensor([0.4], dtype=DOUBLE), number
        )
        assert torch.equal(index[row, :number], alone[0])
        torch.testing.assert_close(inverse[row, :number], of_it[0], rtol=1e-14, atol=0.0)
        assert not inverse[row, number:].any()


def test_nothing_is_chosen_of_nothing_and_nan_stays():
    zero = torch.zeros(1, 5, dtype=DOUBLE)
    index, inverse = included(zero, torch.tensor([3]), torch.tensor([0.5]), 3)
    assert not inverse.any() and bool((index < 5).all())
    _, inverse = included(zero * torch.nan, torch.tensor([3]), torch.tensor([0.5]), 3)
    assert bool(inverse.isnan().all())


def gathered(weigher, log_w: Tensor, *, signals: bool = False):
    sums = weigher.sums(signals=signals)
    sums.add(0, log_w)
    sums.bound()
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg", "rws", "rws_dreg"])
def test_adjusted_weights_sum_to_one(estimator: str, dtype: torch.dtype):
    torch.manual_seed(0)
    log_w = 3 * torch.randn(200, 4, 3, dtype=dtype)
    counts = {"model": torch.full((4, 3), 20)}
    found = choose(
        gathered(Renyi(200, estimator), log_w), 0, log_w, counts, torch.rand(1, 4, 3).double(),
        as_list=False,
    )  # fmt: skip
    assert found.index.shape == found.weights.model.shape == (20, 4, 3)
    # Of weights that are themselves rounded, and of the sum.
    budget = 40 * torch.finfo(dtype).eps
    total = found.weights.model.double().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=budget, atol=budget)


def test_parts_of_the_gradient_have_choices_of_their_own():
    torch.manual_seed(0)
    log_w = 3 * torch.randn(24, 5, dtype=DOUBLE)
    counts = {"model": torch.full((5,), 4), "guide": torch.full((5,), 3)}
    weigher = Groups(6, 4, "dreg", model_takes_all=True)
    found = choose(
        gathered(weigher, log_w), 0, log_w, counts, torch.rand(2, 5).double(), as_list=False
    )
    assert not found.weights.model[4:].any() and not found.weights.guide[:4].any()
    whole = gathered(weigher, log_w).weights(0, log_w)
    for part, rows in (("model", slice(0, 4)), ("guide", slice(4, 7))):
        kept = getattr(found.weights, part)[rows].sum(0)
        torch.testing.assert_close(kept, getattr(whole, part).sum(0), rtol=1e-14, atol=0.0)


def test_blocks_of_samples_and_of_data_are_as_all_at_once(monkeypatch: pytest.MonkeyPatch):
    from fastvi.chunks import choice

    torch.manual_seed(0)
    log_w = 2 * torch.randn(64, 7, dtype=DOUBLE)
    log_w[3] = -torch.inf
    uniform = torch.rand(2, 7).double()
    for weigher in (Renyi(64, "dreg"), Groups(8, 8, "iwae"), Jackknife(64, "dreg")):
        counts = {"model": torch.arange(1, 8), "guide": torch.full((7,), 3)}
        results = []
        for block, some in ((2**20, 2**17), (96, 96), (96, 12)):
            monkeypatch.setattr(choice, "_BLOCK", block)
            monkeypatch.setattr(choice, "_SOME", some)
            results.append(
                choose(gathered(weigher, log_w), 0, log_w, counts, uniform, as_list=False)
            )
        whole, *others = results
        for blocks in others:
            assert torch.equal(whole.index, blocks.index)
            assert torch.equal(whole.log_w, blocks.log_w)
            for part in ("model", "guide"):
                kept, expected = (getattr(each.weights, part) for each in (blocks, whole))
                torch.testing.assert_close(kept, expected, rtol=1e-13, atol=1e-300)


def test_a_list_has_no_place_for_what_other_data_have_more_of():
    torch.manual_seed(0)
    log_w = 2 * torch.randn(50, 2, 3, dtype=DOUBLE)
    counts = {"model": torch.arange(1, 7).view(2, 3)}
    of_all = gathered(Renyi(50, "iwae"), log_w)
    uniform = torch.rand(1, 2, 3).double()
    found = choose(of_all, 0, log_w, counts, uniform, as_list=True)
    assert found.data is not None and len(found.index) == len(found.data) == 21
    assert found.data.bincount().tolist() == [1, 2, 3, 4, 5, 6]
    total = torch.zeros(6, dtype=DOUBLE).index_add(0, found.data, found.weights.model)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0.0)
    assert torch.equal(found.log_w, log_w.flatten(1)[found.index, found.data])


# ---- how many are enough ------------------------------------------------------------------------
@pytest.mark.parametrize("name", WEIGHTS, ids=lambda name: name)
def test_growth_is_that_of_the_formula(name: str):
    measure = WEIGHTS[name]
    count = torch.arange(1, 13)
    found = growth(measure.expand(12, -1), count)
    for number in count.tolist():
        chance = probabilities(measure, number)
        of_all = measure.square().sum()
        few = torch.where(measure > 0, measure.square() / chance.clamp(min=1e-300), 0.0).sum()
        torch.testing.assert_close(found[number - 1], few / of_all, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("most", [1.01, 1.1, 2.0])
def test_enough_is_the_least_number_that_is(most: float):
    torch.manual_seed(0)
    log_w = torch.tensor([0.1, 1.0, 3.0, 30.0], dtype=DOUBLE) * torch.randn(300, 4, dtype=DOUBLE)
    sums = gathered(Renyi(300, "iwae"), log_w)
    # Half of what the variance may grow by is left for where the law falls short.
    found = enough(sums, 0, log_w, "model", 2 * most - 1)
    measure = log_w.softmax(0).t().contiguous()
    assert bool((growth(measure, found) <= most).all())
    less = (found - 1).clamp(min=1)
    assert bool(((growth(measure, less) > most) | (found == 1)).all())
    # Weights that are alike need most of the samples, and one that has all the weight one.
    assert found[0] > 100 and found[-1] < 3


# ---- the number that it depends on --------------------------------------------------------------
def test_uniform_numbers_are_uniform_and_of_the_key():
    key = torch.tensor([3, 4])
    found = uniform_of(key, 2, 5, torch.Size([4000, 2]))
    assert found.shape == (2, 4000, 2) and found.dtype == DOUBLE
    assert bool(((found >= 0) & (found < 1)).all())
    assert torch.equal(found, uniform_of(key, 2, 5, torch.Size([4000, 2])))
    assert not torch.equal(found, uniform_of(torch.tensor([3, 5]), 2, 5, torch.Size([4000, 2])))
    # 16,000 numbers: the mean and the mean square within five standard errors.
    assert abs(float(found.mean()) - 1 / 2) < 5 * (1 / 12 / 16000) ** 0.5
    assert abs(float(found.square().mean()) - 1 / 3) < 5 * (4 / 45 / 16000) ** 0.5
