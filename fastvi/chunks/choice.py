r"""Which samples run backward: a few of each datum's, so that the gradient keeps its mean.

The gradient is a sum over samples of weight times derivative. A choice S with inclusion
probabilities :math:`\pi_k` replaces a weight :math:`v_k` by :math:`v_k / \pi_k` for the chosen and
by zero for all others, whose mean is :math:`v_k`, whatever the derivatives are. With

.. math::
    \pi_k = \min(1, c\, |v_k|), \qquad \sum_k \pi_k = m

and systematic sampling, exactly m are chosen, and the new weights of a datum have the sum of the
old ones: what all samples have in common in their derivatives gets no noise.

References:
    | Importance Weighted Autoencoders (Burda et al., 2016), section 3,
    | https://arxiv.org/abs/1509.00519
    | Priority sampling for estimation of arbitrary subset sums (Duffield, Lund & Thorup, 2007),
    | https://doi.org/10.1145/1314690.1314696
    | Efficient Stream Sampling for Variance-Optimal Estimation of Subset Sums (Cohen, Duffield,
    | Kaplan, Lund & Thorup, 2009), https://arxiv.org/abs/0803.0473
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi.bounds.sums import Weighs, Weights

# The weights of so many samples are kept.
_BLOCK = 2**20
# Those of more are computed anew for each of so many parts of the data, since all of them would
# take as much memory as the log-weights do.
_PARTS = 8
# Numbers that are worked on at a time: what that takes in float64 is little beside the weights.
_SOME = 2**17
# The law of the variance takes derivatives as independent of weights. Where each datum has as many
# samples as the law asks for, what was measured is up to half as much growth again.
_LAW_FALLS_SHORT = 2.0
# What a part of the gradient follows, where it has no choice of its own.
_MAIN = "model"


class WeighedOnce:
    """The weights of some samples, computed once for the law of the variance and the choice."""

    def __init__(self, sums: Weighs, begin: int, log_w: Tensor) -> None:
        self.begin = begin
        self.found = sums.weights(begin, log_w)

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        first = offset - self.begin
        return self.found.part(first, first + len(log_w))


def weighed_once(sums: Weighs, begin: int, log_w: Tensor) -> Weighs:
    """Return the weights of samples, unless all of them are too many to be kept."""
    return WeighedOnce(sums, begin, log_w) if log_w.numel() <= _BLOCK else sums


@dataclass(frozen=True)
class Choice:
    r"""The chosen samples, m for each datum: their numbers and weights, (m, \*batch).

    If some data have more than others, they are a list, (P,), and ``data`` says of which datum
    each is.
    """

    index: Tensor
    weights: Weights
    # As the first pass has them, to be compared with.
    log_w: Tensor
    data: Tensor | None = None


def choose(
    sums: Weighs,
    begin: int,
    log_w: Tensor,
    counts: Mapping[str, Tensor],
    uniform: Tensor,
    *,
    as_list: bool,
) -> Choice:
    r"""Choose among samples, those from number ``begin`` on, with log-weights (K, \*batch).

    ``counts``, (\*batch,), has how many of each datum's are chosen for a part of the gradient that
    needs a choice of its own: ``"model"``, and perhaps ``"guide"`` or ``"score"``. Beside these
    and the weights the choice depends on ``uniform`` alone, (parts, \*batch), between 0 and
    1. ``as_list`` keeps no place for what other data have more of.
    """
    batch = log_w.shape[1:]
    chosen, inverses = [], {}
    for (part, count), places in zip(counts.items(), _table(uniform), strict=True):
        width, count = int(count.max()), count.flatten()
        index = torch.empty(width, places.numel(), dtype=torch.int64, device=log_w.device)
        inverse = torch.empty_like(index, dtype=torch.float64)
        for columns, measure in _measures(sums, begin, log_w, part):
            found = included(measure, count[columns], places[columns], width)
            index[:, columns], inverse[:, columns] = (each.t() for each in found)
        chosen.append(index.view(width, *batch))
        inverses[part] = inverse.view(width, *batch)
    index = torch.cat(chosen) if len(chosen) > 1 else chosen[0]
    weights = _adjusted(_weights_at(sums, begin, log_w, index), inverses)
    log_w = log_w.gather(0, index)
    if not as_list:
        return Choice(begin + index, weights, log_w)
    used = _table(torch.cat(list(inverses.values()))) != 0
    # A list of none would have no graph.
    used[0, 0] |= ~used.any()
    data = torch.arange(used.shape[1], device=index.device).expand(used.shape)
    index, log_w, data = (_table(each)[used] for each in (begin + index, log_w, data))
    return Choice(index, weights.each(lambda w: _table(w)[used]), log_w, data)


def included(measure: Tensor, count: Tensor, uniform: Tensor, width: int) -> tuple[Tensor, Tensor]:
    r"""Choose some of K samples by what they measure.

    Args:
        measure: (N, K), at least 0.
        count: m, (N,), from 1 to ``width``.
        uniform: (N,), between 0 and 1.
        width: the places for the chosen, at most K.

    Returns:
        The numbers of the chosen, (N, width), and 1 / pi of each: those that come with certainty
        first. Places that are left have a zero for 1 / pi: those beyond m, and those beyond the
        samples that measure more than zero.
    """
    highest, numbers = _highest(measure, width)
    rest = torch.zeros_like(highest[:, :1])
    for others in _without(measure, numbers, torch.ones_like(numbers, dtype=torch.bool)):
        rest += others.sum(1, keepdim=True)
    # What is left after each of the highest: summed from the small end, so that nothing cancels.
    left = torch.cat([rest + highest.flip(1).cumsum(1).flip(1), rest], 1)
    # The largest come with certainty, as long as their share of the places is more than one.
    steps = torch.arange(width, device=measure.device)
    is_large = ((count[:, None] - steps) * highest >= left[:, :-1]) & (highest > 0)
    is_large = is_large.cumprod(1) == 1
    certain = is_large.sum(1, keepdim=True)
    # The others have the places that are left, in proportion to what they measure.
    total = torch.zeros_like(rest)
    for upto in _running(measure, numbers, is_large):
        total = upto[:, -1:]
    number = count[:, None] - certain
    place = (uniform[:, None] + steps - certain) * (total / number.clamp(min=1))
    # Below the whole, and so at a sample that measures something, however the sums are rounded.
    place = place.clamp(min=0.0).minimum(torch.nextafter(total, torch.zeros_like(total)))
    chosen = torch.zeros_like(numbers)
    for upto in _running(measure, numbers, is_large):
        chosen += torch.searchsorted(upto, place, right=True).clamp_(max=upto.shape[1] - 1)
    chosen.clamp_(max=measure.shape[1] - 1)
    inverse = total / (number * measure.gather(1, chosen).double())
    is_certain = steps < certain
    chosen = torch.where(is_certain, numbers, chosen)
    inverse = inverse.masked_fill(is_certain, 1.0)
    # A place that nobody takes: with the weight of nobody, at a sample that is possible.
    empty = (steps >= count[:, None]) | ((total == 0.0) & ~is_certain)
    return torch.where(empty, numbers[:, :1], chosen), inverse.masked_fill(empty, 0.0)


def _highest(measure: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the highest of each row in float64, and where they are: from some columns at a time,
    as topk copies what it is given, with its places.
    """
    found = []
    for begin in range(0, measure.shape[1], _SOME):
        block = measure[:, begin : begin + _SOME]
        values, places = block.topk(min(width, block.shape[1]), dim=1)
        found.append((values.double(), places + begin))
    if len(found) == 1:
        return found[0]
    values, numbers = (torch.cat(each, 1) for each in zip(*found, strict=True))
    highest, places = values.topk(width, dim=1)
    return highest, numbers.gather(1, places)


def _without(measure: Tensor, numbers: Tensor, out: Tensor) -> Iterator[Tensor]:
    """Some columns at a time, in float64, with zeros for those of ``numbers`` that are ``out``.

    A column of zeros comes after them.
    """
    for begin in range(0, measure.shape[1], _SOME):
        end = min(begin + _SOME, measure.shape[1])
        _, inside = in_block(numbers, begin, end)
        block = measure.new_empty(len(measure), end - begin + 1, dtype=torch.float64)
        block[:, :-1] = measure[:, begin:end]
        block[:, -1] = 0.0
        yield block.scatter_(1, torch.where(out & inside, numbers - begin, end - begin), 0.0)


def _running(measure: Tensor, numbers: Tensor, out: Tensor) -> Iterator[Tensor]:
    """The running sums of these columns; the last number of a block is the one before it again."""
    upto: Tensor | None = None
    for block in _without(measure, numbers, out):
        if upto is not None:
            block[:, 0] += upto[:, -1]
        upto = block.cumsum_(1)
        yield upto


def growth(measure: Tensor, count: Tensor) -> Tensor:
    r"""Predict by what the variance of a gradient over the samples grows, (N,).

    .. math::
        1 + \frac{\sum_k v_k^2 (1 / \pi_k - 1)}{\sum_k v_k^2}

    as if the derivatives of a datum's samples were independent of their weights and each other: of
    weights that are all alike 1 + ESS (1 / m - 1 / K).
    """
    return _Law(measure).growth(count[:, None])[:, 0]


def enough(sums: Weighs, begin: int, log_w: Tensor, part: str, most: float) -> Tensor:
    r"""Return how many samples to choose, (\*batch,), for a variance of at most ``most`` times.

    So that it is that where the law falls short, too, the law may say half of the growth.
    """
    most = 1.0 + (most - 1.0) / _LAW_FALLS_SHORT
    measures = _measures(sums, begin, log_w, part)
    found = [_enough(measure.double(), most) for _, measure in measures]
    return torch.cat(found).view(log_w.shape[1:])


def _enough(measure: Tensor, most: float) -> Tensor:
    law = _Law(measure)
    low = torch.ones_like(law.size, dtype=torch.int64)
    high = torch.full_like(low, measure.shape[1])
    for _ in range(measure.shape[1].bit_length()):
        middle = (low + high) // 2
        does = law.growth(middle) <= most
        low = torch.where(does, low, (middle + 1).minimum(high))
        high = torch.where(does, middle, high)
    return high[:, 0]


class _Law:
    """The variance of the chosen samples' gradient, from (N, K) measures."""

    def __init__(self, measure: Tensor) -> None:
        ordered = measure.sort(1, descending=True).values
        end = torch.zeros_like(ordered[:, :1])

        def after(values: Tensor) -> Tensor:
            return torch.cat([values.flip(1).cumsum(1).flip(1), end], 1)

        self.left, self.squares = after(ordered), after(ordered.square())
        self.size = self.squares[:, :1]
        steps = torch.arange(measure.shape[1], device=measure.device)
        # From how many chosen ones on each is certain to be one.
        share = torch.where(ordered > 0, self.left[:, :-1] / ordered, torch.inf)
        self.needed = (steps + share).contiguous()

    def growth(self, count: Tensor) -> Tensor:
        """Of (N, 1) numbers of samples."""
        certain = torch.searchsorted(self.needed, count.double(), right=True)
        others = (count - certain).clamp(min=1)
        left, squares = (each.gather(1, certain) for each in (self.left, self.squares))
        return 1.0 + torch.where(self.size > 0, (left.square() / others - squares) / self.size, 0.0)


# ---- weights, some at a time --------------------------------------------------------------------
def _measures_of(sums: Weighs, begin: int, log_w: Tensor, part: str, columns: slice) -> Tensor:
    """Return what the samples of some data count, (K, N)."""
    if log_w.numel() <= _BLOCK:
        return _table(_part(sums.weights(begin, log_w), part))[:, columns].abs()
    found = log_w.new_empty(len(log_w), columns.stop - columns.start)
    for place in _rows(log_w):
        weights = sums.weights(begin + place.start, log_w[place])
        found[place] = _table(_part(weights, part))[:, columns]
    return found.abs_()


def _part(weights: Weights, part: str) -> Tensor:
    found = getattr(weights, part)
    assert isinstance(found, Tensor)
    return found


def _measures(sums: Weighs, begin: int, log_w: Tensor, part: str) -> Iterator[tuple[slice, Tensor]]:
    """Some data at a time: their columns, and what their samples count, (N, K)."""
    data = log_w.shape[1:].numel()
    some = data if log_w.numel() <= _BLOCK else -(-data // _PARTS)
    step = max(1, _SOME // max(1, len(log_w)))
    for first in range(0, data, some):
        upto = min(data, first + some)
        found = _measures_of(sums, begin, log_w, part, slice(first, upto))
        for begins in range(0, upto - first, step):
            columns = slice(begins, min(upto - first, begins + step))
            yield (
                slice(first + columns.start, first + columns.stop),
                found[:, columns].t().contiguous(),
            )


def _table(values: Tensor) -> Tensor:
    r"""Return values of samples, (K, \*batch), with one column for each datum."""
    return values.reshape(len(values), values.shape[1:].numel())


def _rows(log_w: Tensor) -> Iterator[slice]:
    step = max(1, _SOME // max(1, log_w[0].numel()))
    for first in range(0, len(log_w), step):
        yield slice(first, min(first + step, len(log_w)))


def _weights_at(sums: Weighs, begin: int, log_w: Tensor, index: Tensor) -> Weights:
    """Return the weights of some samples of each datum."""
    found: Weights | None = None
    for place in _rows(log_w):
        here, inside = in_block(index, place.start, place.stop)
        block = sums.weights(begin + place.start, log_w[place])
        part = block.each(functools.partial(_gathered, here))
        found = part if found is None else part.where(inside, found)
    assert found is not None
    return found


def in_block(index: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Return the places of chosen samples in a block of all, and which of them are in it."""
    return (index - begin).clamp(0, end - begin - 1), (index >= begin) & (index < end)


def _gathered(here: Tensor, weights: Tensor) -> Tensor:
    return weights.gather(0, here)


def _adjusted(weights: Weights, inverses: dict[str, Tensor]) -> Weights:
    """Divide the weights of the chosen by the probabilities of their choice.

    A part of the gradient with a choice of its own has no weight at the samples of another.
    """
    factors = {}
    for part in inverses:
        factors[part] = torch.cat(
            [
                inverse if name == part else torch.zeros_like(inverse)
                for name, inverse in inverses.items()
            ]
        )

    def divided(values: Tensor, part: str) -> Tensor:
        factor = factors.get(part, factors[_MAIN])
        # Not zero times what is infinite, where nothing was chosen.
        return torch.where(factor == 0, 0.0, values.double() * factor).to(values.dtype)

    model = divided(weights.model, _MAIN)
    same = weights.guide is weights.model and "guide" not in factors
    guide = model if same else divided(weights.guide, "guide")
    if weights.score is None:
        return Weights(weights.bound, model, guide)
    same = weights.score is weights.model and "score" not in factors
    return Weights(weights.bound, model, guide, model if same else divided(weights.score, "score"))
