"""The bound of a Pyro program that belongs to one of fastvi's objectives or losses."""

from __future__ import annotations

from typing import Any

from fastvi.bounds.weighers import Mean, Renyi, Weigher
from fastvi.integrations.pyro._programs import WHERE
from fastvi.losses import ELBOLoss, IWLBLoss
from fastvi.losses.multi_sample import MultiSampleLoss
from fastvi.objectives import ELBO, Reinforce
from fastvi.objectives.weighed import Weighed


def weigher_of(objective: Any) -> Weigher:
    """Return the weigher of one of fastvi's objectives or losses."""
    if isinstance(objective, Weighed):
        return objective.weigher(objective.num_samples)
    if isinstance(objective, IWLBLoss | MultiSampleLoss):
        return objective.weigher()
    if isinstance(objective, ELBO | ELBOLoss):
        _check_elbo(objective)
        return Renyi(objective.num_samples, objective.estimator, 1.0)
    if isinstance(objective, Reinforce):
        baseline = objective.shared_baseline()
        if baseline is None or isinstance(baseline, str):
            return Mean(objective.num_samples, baseline)
        raise ValueError(
            f"{WHERE}: expected baseline of Reinforce to be None or 'leave_one_out', one for all "
            f"sites, got {type(baseline).__name__}; fastvi.SVI and HierarchicalVAE.loss take others"
        )
    raise TypeError(
        f"{WHERE}: expected objective to be one of fastvi.objectives, such as IWLB(16), or a loss, "
        f"such as fastvi.MIWAELoss(8, 4), got {type(objective).__name__}"
    )


def _check_elbo(objective: Any) -> None:
    if objective.kl == "analytic":
        raise ValueError(
            f"{WHERE}: expected kl of {type(objective).__name__} to be 'auto' or 'monte_carlo', "
            f"got 'analytic': the sites of a program are evaluated at their samples; "
            f"pyro.infer.TraceMeanField_ELBO takes closed forms"
        )
    if getattr(objective, "beta", 1.0) != 1.0:
        raise ValueError(
            f"{WHERE}: expected beta of ELBOLoss to be 1, got {objective.beta}; in a program "
            f"pyro.poutine.scale weighs the latents' sites"
        )
