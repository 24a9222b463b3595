"""What each gradient estimator of a bound asks of the samples: their weights, for model and guide.

With the normalised weights :math:`v_k = \\partial L / \\partial \\log w_k` the model's gradient is
:math:`\\sum_k v_k \\, \\partial_\\theta \\log w_k` for every estimator. They differ in the guide's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Estimator:
    """One way to differentiate the bound with respect to the guide.

    ``gradient`` is what reaches the guide's parameters: the ``"total"`` derivative of log w, its
    ``"path"`` through z alone, or the ``"score"`` of log q at fixed samples.
    """

    gradient: str
    # The path's weight over the model's, from the normalised weights and alpha; None for one.
    path_weight: Callable[[Tensor, float], Tensor] | None = None
    # What the sampler's own backward is asked for, where it can do all by itself at alpha = 0.
    fused: str | None = None
    # Whether it serves every Renyi order alpha, or alpha = 0 alone.
    any_order: bool = True


# E[v_k * score_k] = E[(d v_k / d log w_k) * path_k]: taking the score out of the total derivative
# leaves the path with weight v - dv / dlog w, where dv / dlog w = (1 - alpha) v (1 - v).
IWLB_ESTIMATORS: dict[str, Estimator] = {
    # Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
    "iwae": Estimator("total", fused="total"),
    # Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
    "stl": Estimator("path", fused="path"),
    # Doubly Reparameterized Gradient Estimators (Tucker et al., 2019), arxiv.org/abs/1810.04152
    "dreg": Estimator("path", lambda v, alpha: alpha + (1.0 - alpha) * v, fused="path_weighted"),
    # The wake phase of the guide in Reweighted Wake-Sleep (Bornschein & Bengio, 2015),
    # https://arxiv.org/abs/1406.2751: ascends sum_k v_k log q(z_k) at fixed samples and weights.
    "rws": Estimator("score", any_order=False),
    # The same expectation, doubly reparameterised (Tucker et al., 2019, section 6.2).
    "rws_dreg": Estimator("path", lambda v, _: 1.0 - v, any_order=False),
}
ELBO_ESTIMATORS: dict[str, Estimator] = {
    "iwae": IWLB_ESTIMATORS["iwae"],
    "stl": IWLB_ESTIMATORS["stl"],
}
# What is asked for as an estimator at times, and is an objective: it credits what has no path.
OBJECTIVES_BY_NAME = {"vimco": "VIMCO", "reinforce": "Reinforce"}
