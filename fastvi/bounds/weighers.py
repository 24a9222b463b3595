"""Bounds as weighers, which compute the weight of each sample for model and guide.

A weigher is a bound of K samples with an estimator of its gradient. It does not depend on how
samples are drawn, cut into chunks or shared, so every loss and objective works with every weigher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastvi import ops
from fastvi.bounds.estimators import IWLB_ESTIMATORS
from fastvi.bounds.signals import advantage, credit
from fastvi.bounds.sums import (
    CombinedSums,
    GroupSums,
    JackknifeSums,
    KeptLogWeights,
    RenyiSums,
    Sums,
    Weights,
    weights_for,
)
from fastvi.ops._call import exporting, transforms_active


class Weigher:
    """A bound of K samples, and an estimator of its gradient."""

    # The derivative that the guide gets: "total", "path" through the samples, or "score".
    gradient = "total"
    # Whether the weights for the guide are those for the model.
    same = True
    # Whether the bound is a mean of log-weights, in which every term may have a scale.
    linear = False
    # Whether no weight for the guide is larger than the weight for the model.
    guide_counts_less = False
    # The names of the estimators.
    estimators: tuple[str, ...] = ("dreg", "iwae")

    def __init__(self, num_samples: int, estimator: str) -> None:
        self.num_samples = num_samples
        self.estimator = estimator

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        r"""Weigh all log-weights, (K, \*batch); ``signals`` for samples without a path."""
        raise NotImplementedError

    def bound(self, log_w: Tensor) -> Tensor:
        r"""Compute the bound, (\*batch,), with its own gradient if ``is_plain``."""
        return self.weights(log_w, signals=False).bound

    def sums(self, *, signals: bool = False) -> Sums:
        """Return sums without a sample, to which log-weights are added chunk by chunk."""
        return _WeighedAtOnce(self, signals=signals)

    @property
    def may_lose_the_guide(self) -> bool:
        """Return whether the model's weights may be too small to carry those of the guide."""
        never = self.same or self.guide_counts_less or self.gradient == "score"
        # An exported program cannot read values.
        return not (never or exporting())

    @property
    def is_plain(self) -> bool:
        """Return whether the gradient of ``bound`` is the estimator, for samples with a path."""
        return False

    def facts(self) -> Mapping[str, object]:
        """Return the settings that must be equal on all ranks that share the samples."""
        return {
            "bound": type(self).__name__,
            **{name: value for name, value in vars(self).items() if not callable(value)},
        }


class _WeighedAtOnce(KeptLogWeights):
    """The log-weights of a weigher that needs all of them at once."""

    def __init__(self, weigher: Weigher, *, signals: bool) -> None:
        super().__init__(weigher.num_samples)
        self.weigher = weigher
        self.signals = signals

    def bound(self) -> Tensor:
        self.found = self.weigher.weights(self.take(), signals=self.signals)
        return self.found.bound

    def weights(self, offset: int, log_w: Tensor) -> Weights:
        return self.found.part(offset, offset + len(log_w))


class Renyi(Weigher):
    """The importance-weighted bound, or the bound of another order alpha: 1 is the ELBO."""

    guide_counts_less = True

    def __init__(self, num_samples: int, estimator: str, alpha: float = 0.0) -> None:
        super().__init__(num_samples, estimator)
        self.alpha = alpha
        chosen = IWLB_ESTIMATORS[estimator]
        self.gradient = chosen.gradient
        self.same = chosen.path_weight is None and chosen.gradient != "score"
        self.linear = alpha == 1.0 or num_samples == 1

    def bound(self, log_w: Tensor) -> Tensor:
        return ops.iwlb(log_w, alpha=self.alpha)

    @property
    def is_plain(self) -> bool:
        return self.gradient == "total"

    def sums(self, *, signals: bool = False) -> Sums:
        if signals:
            return super().sums(signals=True)
        return RenyiSums(self.num_samples, self.alpha, IWLB_ESTIMATORS[self.estimator])

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        bound, model = _normalised(log_w.detach(), self.alpha)
        found = weights_for(IWLB_ESTIMATORS[self.estimator], self.alpha, bound, model)
        if signals and found.score is None:
            return replace(found, score=credit(log_w.detach(), self.alpha))
        return found


@torch.no_grad()
def _normalised(log_w: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    r"""Return the bound, (\*batch,), and the normalised weights, its gradient."""
    if transforms_active():  # which the kernels know nothing of
        # The derivative of the sum over all examples: each example has its own weights in it.
        weights = torch.func.grad(lambda x: ops.iwlb(x, alpha=alpha).sum())(log_w)
        return ops.iwlb(log_w, alpha=alpha), weights
    bound, state = torch.ops.fastvi.iwlb(log_w, None, None, False, alpha)
    one = torch.ones_like(bound)
    weights = torch.ops.fastvi._iwlb_backward(one, log_w, None, None, state, False, alpha)
    return bound, weights


class Mean(Weigher):
    """The ELBO, with the signals of a baseline for samples without a path."""

    linear = True

    def __init__(self, num_samples: int, baseline: str | None) -> None:
        super().__init__(num_samples, "total")
        self.baseline = baseline

    def bound(self, log_w: Tensor) -> Tensor:
        return ops.iwlb(log_w, alpha=1.0)

    @property
    def is_plain(self) -> bool:
        return True

    def sums(self, *, signals: bool = False) -> Sums:
        if signals:
            return super().sums(signals=True)
        return RenyiSums(self.num_samples, 1.0, IWLB_ESTIMATORS["iwae"])

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        bound = self.bound(log_w.detach())
        count = len(log_w)
        # Of an impossible sample the bound is -inf, which no direction improves.
        model = torch.full_like(log_w, 1.0 / count).masked_fill(torch.isneginf(bound), 0.0)
        score = advantage(log_w.detach(), self.baseline) / count if signals else None
        return Weights(bound, model, model, score)


class BySums(Weigher):
    """A bound by running sums, with weights of its own for the guide."""

    def __init__(self, num_samples: int, estimator: str) -> None:
        super().__init__(num_samples, estimator)
        self.gradient = "path" if estimator == "dreg" else "total"
        self.same = self.gradient == "total"

    def running(self) -> Sums:
        """Return running sums without a sample."""
        raise NotImplementedError

    def sums(self, *, signals: bool = False) -> Sums:
        return super().sums(signals=True) if signals else self.running()

    def credit(self, log_w: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        log_w = log_w.detach()
        sums = self.running()
        sums.add(0, log_w)
        bound = sums.bound()
        found = sums.weights(0, log_w)
        score = self.credit(log_w) if signals else None
        return Weights(bound, found.model, found.guide, score)


class Groups(BySums):
    """The mean bound of M groups of K samples; the model may have the bound of all samples."""

    def __init__(
        self, group_size: int, num_groups: int, estimator: str, *, model_takes_all: bool = False
    ) -> None:
        super().__init__(num_groups * group_size, estimator)
        self.num_groups, self.group_size = num_groups, group_size
        self.model_takes_all = model_takes_all
        self.same = self.same and not model_takes_all
        self.linear = group_size == 1 and not model_takes_all
        self.guide_counts_less = not model_takes_all

    def running(self) -> Sums:
        return GroupSums(
            self.num_groups,
            self.group_size,
            squared=self.estimator == "dreg",
            model_takes_all=self.model_takes_all,
        )

    def credit(self, log_w: Tensor) -> Tensor:
        if self.group_size == 1:
            return credit(log_w, 1.0)
        groups = log_w.unflatten(0, (self.num_groups, self.group_size)).transpose(0, 1)
        return credit(groups, 0.0).transpose(0, 1).flatten(0, 1) / self.num_groups


class Combined(BySums):
    """beta of the ELBO and 1 - beta of the importance-weighted bound."""

    guide_counts_less = True

    def __init__(self, num_samples: int, beta: float, estimator: str) -> None:
        super().__init__(num_samples, estimator)
        self.beta = beta
        self.linear = beta == 1.0 or num_samples == 1

    def running(self) -> Sums:
        return CombinedSums(self.num_samples, self.beta, IWLB_ESTIMATORS[self.estimator])

    def credit(self, log_w: Tensor) -> Tensor:
        return self.beta * credit(log_w, 1.0) + (1.0 - self.beta) * credit(log_w, 0.0)


class Jackknife(BySums):
    """The first-order jackknife of the importance-weighted bound."""

    def running(self) -> Sums:
        return JackknifeSums(self.num_samples, squared=self.estimator == "dreg")

    def credit(self, log_w: Tensor) -> Tensor:
        raise ValueError(
            "Jackknife: expected every latent to be reparameterised, as the bound may give a "
            "sample a larger signal than its effect; use objectives.VIMCO, "
            "or MIWAE(..., estimator='iwae')"
        )
