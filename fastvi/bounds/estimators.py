"""The gradient estimators of a bound: the weights of the samples, for model and guide.

With the normalised weights :math:`v_k = \\partial L / \\partial \\log w_k` the model's gradient is
:math:`\\sum_k v_k \\, \\partial_\\theta \\log w_k` for every estimator. They
differ in the gradient of the guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from fastvi._checks import check_choice, check_number


@dataclass(frozen=True)
class Estimator:
    """One way to differentiate the bound with respect to the guide.

    ``gradient`` says which one the guide gets: the ``"total"`` derivative of log w, its
    ``"path"`` through z alone, or the ``"score"`` of log q at fixed samples.
    """

    gradient: str
    # The weight of the path over the model's weight, a function of the normalised weights and
    # alpha; None for a factor of one.
    path_weight: Callable[[Tensor, float], Tensor] | None = None
    # The gradient that the sampler's own backward computes, if it needs no help at alpha = 0.
    fused: str | None = None
    # Whether it is there for every Renyi order alpha, or for alpha = 0 alone.
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
# "auto" takes the closed forms that there are, "analytic" requires them, the last takes none.
KL_FORMS = ("auto", "analytic", "monte_carlo")
# Names that users give as an estimator, but that are objectives, for samples without a path.
_OBJECTIVES_BY_NAME = {"vimco": "VIMCO", "reinforce": "Reinforce"}


def check_estimator(where: str, estimator: object, known: Iterable[str]) -> None:
    """Refuse an unknown estimator; if its name is that of an objective, say which."""
    instead = _OBJECTIVES_BY_NAME.get(estimator) if isinstance(estimator, str) else None
    if instead is None:
        check_choice(where, "estimator", estimator, known)
        return
    names = ", ".join(repr(name) for name in known)
    raise ValueError(
        f"{where}: expected estimator to be one of {names}, got {estimator!r}; it is a bound of "
        f"its own, fastvi.objectives.{instead}, for samples without a path: use it with SVI, "
        f"HierarchicalVAE.loss, VAE.loss or Trace_IWLB"
    )


def check_order(where: str, alpha: float, estimator: str) -> None:
    """Refuse an order of the Renyi bound that is no number, or that the estimator does not have."""
    check_number(where, "alpha", alpha)
    if alpha != 0.0 and not IWLB_ESTIMATORS[estimator].any_order:
        raise ValueError(
            f"{where}: expected alpha to be 0 for estimator {estimator!r}, got {alpha}"
        )


def check_kl(where: str, kl: object, estimator: str = "iwae") -> None:
    """Refuse an unknown form of the divergence, and one that the estimator has no use for."""
    check_choice(where, "kl", kl, KL_FORMS)
    if kl == "analytic" and estimator == "stl":
        raise ValueError(
            f"{where}: expected kl to be 'monte_carlo' for estimator 'stl' (a closed form has no "
            f"score to leave out), got 'analytic'"
        )
