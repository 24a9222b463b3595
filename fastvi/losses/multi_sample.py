"""Relatives of the importance-weighted bound, which weigh samples for model and guide apart."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from fastvi._checks import check_chunks, check_num_samples, check_share
from fastvi._loss_arguments import LogLikelihood, Prior, check_inputs, check_iwlb_options, loss_of
from fastvi.bounds.estimators import check_estimator
from fastvi.bounds.weighers import Combined, Groups, Jackknife, Weigher
from fastvi.chunks import Cut, GaussianSource, SampleGroup
from fastvi.chunks.chunk_size import remembering
from fastvi.losses._module import BoundLoss
from fastvi.ops import new_key


class MultiSampleLoss(BoundLoss):
    """Measure a bound that weighs each sample for the model, and again for the guide."""

    _estimators: tuple[str, ...] = Weigher.estimators

    def __init__(
        self,
        num_samples: int,
        estimator: str,
        chunk_size: int | Literal["auto"] | None,
        memory_budget: int | None,
        prior: Prior | None,
        reduction: str,
        validate_args: bool,
        *,
        num_groups: int = 1,
        group: Any = None,
    ) -> None:
        where = type(self).__name__
        check_estimator(where, estimator, self._estimators)
        check_iwlb_options(where, num_samples, estimator, 0.0, reduction)
        check_num_samples(where, num_groups, "num_groups")
        check_chunks(where, num_groups * num_samples, chunk_size, memory_budget)
        super().__init__(num_samples, prior, reduction, validate_args)
        self.num_groups = num_groups
        self.estimator = estimator
        self.chunk_size = remembering(chunk_size)
        self.memory_budget = memory_budget
        self.group = group

    def weigh(self, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Compute the bound, (\*batch,), and the samples' weights for model and guide."""
        found = self.weigher().weights(log_w, signals=False)
        return found.bound, found.model, found.guide

    def forward(
        self,
        loc: Tensor,
        log_var: Tensor,
        log_likelihood: LogLikelihood,
        *,
        key: Tensor | None = None,
        prior: Prior | None = None,
    ) -> Tensor:
        """Compute the loss; ``prior`` replaces the module's own. See :func:`iwlb_loss`."""
        where = type(self).__name__
        prior = self.prior if prior is None else prior
        check_inputs(
            where, loc, log_var, log_likelihood, prior, self.reduction, key, self.validate_args
        )
        weigher = self.weigher()
        source = GaussianSource(
            where,
            log_likelihood,
            loc,
            log_var,
            prior,
            new_key(loc.device) if key is None else key,
            weigher,
            own_key=key is None,
            alike={"bound": where, "reduction": self.reduction},
            validate_args=self.validate_args,
        )
        group = None if self.group is None else SampleGroup(where, self.group)
        how = Cut(self.chunk_size, self.memory_budget, group, few=self._few(weigher))
        bound = source.bound(how)
        return loss_of(bound, self.reduction)

    def extra_repr(self) -> str:
        return self._settings(
            "num_samples", "estimator", num_groups=1, chunk_size=None, backward_samples=None
        )


class JackknifeLoss(MultiSampleLoss):
    r"""Measure the negative first-order jackknife bound.

    .. math::
        \mathrm{JVI}_1 = K L_K - \frac{K - 1}{K} \sum_{k=1}^{K} L_{K-1}^{(-k)}

    Its bias falls as :math:`K^{-2}`, and the bias of the IWLB as :math:`K^{-1}`. It may lie above
    the log-evidence. If one weight dominates, the bound without it is far below :math:`L_K`, and
    :math:`\mathrm{JVI}_1` is large by definition: it grows with the gap to the other weights, up to
    ``+inf`` if only one sample is possible. The forward pass keeps all log-weights, four bytes each
    (eight in float64).

    Args:
        num_samples: K, at least 2.
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
        group: Any = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
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
            group=group,
        )
        check_num_samples("JackknifeLoss", num_samples, at_least=2)
        self._keep_few(backward_samples, variance_growth, self.weigher())

    def weigher(self) -> Weigher:
        return Jackknife(self.num_samples, self.estimator)


class MIWAELoss(MultiSampleLoss):
    r"""Measure the negative mean of several importance-weighted bounds.

    .. math::
        L_{M, K} = \frac{1}{M} \sum_{m=1}^{M} \log \frac{1}{K} \sum_{k=1}^{K} w_{m, k}

    The weights are normalised over the K samples of a group. M = 1 is the IWLB, K = 1 the ELBO.
    With ``chunk_size`` the loss keeps two numbers for each example and group.

    Args:
        num_samples: K, samples in a group.
        num_groups: M.
        estimator: ``"dreg"`` or ``"iwae"``: how the guide's gradient is taken; both are unbiased.
        chunk_size: of the M K samples, at a time; see :func:`iwlb_loss`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: how many samples run backward; see :func:`iwlb_loss`.
        variance_growth: see :func:`iwlb_loss`.
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

    _model_takes_all = False

    def __init__(
        self,
        num_samples: int,
        num_groups: int,
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
    ) -> None:
        super().__init__(
            num_samples,
            estimator,
            chunk_size,
            memory_budget,
            prior,
            reduction,
            validate_args,
            num_groups=num_groups,
            group=group,
        )
        self._keep_few(backward_samples, variance_growth, self.weigher())

    def weigher(self) -> Weigher:
        return Groups(
            self.num_samples,
            self.num_groups,
            self.estimator,
            model_takes_all=self._model_takes_all,
        )


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
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: how many samples run backward; see :func:`iwlb_loss`.
        variance_growth: see :func:`iwlb_loss`.
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

    _model_takes_all = True


class CIWAELoss(MultiSampleLoss):
    r"""Measure the negative convex combination of the ELBO and the importance-weighted bound.

    .. math::
        L = \beta\, \mathrm{ELBO} + (1 - \beta)\, L_K

    Args:
        num_samples: K.
        beta: the ELBO's share, from 0 to 1.
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
    ) -> None:
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
        check_share("CIWAELoss", "beta", beta)
        self.beta = beta
        self._keep_few(backward_samples, variance_growth, self.weigher())

    def weigher(self) -> Weigher:
        return Combined(self.num_samples, self.beta, self.estimator)
