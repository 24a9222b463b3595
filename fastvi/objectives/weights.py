"""Functions of log-weights whose gradients are not the derivative of the bound."""

from __future__ import annotations

from torch import Tensor

from fastvi._checks import check_choice, check_like_log_w, check_log_w
from fastvi._gradients import with_gradient
from fastvi.bounds.estimators import IWLB_ESTIMATORS, check_order
from fastvi.bounds.weighers import Renyi

_OF_THE_PATH = tuple(name for name, e in IWLB_ESTIMATORS.items() if e.gradient != "score")


def reweighted_wake_sleep(log_w: Tensor, log_q: Tensor) -> Tensor:
    r"""Compute the importance-weighted bound, with the wake phase for the guide's gradient.

    .. math::
        \text{model: } \sum_{k=1}^{K} \tilde w_k \nabla_\theta \log p(x, z_k), \qquad
        \text{guide: } \sum_{k=1}^{K} \tilde w_k \nabla_\phi \log q(z_k \mid x)

    The guide ascends the weighted log-density of its samples: with many, it descends
    :math:`\mathrm{KL}(p(z \mid x) \| q)`. No sample need be reparameterised.

    Args:
        log_w: :math:`\log p(x, z_k) - \log q(z_k \mid x)` in nats, shape (K, \*batch), as a
            function of the parameters of the model and of q.
        log_q: :math:`\log q(z_k \mid x)` in nats, of the same shape, as a function of the
            parameters of q. The samples are constants in both: detach those that have a gradient.

    Returns:
        The bound :math:`L_K` in nats, shape (\*batch,), with these two gradients.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: K = 0, or different shapes or devices.

    Example:
        >>> logits = torch.zeros(5, requires_grad=True)
        >>> z = torch.bernoulli(torch.full((16, 8, 5), 0.5))
        >>> log_q = fastvi.ops.bernoulli_log_prob(z, logits)
        >>> log_w = z.sum(-1) - log_q
        >>> bound = fastvi.objectives.reweighted_wake_sleep(log_w, log_q)
        >>> (-bound.mean()).backward()

    References:
        | Reweighted Wake-Sleep (Bornschein & Bengio, 2015), https://arxiv.org/abs/1406.2751
    """
    check_log_w("reweighted_wake_sleep", log_w)
    check_like_log_w("reweighted_wake_sleep", "log_q", log_q, log_w)
    found = Renyi(len(log_w), "iwae").weights(log_w, signals=False)
    bound, weights = found.bound, found.model
    # log w already holds -log q with these weights, so log q needs twice the weights.
    return with_gradient(bound, (log_w, weights), (log_q, 2.0 * weights))


def path_weights(log_w: Tensor, estimator: str = "dreg", *, alpha: float = 0.0) -> Tensor:
    r"""Compute the factor of an estimator on the path derivative of each sample.

    .. math::
        \nabla_\phi \approx \sum_{k=1}^{K} c_k\, \frac{\partial \log w_k}{\partial z_k}
            \frac{\partial z_k}{\partial \phi}, \qquad
        c_k = v_k \text{ (stl)}, \quad v_k (\alpha + (1 - \alpha) v_k) \text{ (dreg)}, \quad
            v_k (1 - v_k) \text{ (rws_dreg)}

    with the normalised weights :math:`v_k \propto w_k^{1 - \alpha}`. It is the gradient of the
    guide alone: log w has to be evaluated with the parameters of log q held constant, and the
    model's own gradient is that of :func:`renyi`. ``"iwae"`` has :math:`v_k`, of the total
    derivative.

    Args:
        log_w: log-weights in nats, shape (K, \*batch).
        estimator: ``"dreg"``, ``"stl"``, ``"rws_dreg"`` or ``"iwae"``.
        alpha: order of the Rényi bound: 0 is the IWLB, 1 the ELBO.

    Returns:
        :math:`c_k`, shape (K, \*batch), without a gradient.

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor, ``alpha`` not a float.
        ValueError: K = 0, an unknown estimator, or an alpha that it does not have.

    Example:
        >>> loc = torch.zeros(8, requires_grad=True)
        >>> z = loc + torch.randn(16, 8)
        >>> log_w = -((z - 1.0) ** 2) + 0.5 * (z - loc.detach()) ** 2
        >>> weights = fastvi.objectives.path_weights(log_w, "dreg")
        >>> (-(weights * log_w).sum(0).mean()).backward()

    References:
        | Sticking the Landing (Roeder et al., 2017), https://arxiv.org/abs/1703.09194
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019),
        | https://arxiv.org/abs/1810.04152
    """
    where = "path_weights"
    check_log_w(where, log_w)
    check_choice(where, "estimator", estimator, _OF_THE_PATH)
    check_order(where, alpha, estimator)
    return Renyi(len(log_w), estimator, float(alpha)).weights(log_w, signals=False).guide
