"""Bounds by the names of the table, as objectives."""

from __future__ import annotations

from typing import Any, Literal

from fastvi.bounds.table import BOUNDS, check_bound
from fastvi.bounds.weighers import Weigher
from fastvi.objectives.weighed import Relative


class NamedBound(Relative):
    r"""Bound the log-evidence by one of the table: ``"thermodynamic"``.

    .. math::
        \frac{1}{T} \sum_{j=0}^{T-1} \sum_{k=1}^{K} s_{jk} \log w_k, \qquad
        s_j = \operatorname{softmax}(t_j \log w), \quad t_j = j / T

    Args:
        bound: ``"thermodynamic"``; what it takes is ``temperatures``, T.
        num_samples: K.
        estimator: ``"dreg"``, for latents that are reparameterised, or ``"iwae"``, the total
            derivative; both are unbiased.
        chunk_size: see :class:`IWLB`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: see :class:`IWLB`.
        variance_growth: see :func:`fastvi.iwlb_loss`.
        settings: of the bound, by name.

    Raises:
        TypeError: not an int, or a setting that the bound has not.
        ValueError: an unknown bound or estimator, a number below 1.

    Example:
        >>> objective = fastvi.objectives.NamedBound("thermodynamic", 16, temperatures=8)
        >>> q = torch.distributions.Normal(torch.zeros(5), torch.ones(5))
        >>> z = fastvi.objectives.Latent.draw("z", q, 16)
        >>> objective.bound([z], lambda z: -0.5 * z["z"] ** 2).shape
        torch.Size([5])

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
        **settings: Any,
    ) -> None:
        self._estimators = check_bound("NamedBound", bound).estimators
        super().__init__(num_samples, estimator, chunk_size, memory_budget, group)
        self.name = bound
        self.settings = settings
        self._keep_few(backward_samples, variance_growth, self.weigher(self.num_samples))

    def weigher(self, num_samples: int) -> Weigher:
        return BOUNDS[self.name](num_samples, self.estimator, **self.settings)

    def extra_repr(self) -> str:
        more = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"{self.name!r}, {super().extra_repr()}{more}"
