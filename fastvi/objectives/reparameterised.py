"""Objectives for latents that are reparameterised: the ELBO, and importance-weighted bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from fastvi._checks import plain
from fastvi.bounds.estimators import (
    ELBO_ESTIMATORS,
    IWLB_ESTIMATORS,
    check_estimator,
    check_kl,
    check_order,
)
from fastvi.bounds.weighers import Renyi, Weigher
from fastvi.chunks import Cut, SampleGroup, bound_in_passes
from fastvi.objectives.elbo_source import ELBOSource
from fastvi.objectives.latent import Draws, Latent, LogJoint, check_reparameterised
from fastvi.objectives.objective import Objective
from fastvi.objectives.weighed import Weighed


class ELBO(Objective):
    r"""Bound the log-evidence by the mean of the log-weights, with divergences in closed form.

    .. math::
        \frac{1}{K} \sum_{k=1}^{K} \log p(x, z_k) - \log q(z_k \mid x)

    If the log-joint returns the prior of a latent as a distribution, and q is one too,
    :math:`-\mathrm{KL}(q \| p)` replaces :math:`\log p(z_k) - \log q(z_k)`.

    Args:
        num_samples: K.
        kl: ``"auto"`` takes the closed forms that torch has, ``"analytic"`` requires one for
            every latent, ``"monte_carlo"`` takes none.
        estimator: ``"iwae"``, the total derivative, or ``"stl"``, which holds the parameters of
            log q constant. ``"stl"`` takes no closed form, and refuses ``kl="analytic"``.
        chunk_size: samples at a time through the log-joint, whose activations are computed again
            in the backward pass; ``"auto"`` for what ``memory_budget`` allows.
        memory_budget: bytes for ``chunk_size="auto"``; see :func:`fastvi.iwlb_loss`.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.

    Raises:
        TypeError: not an int.
        ValueError: a number below 1, or an unknown choice. In ``bound``: a latent that is not
            reparameterised, a term of the wrong shape, no closed form for ``"analytic"``.

    Example:
        >>> objective = fastvi.objectives.ELBO(num_samples=4)
        >>> q = torch.distributions.Normal(torch.zeros(8), torch.ones(8))
        >>> z = fastvi.objectives.Latent.draw("z", q, 4)
        >>> p = torch.distributions.Normal(0.0, 1.0)
        >>> objective.bound([z], lambda z: {"z": p, "x": -z["z"] ** 2}).shape
        torch.Size([8])

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114
        | Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
    """

    def __init__(
        self,
        num_samples: int = 1,
        kl: str = "auto",
        *,
        estimator: str = "iwae",
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
    ) -> None:
        super().__init__(num_samples, chunk_size=chunk_size, memory_budget=memory_budget)
        self.group = None if group is None else SampleGroup("ELBO", group)
        check_estimator("ELBO", estimator, ELBO_ESTIMATORS)
        check_kl("ELBO", kl, estimator)
        self.beta = 1.0
        self.kl = "monte_carlo" if estimator == "stl" else kl
        self.estimator = estimator
        self.needs_path = estimator == "stl"

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
        source = ELBOSource(
            "ELBO", latents, log_joint, num_samples, kl=self.kl, path=self.needs_path,
            facts={"estimator": self.estimator, "kl": self.kl, "beta": self.beta}, beta=self.beta,
            data=data, num_data=num_data,
        )  # fmt: skip
        check_reparameterised("ELBO", source.specimens)
        if self.at_once:
            return source.evaluated(source.given).elbo.value()
        return bound_in_passes(
            source, source.weigher, Cut(self.chunk_size, self.memory_budget, self.group)
        )


class IWLB(Weighed):
    r"""Bound the log-evidence by the log-mean-exp of the log-weights, or its Rényi relative.

    .. math::
        L_K = \log \frac{1}{K} \sum_{k=1}^{K} w_k, \qquad
        L_K^{(\alpha)} = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_{k=1}^{K} w_k^{1 - \alpha}

    The model's gradient is :math:`\sum_k v_k \nabla \log p(x, z_k)` with the normalised weights
    :math:`v`. The guide's depends on the estimator: through the samples alone for ``"dreg"`` (with
    weights :math:`v_k (\alpha + (1 - \alpha) v_k)`), ``"stl"`` (:math:`v_k`, biased for K > 1) and
    ``"rws_dreg"`` (:math:`v_k (1 - v_k)`); the total derivative for ``"iwae"``; the score at fixed
    samples for ``"rws"``, which trains another objective, and needs no reparameterisation.

    Args:
        num_samples: K.
        estimator: as above.
        alpha: order of the Rényi bound: 0 is the IWLB, 1 the ELBO.
        chunk_size: samples at a time through the log-joint, which runs once more in the backward
            pass for all chunks but the last. With :class:`Draws`, or a guide of :class:`fastvi.SVI`
            whose families are drawn from keys, only the samples of one chunk are in memory.
            ``"auto"`` takes what ``memory_budget`` allows.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them. Seeds, data
            and parameters must be the same on all of them.
        memory_budget: bytes for ``chunk_size="auto"``; see :func:`fastvi.iwlb_loss`.
        backward_samples: how many of each datum's samples run backward, chosen by their weights;
            ``None`` for all, ``"auto"`` for as many as ``variance_growth`` asks for. The value is
            that of all K, and the mean of the gradient over the choice is the gradient of all K.
            The log-joint must draw no noise.
        variance_growth: see :func:`fastvi.iwlb_loss`.

    Raises:
        TypeError: not an int, or not a float.
        ValueError: a number below 1, an unknown estimator, an alpha that it does not have. In
            ``bound``: a latent that is not reparameterised, latents of different batches, a term
            of the wrong shape, sub-sampled data under latents of all the data.

    Example:
        >>> objective = fastvi.objectives.IWLB(num_samples=16)
        >>> q = torch.distributions.Normal(torch.zeros(8), torch.ones(8))
        >>> z = fastvi.objectives.Latent.draw("z", q, 16)
        >>> objective.bound([z], lambda z: -0.5 * z["z"] ** 2).shape
        torch.Size([8])

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019),
        | https://arxiv.org/abs/1810.04152
        | Rényi Divergence Variational Inference (Li & Turner, 2016), https://arxiv.org/abs/1602.02311
    """

    def __init__(
        self,
        num_samples: int,
        estimator: str = "dreg",
        *,
        alpha: float = 0.0,
        chunk_size: int | Literal["auto"] | None = None,
        group: Any = None,
        memory_budget: int | None = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
    ) -> None:
        super().__init__(num_samples, chunk_size=chunk_size, memory_budget=memory_budget)
        where = type(self).__name__
        check_estimator(where, estimator, IWLB_ESTIMATORS)
        alpha = plain(alpha)
        check_order(where, alpha, estimator)
        self.estimator = estimator
        self.alpha = float(alpha)
        self.group = None if group is None else SampleGroup(where, group)
        self.needs_path = IWLB_ESTIMATORS[estimator].gradient != "total"
        self._keep_few(backward_samples, variance_growth, self.weigher(self.num_samples))

    def weigher(self, num_samples: int) -> Weigher:
        return Renyi(num_samples, self.estimator, self.alpha)

    def extra_repr(self) -> str:
        alpha = "" if self.alpha == 0.0 else f", alpha={self.alpha}"
        return f"{super().extra_repr()}, estimator={self.estimator!r}{alpha}"
