"""The objective over any latents that has the value and the gradients of a drop-in loss."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from fastvi.bounds.weighers import Weigher
from fastvi.chunks.sample_group import SampleGroup
from fastvi.losses import ELBOLoss, IWLBLoss
from fastvi.losses._module import BoundLoss
from fastvi.losses.multi_sample import MultiSampleLoss
from fastvi.objectives import ELBO, IWLB, Objective
from fastvi.objectives.weighed import Weighed


def is_drop_in(objective: object) -> bool:
    """Return whether it is a drop-in loss, such as :class:`fastvi.IWLBLoss`."""
    return isinstance(objective, BoundLoss)


def check_objective(where: str, objective: object) -> None:
    """Refuse what is neither loss nor objective, and a loss that has a prior of its own."""
    if not (isinstance(objective, Objective) or callable(objective)):
        raise TypeError(
            f"{where}: expected objective to be a loss, such as fastvi.IWLBLoss(num_samples=50), "
            f"or one of fastvi.objectives, got {objective!r}"
        )
    if getattr(objective, "prior", None) is not None:
        raise ValueError(
            f"{where}: expected objective to have no prior of its own, got one: give it to the "
            f"model, as in VAE(..., prior=...)"
        )


def reduction_of(objective: object) -> str:
    """Return the reduction over the batch of a drop-in loss, and the mean for an objective."""
    return getattr(objective, "reduction", "mean") if is_drop_in(objective) else "mean"


def each_datum(loss: nn.Module) -> nn.Module:
    """Return the same drop-in loss without a reduction over the batch."""
    single = copy.copy(loss)
    single.reduction = "none"  # type: ignore[assignment]
    return single


def objective_of(where: str, objective: object) -> Objective:
    """Return the objective itself, or the objective that a drop-in loss is for any latents."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, IWLBLoss):
        return IWLB(
            objective.num_samples,
            estimator=objective.estimator,
            alpha=objective.alpha,
            chunk_size=_plain(objective.chunk_size),
            group=objective.group,
            memory_budget=objective.memory_budget,
            backward_samples=objective.backward_samples,
            variance_growth=objective.variance_growth,
        )
    if isinstance(objective, ELBOLoss):
        return _elbo_of(objective)
    if isinstance(objective, MultiSampleLoss):
        return WeighedLoss(objective)
    raise TypeError(
        f"{where}: expected objective to be a loss of fastvi or one of fastvi.objectives, as the "
        f"latents are no diagonal Gaussians with a Gaussian prior, got {type(objective).__name__}"
    )


def _plain(chunk_size: object) -> Any:
    return str(chunk_size) if isinstance(chunk_size, str) else chunk_size


class WeighedLoss(Weighed):
    """The bound of a drop-in loss for any latents."""

    def __init__(self, loss: MultiSampleLoss) -> None:
        super().__init__(
            loss.weigher().num_samples,
            chunk_size=_plain(loss.chunk_size),
            memory_budget=loss.memory_budget,
        )
        self.loss = loss
        self.group = None if loss.group is None else SampleGroup(self.where, loss.group)
        self.needs_path = loss.weigher().gradient != "total"
        self.credits = not self.needs_path
        self._keep_few(loss.backward_samples, loss.variance_growth, loss.weigher())

    @property
    def where(self) -> str:
        return type(self.loss).__name__

    def weigher(self, num_samples: int) -> Weigher:
        return self.loss.weigher()


def _elbo_of(loss: ELBOLoss) -> ELBO:
    """Return the ELBO for any latents, with the loss's weight of the divergence."""
    found = ELBO(
        loss.num_samples,
        kl=loss.kl,
        estimator=loss.estimator,
        chunk_size=_plain(loss.chunk_size),
        memory_budget=loss.memory_budget,
        group=loss.group,
    )
    found.beta = loss.beta
    return found
