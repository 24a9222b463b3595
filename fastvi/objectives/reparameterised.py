"""Objectives for latents that are reparameterised: the ELBO, and importance-weighted bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastvi import ops
from fastvi._loss_arguments import check_choice, check_number, plain
from fastvi._modes import records_graphs
from fastvi.bounds.estimators import ELBO_ESTIMATORS, IWLB_ESTIMATORS
from fastvi.chunks.sample_group import SampleGroup
from fastvi.chunks.totals import Terms, Totals
from fastvi.objectives.latent import (
    Latent,
    LogJoint,
    check_latents,
    check_reparameterised,
)
from fastvi.objectives.linear import KL_FORMS, check_paths, linear_bound, moves_with_samples
from fastvi.objectives.objective import (
    Objective,
    PathWeight,
    log_joint_of,
    log_q_of,
    with_gradient,
)
from fastvi.objectives.terms import evaluate


class ELBO(Objective):
    r"""Bound the log-evidence by the mean of the log-weights, with divergences in closed form.

    .. math::
        \frac{1}{K} \sum_{k=1}^{K} \log p(x, z_k) - \log q(z_k \mid x)

    Where the log-joint names the prior of a latent by its distribution, and q's is known,
    :math:`\log p(z_k) - \log q(z_k)` is replaced by :math:`-\mathrm{KL}(q \| p)`.

    Args:
        num_samples: K.
        kl: ``"auto"`` takes closed forms where torch has them, ``"analytic"`` insists on one for
            every latent, ``"sampled"`` takes none.
        estimator: ``"total"``, or ``"stl"`` to hold the parameters of log q constant, which needs
            sampled divergences.
        chunk_size: samples at a time through the log-joint, whose activations are computed again
            in the backward pass; ``"auto"`` for what ``memory_budget`` allows.
        memory_budget: bytes for ``chunk_size="auto"``; see :func:`fastvi.iwlb_loss`.

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
        estimator: str = "total",
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__(num_samples, chunk_size, memory_budget)
        check_choice("ELBO", "kl", kl, KL_FORMS)
        check_choice("ELBO", "estimator", estimator, ELBO_ESTIMATORS)
        if estimator == "stl" and kl == "analytic":
            raise ValueError(
                "ELBO: expected kl to be 'sampled' for estimator 'stl' (a closed form has no score "
                "to leave out), got 'analytic'"
            )
        if chunk_size == "auto" and kl == "analytic":
            raise ValueError(
                "ELBO: expected kl to be 'auto' or 'sampled' with chunk_size, got 'analytic'; the "
                "priors of a chunk do not outlive it"
            )
        self.kl = "sampled" if estimator == "stl" else kl
        self.estimator = estimator
        self.needs_path = estimator == "stl"

    def bound(
        self,
        latents: Sequence[Latent],
        log_joint: LogJoint,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> Tensor:
        r"""Compute the bound of each datum; see :meth:`Objective.bound`."""
        latents = check_latents("ELBO", latents)
        check_reparameterised("ELBO", latents)
        values = {latent.name: latent.value for latent in latents}
        size = self.samples_at_a_time(latents, values, log_joint)
        return linear_bound(
            "ELBO", latents, log_joint, num_data, self.kl, size, path=self.needs_path
        ).value()


class IWLB(Objective):
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
        chunk_size: samples at a time through the log-joint, whose activations are computed again
            in the backward pass. All values of the latents are kept. ``"auto"`` takes what
            ``memory_budget`` allows.
        group: a ``torch.distributed`` group whose ranks share the samples. Every rank draws all
            of them, so that seeds, data and parameters must be the same, and evaluates the
            log-joint at its own; ``fastvi.sum_gradients`` adds up the gradients.
        memory_budget: bytes for ``chunk_size="auto"``; see :func:`fastvi.iwlb_loss`.

    Raises:
        TypeError: not an int, or not a float.
        ValueError: a number below 1, an unknown estimator, an alpha that it does not serve. In
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
        alpha: float = 0.0,
        chunk_size: int | Literal["auto"] | None = None,
        group: Any = None,
        *,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__(num_samples, chunk_size, memory_budget)
        where = type(self).__name__
        check_choice(where, "estimator", estimator, IWLB_ESTIMATORS)
        alpha = plain(alpha)
        check_number(where, "alpha", alpha)
        if alpha != 0.0 and not IWLB_ESTIMATORS[estimator].any_order:
            raise ValueError(
                f"{where}: expected alpha to be 0 for estimator {estimator!r}, got {alpha}"
            )
        self.estimator = estimator
        self.alpha = float(alpha)
        self.group = None if group is None else SampleGroup(where, group)
        self.needs_path = IWLB_ESTIMATORS[estimator].gradient != "total"

    def bound(
        self,
        latents: Sequence[Latent],
        log_joint: LogJoint,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> Tensor:
        r"""Compute the bound of each datum; see :meth:`Objective.bound`."""
        where = type(self).__name__
        latents = check_latents(where, latents)
        gradient = IWLB_ESTIMATORS[self.estimator].gradient
        if gradient != "score":
            check_reparameterised(where, latents)
        if self.needs_path:
            check_paths(where, latents)
        num_samples = len(latents[0].value)
        share = self._share(latents, num_samples, data)
        factor = PathWeight()
        values = {}
        for latent in latents:
            value = latent.value[share]
            if gradient == "score":
                value = value.detach()
            values[latent.name] = factor.attach(value) if gradient == "path" else value
        log_q = log_q_of(latents)[share]
        batch, like = log_q.shape[1:], log_q.detach()[:0]
        totals = Totals(self.alpha)
        with totals.awaited(self.group, batch, like):
            size = self.samples_at_a_time(latents, values, log_joint)
            terms = evaluate(where, latents, values, log_joint, chunk_size=size)
            log_p = log_joint_of(where, latents, terms, num_data)
        log_w = log_p - log_q
        if self.group is None and gradient == "total":
            return ops.iwlb(log_w, alpha=self.alpha)
        at_hand = Terms.of_weights(log_w.detach())
        totals.add(at_hand)
        if self.group is not None:
            totals.meet(self.group, batch, like)
        bound, weights = totals.bound(num_samples), totals.weights(at_hand, num_samples)
        if not records_graphs():
            return bound
        if gradient == "total":
            return with_gradient(bound, (log_w, weights))
        moving = [
            latent.log_q_path()[share] for latent in latents if moves_with_samples(latent, latents)
        ]
        if gradient == "score":
            # What is left of the total derivative without the path is the score.
            held = [(part, -weights) for part in moving]
            return with_gradient(bound, (log_p, weights), (log_q, weights), *held)
        path_weight = IWLB_ESTIMATORS[self.estimator].path_weight
        path = torch.ones_like(weights) if path_weight is None else path_weight(weights, self.alpha)
        factor.weight = path
        return with_gradient(bound, (log_p, weights), *((part, -weights * path) for part in moving))

    def _share(self, latents: Sequence[Latent], num_samples: int, data: Any) -> slice:
        """The samples that this process evaluates."""
        if self.group is None:
            return slice(None)
        if num_samples < self.group.size:
            raise ValueError(
                f"{type(self).__name__}: expected at least one sample for each of the "
                f"{self.group.size} ranks, got {num_samples}"
            )
        facts = {"num_samples": num_samples, "estimator": self.estimator, "alpha": self.alpha}
        parts = data if isinstance(data, (tuple, list)) else (data,)
        facts |= {f"data {i}": part for i, part in enumerate(parts) if isinstance(part, Tensor)}
        for latent in latents:
            facts |= {f"samples of {latent.name!r}": latent.value}
            facts |= {f"log q of {latent.name!r}": latent.log_q}
        self.group.check_agreement(facts, latents[0].value.device)
        return slice(*self.group.share(num_samples))

    def extra_repr(self) -> str:
        alpha = "" if self.alpha == 0.0 else f", alpha={self.alpha}"
        return f"{super().extra_repr()}, estimator={self.estimator!r}{alpha}"
