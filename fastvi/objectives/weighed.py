"""Objectives that weigh samples: all of them share one way from latents to the bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi._checks import check_chunks, check_num_samples, check_share, plain
from fastvi._modes import records_graphs
from fastvi.bounds.estimators import check_estimator
from fastvi.bounds.weighers import Combined, Groups, Weigher
from fastvi.bounds.weighers import Jackknife as JackknifeWeigher
from fastvi.chunks import BackwardSamples, Cut, SampleGroup, bound_at_once, bound_in_passes
from fastvi.objectives.latent import Draws, Latent, LogJoint
from fastvi.objectives.objective import Objective
from fastvi.objectives.source import LatentSource
from fastvi.ops._call import exporting, refuse_strict_export


class Weighed(BackwardSamples, Objective):
    """Compute a bound from the log-weights by a weigher."""

    # Whether samples without a path get a signal. If not, they are refused.
    credits = False

    def drawn(self, latents: Sequence[Latent] | Draws) -> tuple[Sequence[Latent] | Draws, int]:
        found, num_samples = super().drawn(latents)
        # Then a few of given samples are taken.
        given = isinstance(found, Draws) and not found.by_number
        few = self.backward_samples is not None and records_graphs()
        return found(num_samples) if given and few else found, num_samples  # type: ignore[operator]

    @property
    def at_once(self) -> bool:
        return super().at_once and (self.backward_samples is None or not records_graphs())

    def weigher(self, num_samples: int) -> Weigher:
        """Return the bound of this many samples, with the estimator of its gradient."""
        raise NotImplementedError

    def bound(
        self,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> Tensor:
        r"""Compute the bound of each datum; see :meth:`Objective.bound`."""
        latents, num_samples = self.drawn(latents)
        source = LatentSource(
            self.where, latents, log_joint, self.weigher, num_samples, credits=self.credits,
            data=data, num_data=num_data,
        )  # fmt: skip
        weigher = source.weigher
        how = Cut(self.chunk_size, self.memory_budget, self.group, few=self._few(weigher))
        if not self.at_once:
            self._refuse_strict_export(source)
            return bound_in_passes(source, weigher, how)
        if records_graphs() and (source.unseen or not weigher.is_plain):
            self._refuse_strict_export(source)
        bound = bound_at_once(source.evaluated(source.given), weigher)
        return bound_in_passes(source, weigher, how) if bound is None else bound

    def extra_repr(self) -> str:
        few = self.backward_samples
        return super().extra_repr() + ("" if few is None else f", backward_samples={few!r}")

    def _refuse_strict_export(self, source: LatentSource) -> None:
        if exporting() and torch.compiler.is_dynamo_compiling():
            for latent in filter(source.needs_log_q_path, source.given):
                latent.log_q_path()  # This may raise an error that names the reason.
            refuse_strict_export(self.where, "'iwae'")


# ---- bounds with weights of their own for the guide ---------------------------------------------
class Relative(Weighed):
    """Compute a bound that has one set of weights for the model, and another for the guide."""

    _estimators: tuple[str, ...] = Weigher.estimators

    def __init__(
        self,
        num_samples: int,
        estimator: str,
        chunk_size: int | Literal["auto"] | None,
        memory_budget: int | None,
        group: Any,
        num_groups: int = 1,
    ) -> None:
        where = type(self).__name__
        num_samples, num_groups = plain(num_samples), plain(num_groups)
        check_num_samples(where, num_samples)
        check_num_samples(where, num_groups, "num_groups")
        check_estimator(where, estimator, self._estimators)
        chunk_size = plain(chunk_size)
        check_chunks(where, num_groups * num_samples, chunk_size, memory_budget)
        super().__init__(
            num_groups * num_samples, chunk_size=chunk_size, memory_budget=memory_budget
        )
        self.estimator = estimator
        self.group = None if group is None else SampleGroup(where, group)
        self.credits = estimator == "iwae"
        self.needs_path = estimator == "dreg"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, estimator={self.estimator!r}"


class MIWAE(Relative):
    r"""Bound the log-evidence by the mean of several importance-weighted bounds.

    .. math::
        L_{M, K} = \frac{1}{M} \sum_{m=1}^{M} \log \frac{1}{K} \sum_{k=1}^{K} w_{m, k}

    The weights are normalised over the K samples of a group. M = 1 is the IWLB, K = 1 the ELBO.
    The attribute ``num_samples`` of the objective is M K, the number that is drawn.

    Args:
        num_samples: K, samples in a group.
        num_groups: M.
        estimator: ``"dreg"``, for latents that are reparameterised, or ``"iwae"``, the total
            derivative, with VIMCO's signal in each group for those that are not; both unbiased.
        chunk_size: of the M K samples, at a time; see :class:`IWLB`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: see :class:`IWLB`.
        variance_growth: see :func:`fastvi.iwlb_loss`.

    Raises:
        TypeError: not an int.
        ValueError: a number below 1, an unknown estimator. In ``bound``: as for :class:`IWLB`.

    Example:
        >>> objective = fastvi.objectives.MIWAE(num_samples=8, num_groups=4)
        >>> q = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
        >>> z = fastvi.objectives.Latent.draw("z", q, objective.num_samples)
        >>> objective.bound([z], lambda z: -0.5 * z["z"] ** 2).shape
        torch.Size([5])

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
    ) -> None:
        super().__init__(num_samples, estimator, chunk_size, memory_budget, group, num_groups)
        self.num_groups = num_groups
        self._keep_few(backward_samples, variance_growth, self.weigher(self.num_samples))

    def weigher(self, num_samples: int) -> Weigher:
        if num_samples % self.num_groups:
            raise ValueError(
                f"{type(self).__name__}: expected the number of samples to be a multiple of "
                f"num_groups, {self.num_groups}, got {num_samples}"
            )
        return Groups(
            num_samples // self.num_groups,
            self.num_groups,
            self.estimator,
            model_takes_all=self._model_takes_all,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"


class PIWAE(MIWAE):
    r"""Train the model by the bound of all M K samples, the guide by groups of K.

    The reported bound is the model's, :math:`L_{M K}`. The guide gets the gradient of
    :class:`MIWAE`, which is less noisy. The arguments are those of :class:`MIWAE`.

    Example:
        >>> objective = fastvi.objectives.PIWAE(num_samples=8, num_groups=4)
        >>> q = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
        >>> z = fastvi.objectives.Latent.draw("z", q, objective.num_samples)
        >>> objective.bound([z], lambda z: -0.5 * z["z"] ** 2).shape
        torch.Size([5])

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """

    _model_takes_all = True


class CIWAE(Relative):
    r"""Bound the log-evidence by a convex combination of the ELBO and the IWLB.

    .. math::
        L = \beta\, \mathrm{ELBO} + (1 - \beta)\, L_K

    Args:
        num_samples: K.
        beta: the ELBO's share, from 0 to 1.
        estimator: ``"dreg"`` or ``"iwae"``; see :class:`MIWAE`.
        chunk_size: see :class:`IWLB`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: see :class:`IWLB`.
        variance_growth: see :func:`fastvi.iwlb_loss`.

    Raises:
        TypeError: not an int, or not a float.
        ValueError: K < 1, an unknown estimator, a beta outside [0, 1].

    Example:
        >>> objective = fastvi.objectives.CIWAE(num_samples=8, beta=0.1)
        >>> q = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
        >>> z = fastvi.objectives.Latent.draw("z", q, 8)
        >>> objective.bound([z], lambda z: -0.5 * z["z"] ** 2).shape
        torch.Size([5])

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
    ) -> None:
        super().__init__(num_samples, estimator, chunk_size, memory_budget, group)
        beta = plain(beta)
        check_share("CIWAE", "beta", beta)
        self.beta = float(beta)
        self._keep_few(backward_samples, variance_growth, self.weigher(self.num_samples))

    def weigher(self, num_samples: int) -> Weigher:
        return Combined(num_samples, self.beta, self.estimator)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, beta={self.beta}"


class Jackknife(Relative):
    r"""Estimate the log-evidence by the first-order jackknife, which removes the first bias.

    .. math::
        \mathrm{JVI}_1 = K L_K - \frac{K - 1}{K} \sum_{k=1}^{K} L_{K-1}^{(-k)}

    It may lie above the log-evidence; see :class:`fastvi.JackknifeLoss`. Latents have to be
    reparameterised.

    Args:
        num_samples: K, at least 2.
        estimator: ``"dreg"`` or ``"iwae"``, the total derivative; both are unbiased.
        chunk_size: see :class:`IWLB`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: see :class:`IWLB`.
        variance_growth: see :func:`fastvi.iwlb_loss`.

    Raises:
        TypeError: not an int.
        ValueError: K < 2, an unknown estimator. In ``bound``: as for :class:`IWLB`.

    Example:
        >>> objective = fastvi.objectives.Jackknife(num_samples=8)
        >>> q = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
        >>> z = fastvi.objectives.Latent.draw("z", q, 8)
        >>> objective.bound([z], lambda z: -0.5 * z["z"] ** 2).shape
        torch.Size([5])

    References:
        | Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        | Variational Inference (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb
    """

    def __init__(
        self,
        num_samples: int,
        *,
        estimator: str = "dreg",
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
    ) -> None:
        super().__init__(num_samples, estimator, chunk_size, memory_budget, group)
        check_num_samples("Jackknife", num_samples, at_least=2)
        self.credits = False
        self._keep_few(backward_samples, variance_growth, self.weigher(self.num_samples))

    def weigher(self, num_samples: int) -> Weigher:
        return JackknifeWeigher(num_samples, self.estimator)
