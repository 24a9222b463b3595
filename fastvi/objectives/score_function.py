"""Bounds whose latents cannot be reparameterised: score-function gradients, with control variates.

The value is the bound. Its gradient is the bound's own, plus the score of each sample times the
sample's signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fastvi._checks import check_float, check_like_log_w, check_log_w
from fastvi._gradients import with_gradient
from fastvi.bounds.signals import Baseline, advantage, vimco_signal
from fastvi.objectives.bounds import elbo, iwlb


def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
    r"""Compute the importance-weighted bound, with the VIMCO estimator of its gradient.

    .. math::
        \nabla L_K \approx \sum_{k=1}^{K} \bigl(L_K - \hat L_K^{(-k)}\bigr) \nabla \log q(z_k)
            + \sum_{k=1}^{K} \tilde w_k \nabla \log w_k

    where :math:`\hat L_K^{(-k)}` is the bound with :math:`w_k` replaced by the geometric mean of
    the other weights. It does not depend on :math:`z_k`, so the estimator is unbiased; and it is
    near :math:`L_K`, so the signal of a sample is what this sample alone has changed.

    Args:
        log_w: :math:`\log p(x, z_k) - \log q(z_k \mid x)` in nats, shape (K, \*batch), K at least
            2, as a function of the parameters of the model and of q.
        log_q: :math:`\log q(z_k \mid x)` in nats, of the same shape, as a function of the
            parameters of q. The samples themselves are constants.

    Returns:
        The bound :math:`L_K` in nats, shape (\*batch,), whose gradient is the estimator.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: K < 2, or different shapes or devices.

    Example:
        >>> logits = torch.zeros(5, requires_grad=True)
        >>> z = torch.bernoulli(torch.full((16, 8, 5), 0.5))
        >>> log_q = fastvi.ops.bernoulli_log_prob(z, logits)
        >>> bound = fastvi.objectives.vimco(z.sum(-1) - log_q, log_q)
        >>> (-bound.mean()).backward()

    References:
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        | https://arxiv.org/abs/1602.06725
    """
    check_log_w("vimco", log_w, at_least=2)
    check_like_log_w("vimco", "log_q", log_q, log_w)
    signal = vimco_signal(log_w.detach())
    bound = iwlb(log_w)
    return bound + with_gradient(torch.zeros_like(bound), (log_q, signal), once=False)


def reinforce(
    log_w: Tensor,
    log_q: Tensor | Sequence[Tensor],
    *,
    baseline: Baseline | Sequence[Baseline] = None,
    downstream: Tensor | Sequence[Tensor] | None = None,
) -> Tensor:
    r"""Compute the ELBO, with a score-function estimator of its gradient.

    .. math::
        \nabla \mathcal{L} \approx \frac{1}{K} \sum_{k=1}^{K} \Bigl[\nabla \log w_k
            + \sum_{i} (s_{ik} - b_{ik})\, \nabla \log q(z_{ik} \mid \cdot)\Bigr]

    The signal :math:`s_i` of a latent is the sum of the terms of :math:`\log w` that depend on it;
    by default all of them. It holds no terms of other examples. Without the terms that do not
    depend on the latent (those of the layers before it) the mean of the gradient is the same and
    its variance is lower. A baseline lowers the variance too:

    - ``None``: no baseline.
    - ``"leave_one_out"``: the mean signal of the other samples. K at least 2.
    - a :class:`DecayingAverage`: the average of the steps before; one for each latent.
    - a tensor, shape (\*batch,) or (K, \*batch), that a network predicts from the data. It must
      not depend on the latent. The same backward pass trains the network by its squared error,
      whatever the weight of the bound in a loss is.

    Args:
        log_w: :math:`\log p(x, z_k) - \log q(z_k \mid x)` in nats, shape (K, \*batch), as a
            function of the parameters of the model and of q.
        log_q: the log-probability in nats of the samples of the latent that is not
            reparameterised, shape (K, \*batch), or a sequence of them, one for each such latent.
        baseline: as above; one for all latents, or a sequence of one for each.
        downstream: the signal of each latent, shape (K, \*batch), in nats: the terms that depend
            on it. ``None`` for ``log_w``.

    Returns:
        The ELBO in nats, shape (\*batch,), whose gradient is the estimator.

    Raises:
        TypeError: not floating-point tensors, or a baseline that is none of the above.
        ValueError: K = 0, K = 1 for ``"leave_one_out"``, different shapes or devices, or
            sequences of different lengths.

    Example:
        >>> logits = torch.zeros(5, requires_grad=True)
        >>> z = torch.bernoulli(torch.full((16, 8, 5), 0.5))
        >>> log_q = fastvi.ops.bernoulli_log_prob(z, logits)
        >>> log_w = z.sum(-1) - log_q
        >>> bound = fastvi.objectives.reinforce(log_w, log_q, baseline="leave_one_out")
        >>> (-bound.mean()).backward()

    References:
        | Simple Statistical Gradient-Following Algorithms (Williams, 1992),
        | https://doi.org/10.1007/BF00992696
        | Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
        | https://arxiv.org/abs/1402.0030
        | Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019),
        | https://openreview.net/forum?id=r1lgTGL5DE
    """
    check_log_w("reinforce", log_w)
    scores = [log_q] if isinstance(log_q, Tensor) else list(log_q)
    count = len(scores)
    signals = _one_for_each("downstream", log_w if downstream is None else downstream, count)
    baselines = _one_for_each("baseline", baseline, count)
    averages = [id(base) for base in baselines if isinstance(base, nn.Module)]
    if len(set(averages)) < len(averages):
        raise ValueError(
            "reinforce: expected a DecayingAverage of its own for each of log_q, got one for "
            "several, which would know of the samples of this step"
        )
    bound = elbo(log_w)
    parts = []
    for log_prob, signal, base in zip(scores, signals, baselines, strict=True):
        check_like_log_w("reinforce", "log_q", log_prob, log_w)
        check_like_log_w("reinforce", "downstream", signal, log_w)
        signal = signal.detach().to(bound.dtype)
        difference = advantage(signal, cast(Baseline, base))
        parts.append((log_prob, difference.detach() / len(signal)))
        if isinstance(base, Tensor):
            # Its squared error falls as the bound rises.
            fit = difference.square()
            parts.append((fit, torch.full_like(fit, -1.0 / len(signal))))
    return bound + with_gradient(torch.zeros_like(bound), *parts, once=False)


class DecayingAverage(nn.Module):
    r"""Keep a decaying average of the signal of past steps, as a baseline for :func:`reinforce`.

    .. math::
        b \leftarrow \text{decay} \cdot b + (1 - \text{decay}) \cdot \bar s

    A step uses the average of the steps before it, and then adds its own mean, because a baseline
    must not depend on the samples of its own step. The first step has the baseline 0. In ``eval``
    mode nothing is added. The average is a buffer, and is saved with the module.

    Args:
        decay: at least 0, and less than 1.

    Example:
        >>> average = fastvi.objectives.DecayingAverage(decay=0.9)
        >>> average(torch.tensor([-4.0, -6.0])), average(torch.tensor([-4.0, -6.0]))
        (tensor(0.), tensor(-5.))

    References:
        | Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
        | https://arxiv.org/abs/1402.0030
    """

    average: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        check_float("DecayingAverage", "decay", decay)
        if not 0 <= decay < 1:
            raise ValueError(
                f"DecayingAverage: expected decay to be at least 0 and below 1, got {decay}"
            )
        self.decay = decay
        self.register_buffer("average", torch.zeros((), dtype=torch.float64))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def forward(self, signal: Tensor) -> Tensor:
        """Return the average of the earlier signals, a scalar, and add this signal to it."""
        # The division by the sum of the weights removes the zero that the average starts from.
        before = torch.where(self.weight > 0, self.average / self.weight.clamp(min=1e-300), 0.0)
        if self.training and signal.numel() > 0:
            mean = signal.to(self.average.dtype).mean().to(self.average.device)
            # An infinite signal would never leave the average.
            kept = torch.where(mean.isfinite(), self.decay, 1.0)
            self.average.mul_(kept).add_((1 - kept) * mean.nan_to_num(0.0, 0.0, 0.0))
            self.weight.mul_(kept).add_(1 - kept)
        return before.to(signal)


def _one_for_each(name: str, value: object, count: int) -> list:
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"reinforce: expected {name} to have one entry for each of the {count} of log_q, "
            f"got {len(value)}"
        )
    return list(value)
