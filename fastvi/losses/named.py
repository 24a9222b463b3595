"""Bounds by the names of the table, as losses."""

from __future__ import annotations

from typing import Any, Literal

from fastvi._loss_arguments import Prior
from fastvi.bounds.table import BOUNDS, check_bound
from fastvi.bounds.weighers import Weigher
from fastvi.losses.multi_sample import MultiSampleLoss


class NamedBoundLoss(MultiSampleLoss):
    r"""Measure the negative of a bound of the table: ``"thermodynamic"``.

    .. math::
        -\frac{1}{T} \sum_{j=0}^{T-1} \sum_{k=1}^{K} s_{jk} \log w_k, \qquad
        s_j = \operatorname{softmax}(t_j \log w), \quad t_j = j / T

    Args:
        bound: ``"thermodynamic"``; what it takes is ``temperatures``, T.
        num_samples: K.
        estimator: ``"dreg"`` or ``"iwae"``: how the guide's gradient is taken; both are unbiased.
        chunk_size: samples at a time; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: how many samples run backward; see :func:`iwlb_loss`.
        variance_growth: see :func:`iwlb_loss`.
        prior: ``None`` for N(0, I), or (loc, log_var).
        reduction: over the batch: ``"mean"``, ``"sum"`` or ``"none"``.
        validate_args: check at each call that the inputs are finite.
        settings: of the bound, by name.

    Example:
        >>> criterion = fastvi.NamedBoundLoss("thermodynamic", 16, temperatures=8)
        >>> loc, log_var = torch.zeros(8, 2), torch.zeros(8, 2)
        >>> criterion(loc, log_var, lambda z: -z.square().sum(-1)).shape
        torch.Size([])

    References:
        | The Thermodynamic Variational Objective (Masrani et al., 2019),
        | https://arxiv.org/abs/1907.00031
    """

    def __init__(
        self,
        bound: str,
        num_samples: int,
        *,
        estimator: str = "dreg",
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
        prior: Prior | None = None,
        reduction: str = "mean",
        validate_args: bool = False,
        **settings: Any,
    ) -> None:
        self._estimators = check_bound("NamedBoundLoss", bound).estimators
        super().__init__(
            num_samples,
            estimator,
            chunk_size,
            memory_budget,
            prior,
            reduction,
            validate_args,
            group=group,
        )
        self.name = bound
        self.settings = settings
        self._keep_few(backward_samples, variance_growth, self.weigher())

    def weigher(self) -> Weigher:
        return BOUNDS[self.name](self.num_samples, self.estimator, **self.settings)
