"""What bounds need of all log-weights, gathered chunk by chunk and over ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastvi.bounds.estimators import Estimator
from fastvi.ops._call import exporting

# Log-weights whose jackknife is worked out at a time.
_BLOCK = 2**15


@dataclass(frozen=True)
class Weights:
    r"""The bound, (\*batch,), and the samples' weights, (K, \*batch) each, without a graph."""

    bound: Tensor
    # Of log p(x, z) for the model: the gradient of the bound by the log-weights.
    model: Tensor
    # Of the derivative of the log-weights for the guide: along the path, or the total one.
    guide: Tensor
    # What the log-probability of samples without a path is credited with, where that was asked for.
    score: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Weights:
        """Apply ``change`` to every part; parts that are the same tensor are changed once."""
        model = change(self.model)
        guide = model if self.guide is self.model else change(self.guide)
        if self.score is None:
            return Weights(self.bound, model, guide)
        score = model if self.score is self.model else change(self.score)
        return Weights(self.bound, model, guide, score)

    def where(self, condition: Tensor, other: Weights) -> Weights:
        """Return these weights where a condition holds, and those of ``other`` elsewhere."""
        others = {id(self.model): other.model, id(self.guide): other.guide}
        if other.score is not None:
            others[id(self.score)] = other.score
        return self.each(lambda weights: torch.where(condition, weights, others[id(weights)]))

    def part(self, begin: int, end: int) -> Weights:
        """Return the weights of a range of samples."""
        return self.each(lambda weights: weights[begin:end])

    def is_lost(self, dtype: torch.dtype) -> bool:
        """Tell whether ``ratio`` times a weight of the model would lose the guide's in a type."""
        least = torch.finfo(dtype).tiny ** 0.5 * self.guide.abs()
        return bool((self.model.abs() < least).any())

    @property
    def ratio(self) -> Tensor:
        """The factor that turns a gradient with the model's weight into one with the guide's."""
        return torch.where(self.model == 0, 0.0, self.guide / self.model)


def weights_for(estimator: Estimator, alpha: float, bound: Tensor, model: Tensor) -> Weights:
    """Return an estimator's weights of the bound of order alpha, from the normalised ones."""
    if estimator.gradient == "score":
        # The wake phase: the guide ascends sum_k v_k log q(z_k), at fixed samples and weights.
        return Weights(bound, model, torch.zeros_like(model), model)
    guide = model
    if estimator.path_weight is not None:
        guide = model * estimator.path_weight(model, alpha)
    return Weights(bound, model, guide)


class Ranks(Protocol):
    """The processes that share the samples."""

    def maximum(self, values: Tensor) -> Tensor:
        """Return the maximum over all ranks."""

    def add(self, total: Tensor) -> Tensor:
        """Return the sum over all ranks."""


class Weighs(Protocol):
    """Something that knows the bound of all samples, and weighs any of them."""

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        """Compute the weights of samples for model and guide, once the bound is known."""


class Sums(Weighs, Protocol):
    """What a bound needs of all log-weights, gathered chunk by chunk."""

    def add(self, offset: int, log_w: Tensor) -> None:
        r"""Take in the samples from number ``offset`` on, log-weights of shape (C, \*batch)."""

    def meet(self, ranks: Ranks) -> None:
        """Take in the sums of the other ranks."""

    def bound(self) -> Tensor:
        r"""Compute the bound, shape (\*batch,), once all samples are in."""


class LogSums:
    """Several running log-sum-exps: a maximum and a sum for each, in float64."""

    def __init__(self, count: int, like: Tensor) -> None:
        lowest = torch.finfo(torch.float64).min
        shape = (count, *like.shape[1:])
        # A shift is finite, so that an impossible weight is exp(-inf) = 0 and not exp(-inf + inf).
        self.shift = torch.full(shape, lowest, dtype=torch.float64, device=like.device)
        self.total = torch.zeros_like(self.shift)

    def add(self, first: int, log_w: Tensor) -> None:
        r"""Add samples, (N, C, \*batch), to the N sums from ``first`` on."""
        log_w = log_w.double()
        shift = torch.maximum(self.shift[first : first + len(log_w)], log_w.amax(1))
        self.join(first, shift, (log_w - shift[:, None]).exp_().sum(1))

    def join(self, first: int, shift: Tensor, total: Tensor) -> None:
        r"""Add the sums of other samples, (N, \*batch), to those from ``first`` on."""
        place = slice(first, first + len(shift))
        before, shift = self.shift[place], shift.double()
        largest = torch.maximum(before, shift)
        # Equal shifts, infinite ones among them, need no factor.
        self.total[place] *= torch.where(before == largest, 1.0, (before - largest).exp())
        self.total[place] += total * torch.where(shift == largest, 1.0, (shift - largest).exp())
        self.shift[place] = largest

    def meet(self, ranks: Ranks) -> None:
        shift = ranks.maximum(self.shift)
        parts = torch.where(self.shift == shift, 1.0, (self.shift - shift).exp())
        self.total = ranks.add(self.total * parts)
        self.shift = shift

    def all(self) -> LogSums:
        """Return the one log-sum-exp over all N."""
        joint = LogSums(1, self.shift)
        joint.shift = self.shift.amax(0, keepdim=True)
        parts = torch.where(self.shift == joint.shift, 1.0, (self.shift - joint.shift).exp())
        joint.total = (self.total * parts).sum(0, keepdim=True)
        return joint

    def log_mean(self, num_samples: int) -> Tensor:
        # log(total / K), not log(total) - log(K): equal weights give exactly their value.
        mean = self.shift + (self.total / num_samples).log()
        return torch.where(self.shift == torch.inf, self.shift, mean)

    def share(self, log_w: Tensor, first: int = 0) -> Tensor:
        r"""Return the share of each sample, (N, C, \*batch), in the sums from ``first`` on."""
        place = slice(first, first + len(log_w))
        weights = (log_w.double() - self.shift[place, None]).exp_()
        total = self.total[place, None]
        # If all samples are impossible, none has a share.
        return weights.div_(torch.where(total == 0.0, 1.0, total))


class RenyiSums:
    """The bound of order alpha: c = 1 - alpha times the log-weights in a log-sum-exp, or a sum."""

    def __init__(self, num_samples: int, alpha: float, estimator: Estimator) -> None:
        self.num_samples = num_samples
        self.order = 1.0 - alpha
        self.alpha = alpha
        self.estimator = estimator
        self.log_sum: LogSums | None = None

    def add(self, offset: int, log_w: Tensor) -> None:
        if self.log_sum is None:
            self.log_sum = LogSums(1, log_w)
            self.total = torch.zeros_like(self.log_sum.total[0])
            self.dtype = log_w.dtype
        if self.order == 0.0:
            self.total += log_w.sum(0, dtype=torch.float64)
        elif len(log_w) > 0:
            # In one pass over the samples; the sums of chunks meet in float64.
            _, state = torch.ops.fastvi.iwlb(log_w, None, None, False, self.alpha)
            self.log_sum.join(0, *state[:, None])

    def meet(self, ranks: Ranks) -> None:
        assert self.log_sum is not None
        if self.order == 0.0:
            self.total = ranks.add(self.total)
        else:
            self.log_sum.meet(ranks)

    def bound(self) -> Tensor:
        assert self.log_sum is not None
        if self.order == 0.0:
            self.value = self.total / self.num_samples
        else:
            self.value = self.log_sum.log_mean(self.num_samples)[0] / self.order
        return self.value.to(self.dtype)

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        assert self.log_sum is not None
        if self.order == 0.0:
            model = torch.full_like(log_w, 1.0 / self.num_samples)
            # If the mean is -inf, no direction improves it.
            model = model.masked_fill_(torch.isneginf(self.total), 0.0)
        else:
            state = torch.cat([self.log_sum.shift, self.log_sum.total]).to(log_w.dtype)
            model = torch.ops.fastvi._iwlb_backward(
                torch.ones_like(state[0]), log_w, None, None, state, False, self.alpha
            )
        return weights_for(self.estimator, self.alpha, self.value, model)


class GroupSums:
    """M groups of K samples: the mean of their bounds; the model may have the bound of all."""

    def __init__(
        self, num_groups: int, num_samples: int, *, squared: bool, model_takes_all: bool
    ) -> None:
        self.num_groups = num_groups
        self.num_samples = num_samples
        # Whether the guide's weights are the squares, as in DReG.
        self.squared = squared
        self.model_takes_all = model_takes_all
        self.groups: LogSums | None = None

    def add(self, offset: int, log_w: Tensor) -> None:
        if self.groups is None:
            self.groups = LogSums(self.num_groups, log_w)
            self.dtype = log_w.dtype
        for first, part in self._by_group(offset, log_w):
            self.groups.add(first, part)

    def meet(self, ranks: Ranks) -> None:
        assert self.groups is not None
        self.groups.meet(ranks)

    def bound(self) -> Tensor:
        assert self.groups is not None
        if self.model_takes_all:
            self.everything = self.groups.all()
            self.value = self.everything.log_mean(self.num_groups * self.num_samples)[0]
        else:
            self.value = self.groups.log_mean(self.num_samples).mean(0)
        return self.value.to(self.dtype)

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        assert self.groups is not None
        parts = self._by_group(offset, log_w)
        share = torch.cat([self.groups.share(part, first).flatten(0, 1) for first, part in parts])
        plain = share / self.num_groups
        path = share.square() / self.num_groups if self.squared else plain
        model = self.everything.share(log_w[None])[0] if self.model_takes_all else plain
        return Weights(self.value, model, path)

    def _by_group(self, offset: int, log_w: Tensor) -> Iterator[tuple[int, Tensor]]:
        r"""Cut samples where groups end: the first group's number, and (N, C, \*batch)."""
        size = self.num_samples
        head = min(-offset % size, len(log_w))
        whole = (len(log_w) - head) // size
        tail = head + whole * size
        if head > 0:
            yield offset // size, log_w[None, :head]
        if whole > 0:
            yield (offset + head) // size, log_w[head:tail].unflatten(0, (whole, size))
        if tail < len(log_w):
            yield (offset + tail) // size, log_w[None, tail:]


class CombinedSums:
    """The sum of beta times the ELBO and 1 - beta times the importance-weighted bound."""

    def __init__(self, num_samples: int, beta: float, estimator: Estimator) -> None:
        self.beta = beta
        self.elbo = RenyiSums(num_samples, 1.0, estimator)
        self.iwlb = RenyiSums(num_samples, 0.0, estimator)

    def add(self, offset: int, log_w: Tensor) -> None:
        self.elbo.add(offset, log_w)
        self.iwlb.add(offset, log_w)

    def meet(self, ranks: Ranks) -> None:
        self.elbo.meet(ranks)
        self.iwlb.meet(ranks)

    def bound(self) -> Tensor:
        self.elbo.bound()
        bound = self.iwlb.bound()
        self.value = self._both(self.elbo.value, self.iwlb.value)
        return self.value.to(bound.dtype)

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        elbo, iwlb = (each.weights(offset, log_w) for each in (self.elbo, self.iwlb))
        model = self._both(elbo.model, iwlb.model)
        same = iwlb.guide is iwlb.model
        return Weights(self.value, model, model if same else self._both(elbo.guide, iwlb.guide))

    def _both(self, elbo: Tensor, iwlb: Tensor) -> Tensor:
        # At the ends one of them alone, because 0 times a bound of -inf would be NaN.
        if self.beta in (0, 1):
            return elbo if self.beta == 1 else iwlb
        return self.beta * elbo + (1.0 - self.beta) * iwlb


class KeptLogWeights:
    """Keep all log-weights, four bytes for each sample, until they are weighed at once."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.log_w: Tensor | None = None

    def add(self, offset: int, log_w: Tensor) -> None:
        if self.log_w is None:
            # Zero where another rank's samples are.
            self.log_w = log_w.new_zeros(self.num_samples, *log_w.shape[1:])
        self.log_w[offset : offset + len(log_w)] = log_w

    def meet(self, ranks: Ranks) -> None:
        assert self.log_w is not None
        self.log_w = ranks.add(self.log_w)

    def take(self) -> Tensor:
        """Return the log-weights, and keep them no longer."""
        assert self.log_w is not None
        log_w, self.log_w = self.log_w, None
        return log_w


class JackknifeSums(KeptLogWeights):
    """The jackknife of the importance-weighted bound.

    With t the largest sample, R the sum of the others' weights and S that of all, the part of k
    in the sum without j is w_k / (S - w_j), and w_k / R without t: no difference that cancels.
    The weight of each sample depends on the sum of all 1 / (S - w_j), so the log-weights are kept
    until all are there.
    """

    def __init__(self, num_samples: int, *, squared: bool) -> None:
        super().__init__(num_samples)
        self.squared = squared

    def bound(self) -> Tensor:
        log_w = self.take()
        count = self.num_samples
        self.largest = log_w.argmax(0)
        largest = log_w.gather(0, self.largest[None]).double()[0]
        step = count if exporting() else max(1, _BLOCK // max(1, largest.numel()))
        blocks = [(k, log_w[k : k + step]) for k in range(0, count, step)]
        self.rest = LogSums(1, log_w)
        for offset, block in blocks:
            others = block.masked_fill(self._is_largest(offset, block), -torch.inf)
            self.rest.add(0, others[None])
        self.shift = largest.clamp(min=torch.finfo(torch.float64).min)
        to_largest = self.rest.shift[0] - self.shift
        self.total = (largest - self.shift).exp() + self.rest.total[0] * to_largest.exp()
        self.inverse = torch.zeros_like(self.shift)
        self.inverse_squares = torch.zeros_like(self.shift)
        mean = (self.total / count).log()
        # The sum of L_K - L_{K-1} without the k-th: each is small, where K L_K would be large.
        gain = mean - (self.rest.total[0] / (count - 1)).log() - to_largest
        for offset, block in blocks:
            is_largest = self._is_largest(offset, block)
            inverse = self._inverse(block).masked_fill_(is_largest, 0.0)
            self.inverse += inverse.sum(0)
            self.inverse_squares += inverse.square().sum(0)
            without = mean - ((self.total - self._weight(block)) / (count - 1)).log()
            gain += without.masked_fill_(is_largest, 0.0).sum(0)
        bound = self.shift + mean + (count - 1) / count * gain
        self.value = torch.where(self.total == 0.0, -torch.inf, bound)
        return self.value.to(log_w.dtype)

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        is_largest = self._is_largest(offset, log_w)
        share = self._weight(log_w) / self.total
        inverse = self._inverse(log_w).masked_fill_(is_largest, 0.0)
        of_rest = self.rest.share(log_w[None])[0].masked_fill_(is_largest, 0.0)
        model = self._less_rest(share, self.inverse - inverse, of_rest)
        if not self.squared:
            return Weights(self.value, model, model)
        squares = self.inverse_squares - inverse.square()
        return Weights(
            self.value, model, self._less_rest(share.square(), squares, of_rest.square())
        )

    def _less_rest(self, share: Tensor, others: Tensor, of_rest: Tensor) -> Tensor:
        count = self.num_samples
        weights = count * share - (count - 1) / count * (share * others + of_rest)
        # If no sample is possible, there is no direction to follow.
        return torch.where(self.total == 0.0, 0.0, weights)

    def _is_largest(self, offset: int, log_w: Tensor) -> Tensor:
        number = torch.arange(offset, offset + len(log_w), device=log_w.device)
        return number.view(-1, *[1] * self.largest.ndim) == self.largest

    def _weight(self, log_w: Tensor) -> Tensor:
        return (log_w.double() - self.shift).exp_()

    def _inverse(self, log_w: Tensor) -> Tensor:
        """Return S / (S - w_k), right for all samples but the largest."""
        return self.total / (self.total - self._weight(log_w))
