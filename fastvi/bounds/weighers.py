"""Bounds as weighers: from all log-weights, what each sample counts for model and guide.

A weigher is a bound of K samples with an estimator of its gradient. It knows nothing of how samples
are drawn, cut into chunks or shared, and every face works with every weigher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi import ops
from fastvi.bounds.estimators import IWLB_ESTIMATORS
from fastvi.bounds.signals import advantage, credit
from fastvi.bounds.sums import CombinedSums, GroupSums, JackknifeSums, Sums


@dataclass(frozen=True)
class Weights:
    r"""The bound, (\*batch,), and the samples' weights, (K, \*batch) each, without a graph."""

    bound: Tensor
    # Of log p(x, z) for the model: the gradient of the bound by the log-weights.
    model: Tensor
    # Of the derivative of the log-weights for the guide: along the path, or the total one.
    guide: Tensor
    # What the log-probability of samples without a path is credited with, where that was asked for.
    score: Tensor | None

    def part(self, begin: int, end: int) -> Weights:
        """Those of a range of samples."""
        score = None if self.score is None else self.score[begin:end]
        return Weights(self.bound, self.model[begin:end], self.guide[begin:end], score)

    @property
    def ratio(self) -> Tensor:
        """By what to multiply the gradient of a sample, on which the model's weight is."""
        return torch.where(self.model == 0, 0.0, self.guide / self.model)


class Weigher:
    """A bound of K samples, and an estimator of its gradient."""

    # The derivative that the guide gets: "total", "path" through the samples, or "score".
    gradient = "total"
    # Whether samples count for the guide what they count for the model.
    same = True
    # Whether the bound is a mean of log-weights, in which no scale of a term can stand wrong.
    linear = False
    # The names of the estimators that there are.
    estimators: tuple[str, ...] = ("dreg", "iwae")

    def __init__(self, num_samples: int, estimator: str) -> None:
        self.num_samples = num_samples
        self.estimator = estimator

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        r"""Weigh all log-weights, (K, \*batch); ``signals`` for samples without a path."""
        raise NotImplementedError

    def bound(self, log_w: Tensor) -> Tensor:
        r"""Compute the bound, (\*batch,), with its own gradient where ``is_plain``."""
        return self.weights(log_w, signals=False).bound

    def sums(self) -> Sums:
        """What gathers the log-weights chunk by chunk, to which no sample was added yet."""
        return _Kept(self)

    @property
    def is_plain(self) -> bool:
        """Whether the gradient of ``bound`` itself is the one wanted where samples have a path."""
        return False

    def facts(self) -> Mapping[str, object]:
        """What ranks that share the samples must have alike."""
        return {
            "bound": type(self).__name__,
            **{name: value for name, value in vars(self).items() if not callable(value)},
        }


class _Kept:
    """All log-weights, kept until they are weighed at once: four bytes for each sample."""

    def __init__(self, weigher: Weigher) -> None:
        self.weigher = weigher
        self.log_w: Tensor | None = None
        self.found: Weights | None = None

    def add(self, offset: int, log_w: Tensor) -> None:
        if self.log_w is None:
            self.log_w = log_w.new_empty(self.weigher.num_samples, *log_w.shape[1:])
        self.log_w[offset : offset + len(log_w)] = log_w

    def bound(self) -> Tensor:
        assert self.log_w is not None
        self.found, self.log_w = self.weigher.weights(self.log_w, signals=False), None
        return self.found.bound

    def weights(self, offset: int, log_w: Tensor) -> tuple[Tensor, Tensor]:
        assert self.found is not None
        part = self.found.part(offset, offset + len(log_w))
        return part.model.double(), part.guide.double()


class Renyi(Weigher):
    """The importance-weighted bound, or that of another order alpha: 1 is the ELBO."""

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

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        with torch.enable_grad():
            leaf = log_w.detach().requires_grad_()
            bound = self.bound(leaf)
            (model,) = torch.autograd.grad(bound.sum(), leaf)
        guide, score = model, None
        path_weight = IWLB_ESTIMATORS[self.estimator].path_weight
        if path_weight is not None:
            guide = model * path_weight(model, self.alpha)
        if self.gradient == "score":
            # The wake phase ascends sum_k v_k log q(z_k), at fixed weights.
            score, guide = model, torch.zeros_like(model)
        elif signals:
            score = credit(log_w.detach(), self.alpha)
        return Weights(bound.detach(), model, guide, score)


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

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        bound = self.bound(log_w.detach())
        count = len(log_w)
        # Of an impossible sample the bound is -inf, which no direction improves.
        model = torch.full_like(log_w, 1.0 / count).masked_fill(torch.isneginf(bound), 0.0)
        score = advantage(log_w.detach(), self.baseline) / count if signals else None
        return Weights(bound, model, model, score)


class BySums(Weigher):
    """A bound of running sums, which weighs samples for model and guide apart."""

    def __init__(self, num_samples: int, estimator: str) -> None:
        super().__init__(num_samples, estimator)
        self.gradient = "path" if estimator == "dreg" else "total"
        self.same = self.gradient == "total"

    def sums(self) -> Sums:
        """Running sums, to which no sample was added yet."""
        raise NotImplementedError

    def credit(self, log_w: Tensor) -> Tensor:
        raise NotImplementedError

    def weights(self, log_w: Tensor, *, signals: bool) -> Weights:
        log_w = log_w.detach()
        sums = self.sums()
        sums.add(0, log_w)
        bound = sums.bound()
        model, guide = (weights.to(bound.dtype) for weights in sums.weights(0, log_w))
        return Weights(bound, model, guide, self.credit(log_w) if signals else None)


class Groups(BySums):
    """The mean bound of M groups of K samples; for the model alone perhaps that of all of them."""

    def __init__(
        self, group_size: int, num_groups: int, estimator: str, *, model_takes_all: bool = False
    ) -> None:
        super().__init__(num_groups * group_size, estimator)
        self.num_groups, self.group_size = num_groups, group_size
        self.model_takes_all = model_takes_all
        self.same = self.same and not model_takes_all
        self.linear = group_size == 1 and not model_takes_all

    def sums(self) -> Sums:
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

    def __init__(self, num_samples: int, beta: float, estimator: str) -> None:
        super().__init__(num_samples, estimator)
        self.beta = beta
        self.linear = beta == 1.0 or num_samples == 1

    def sums(self) -> Sums:
        return CombinedSums(self.num_samples, self.beta, squared=self.estimator == "dreg")

    def credit(self, log_w: Tensor) -> Tensor:
        return self.beta * credit(log_w, 1.0) + (1.0 - self.beta) * credit(log_w, 0.0)


class Jackknife(BySums):
    """The first-order jackknife of the importance-weighted bound."""

    def sums(self) -> Sums:
        return JackknifeSums(self.num_samples, squared=self.estimator == "dreg")

    def credit(self, log_w: Tensor) -> Tensor:
        raise ValueError(
            "Jackknife: expected every latent to be reparameterised, as the bound may credit a "
            "sample with more than it has changed; use objectives.VIMCO, or MIWAE(..., 'iwae')"
        )
