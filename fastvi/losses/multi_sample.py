"""Relatives of the importance-weighted bound whose weights need all log-weights at once."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fastvi import objectives
from fastvi._loss_arguments import (
    LogLikelihood,
    Prior,
    check_choice,
    check_chunks,
    check_inputs,
    check_iwlb_options,
    check_number,
    loss_of,
)
from fastvi.estimators import Estimator
from fastvi.losses._module import BoundLoss
from fastvi.ops import iwlb, leave_one_out, new_key
from fastvi.ops._arguments import check_num_samples
from fastvi.streaming import Stream

_ESTIMATORS = ("dreg", "iwae")


class _MultiSampleLoss(BoundLoss):
    """A bound given by what each sample counts for it, for the model and for the guide."""

    def __init__(
        self,
        num_samples: int,
        estimator: str,
        chunk_size: int | Literal["auto"] | None,
        memory_budget: int | None,
        prior: Prior | None,
        reduction: str,
        validate_args: bool,
        num_groups: int = 1,
    ) -> None:
        where = type(self).__name__
        check_choice(where, "estimator", estimator, _ESTIMATORS)
        check_iwlb_options(where, num_samples, estimator, 0.0, reduction)
        check_num_samples(where, num_groups, "num_groups")
        check_chunks(where, num_groups * num_samples, chunk_size, memory_budget)
        super().__init__(num_samples, prior, reduction, validate_args)
        self.num_groups = num_groups
        self.estimator = estimator
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def weigh(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Compute the bound, (\*batch,), and the samples' weights for model and guide."""
        raise NotImplementedError

    def forward(
        self,
        loc: Tensor,
        log_var: Tensor,
        log_likelihood: LogLikelihood,
        key: Tensor | None = None,
        *,
        prior: Prior | None = None,
    ) -> Tensor:
        """Compute the loss; ``prior`` goes before the module's own. See :func:`iwlb_loss`."""
        where = type(self).__name__
        prior = self.prior if prior is None else prior
        check_inputs(
            where, loc, log_var, log_likelihood, prior, self.reduction, key, self.validate_args
        )
        stream = Stream(
            where,
            log_likelihood,
            self.num_groups * self.num_samples,
            Estimator("path" if self.estimator == "dreg" else "total"),
            new_key(loc.device) if key is None else key,
            self.chunk_size,
            self.memory_budget,
            weigh=self.weigh,
            validate_args=self.validate_args,
        )
        return loss_of(stream.bound(loc, log_var, prior), self.reduction)

    def extra_repr(self) -> str:
        return self._settings("num_samples", "estimator", num_groups=1, chunk_size=None)


class JackknifeLoss(_MultiSampleLoss):
    r"""Measure the negative first-order jackknife bound.

    .. math::
        \mathrm{JVI}_1 = K L_K - \frac{K - 1}{K} \sum_{k=1}^{K} L_{K-1}^{(-k)}

    Its bias falls as :math:`K^{-2}`, that of the IWLB as :math:`K^{-1}`; it may lie above the
    log-evidence. All log-weights are kept, four bytes each.

    Args:
        num_samples: K, at least 2.
        estimator: ``"dreg"`` or ``"iwae"``: how the guide's gradient is taken; both are unbiased.
        chunk_size: samples at a time; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        prior: ``None`` for N(0, I), or (loc, log_var).
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.

    Example:
        >>> criterion = fastvi.JackknifeLoss(num_samples=16)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion(loc, log_var, lambda z: -z.square().sum(-1)).shape
        torch.Size([])

    References:
        | Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        | Variational Inference (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb
    """

    def __init__(
        self,
        num_samples: int,
        estimator: str = "dreg",
        *,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
    ) -> None:
        super().__init__(
            num_samples, estimator, chunk_size, memory_budget, prior, reduction, validate_args
        )
        if num_samples < 2:
            raise ValueError(
                f"JackknifeLoss: expected num_samples to be at least 2, got {num_samples}"
            )

    def weigh(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_samples = len(log_w)
        log_w = log_w.double()
        bound, log_sum = objectives.jackknife(log_w), log_w.logsumexp(0)
        p, log_p = _normalised(log_w), log_w - log_sum
        # log(1 - p), which is no difference where one weight dominates.
        log_rest = leave_one_out(log_w) + math.log(num_samples - 1) - log_sum
        largest = log_w.argmax(0, keepdim=True)
        is_largest = torch.zeros_like(log_w, dtype=torch.bool).scatter_(0, largest, True)
        # p_k / (1 - p_j), the weight of k where j is left out: its sum and its squares' over j.
        model, squares = self._summed(p, log_p, log_rest, is_largest)
        share = (num_samples - 1) / num_samples
        model = num_samples * p - share * model
        path = num_samples * p.square() - share * squares
        model, path = (torch.where(torch.isneginf(bound), 0.0, x) for x in (model, path))
        return bound, model, path if self.estimator == "dreg" else model

    @staticmethod
    def _summed(
        p: Tensor, log_p: Tensor, log_rest: Tensor, is_largest: Tensor
    ) -> tuple[Tensor, Tensor]:
        sums = []
        for power in (1, 2):
            inverse = torch.exp(-power * log_rest)
            small = inverse.masked_fill(is_largest, 0.0)
            of_largest = log_rest.masked_fill(~is_largest, -torch.inf).amax(0, keepdim=True)
            with_largest = torch.exp(power * (log_p - of_largest))
            others = p**power * (small.sum(0, keepdim=True) - small)
            sums.append(others + torch.where(is_largest, 0.0, with_largest))
        return sums[0], sums[1]


class MIWAELoss(_MultiSampleLoss):
    r"""Measure the negative mean of several importance-weighted bounds.

    .. math::
        L_{M, K} = \frac{1}{M} \sum_{m=1}^{M} \log \frac{1}{K} \sum_{k=1}^{K} w_{m, k}

    The weights are normalised over the K samples of a group. M = 1 is the IWLB, K = 1 the ELBO.

    Args:
        num_samples: K, samples in a group.
        num_groups: M.
        estimator: ``"dreg"`` or ``"iwae"``: how the guide's gradient is taken; both are unbiased.
        chunk_size: of the M K samples, at a time; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        prior: ``None`` for N(0, I), or (loc, log_var).
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.

    Example:
        >>> criterion = fastvi.MIWAELoss(num_samples=8, num_groups=4)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion(loc, log_var, lambda z: -z.square().sum(-1)).shape
        torch.Size([])

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """

    def __init__(
        self,
        num_samples: int,
        num_groups: int,
        estimator: str = "dreg",
        *,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
    ) -> None:
        super().__init__(
            num_samples,
            estimator,
            chunk_size,
            memory_budget,
            prior,
            reduction,
            validate_args,
            num_groups,
        )

    def weigh(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = log_w.unflatten(0, (self.num_groups, self.num_samples))
        p = _normalised(groups, dim=1)
        path = p.square() if self.estimator == "dreg" else p
        bound = objectives.miwae(groups)
        return bound, p.flatten(0, 1) / self.num_groups, path.flatten(0, 1) / self.num_groups


class PIWAELoss(MIWAELoss):
    r"""Train the model by the bound of all M K samples, the guide by groups of K.

    The reported bound is the model's, :math:`L_{M K}`. The guide gets the gradient of
    :class:`MIWAELoss`, which is less noisy.

    Args:
        num_samples: K, samples in a group.
        num_groups: M.
        estimator: ``"dreg"`` or ``"iwae"``: how the guide's gradient is taken; both are unbiased.
        chunk_size: of the M K samples, at a time; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        prior: ``None`` for N(0, I), or (loc, log_var).
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.

    Example:
        >>> criterion = fastvi.PIWAELoss(num_samples=8, num_groups=4)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion(loc, log_var, lambda z: -z.square().sum(-1)).shape
        torch.Size([])

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """

    def weigh(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _, _, path = super().weigh(log_w)
        return iwlb(log_w), _normalised(log_w), path


class CIWAELoss(_MultiSampleLoss):
    r"""Measure the negative convex combination of the ELBO and the importance-weighted bound.

    .. math::
        L = \beta\, \mathrm{ELBO} + (1 - \beta)\, L_K

    Args:
        num_samples: K.
        beta: the ELBO's share, from 0 to 1.
        estimator: ``"dreg"`` or ``"iwae"``: how the guide's gradient is taken; both are unbiased.
        chunk_size: samples at a time; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        prior: ``None`` for N(0, I), or (loc, log_var).
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.

    Example:
        >>> criterion = fastvi.CIWAELoss(num_samples=8, beta=0.1)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion(loc, log_var, lambda z: -z.square().sum(-1)).shape
        torch.Size([])

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """

    def __init__(
        self,
        num_samples: int,
        beta: float,
        estimator: str = "dreg",
        *,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
    ) -> None:
        super().__init__(
            num_samples, estimator, chunk_size, memory_budget, prior, reduction, validate_args
        )
        check_number("CIWAELoss", "beta", beta)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"CIWAELoss: expected beta to be from 0 to 1, got {beta}")
        self.beta = beta

    def weigh(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = _normalised(log_w)
        elbo = self.beta / len(log_w)
        bound = objectives.ciwae(log_w, self.beta)
        model = elbo + (1.0 - self.beta) * p
        path = elbo + (1.0 - self.beta) * p.square()
        return bound, model, path if self.estimator == "dreg" else model


def _normalised(log_w: Tensor, dim: int = 0) -> Tensor:
    """Softmax over the samples; of nothing but -inf, zeros."""
    weights = log_w.softmax(dim)
    return torch.where(torch.isneginf(log_w).all(dim, keepdim=True), 0.0, weights)
