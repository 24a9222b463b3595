"""Four measures of an estimate, from its importance weights and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fastvi._checks import (
    check_backward_samples,
    check_callable,
    check_log_w,
    check_num_samples,
    check_tensor,
    plain,
)
from fastvi.bounds.weighers import Renyi
from fastvi.chunks.choice import enough
from fastvi.chunks.few import GROWTH
from fastvi.ops.new_key import new_key

# A tail of fewer weights than this is not fitted.
_SMALLEST_TAIL = 5
# The weak prior of k-hat: ten observations at one half (Vehtari et al., 2024, appendix G).
_PRIOR_COUNT, _PRIOR_K = 10, 0.5
# The data-driven prior of Zhang and Stephens for theta, and the least size of its grid.
_PRIOR_SCALE, _GRID = 3, 30


def _log_weights(where: str, log_w: object) -> Tensor:
    """Return the log-weights in float64, after a check."""
    check_log_w(where, log_w)
    assert isinstance(log_w, Tensor)
    return log_w.detach().double()


def _relative(log_w: Tensor) -> Tensor:
    """Return weights over their column's largest: zeros if that is zero, NaN for NaN or +inf."""
    largest = log_w.amax(0)
    return torch.exp(log_w - torch.where(largest == -math.inf, 0.0, largest))


@torch.no_grad()
def effective_sample_size(log_w: Tensor) -> Tensor:
    r"""Count the equal weights that would be as good as these.

    .. math::
        \mathrm{ESS} = \frac{\left(\sum_k w_k\right)^2}{\sum_k w_k^2} \in [1, K]

    It is K for equal weights, and 1 if one weight is all of the sum. It is computed from the given
    weights: if the large ones were never drawn, it is too optimistic. :func:`pareto_k` tells.

    Args:
        log_w: log-weights in nats, shape (K, \*batch).

    Returns:
        The effective sample size, float64, shape (\*batch,): 0 if all weights are zero
        (``log_w`` is ``-inf``), NaN if one is NaN or infinite.

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: K = 0.

    Example:
        >>> log_w = torch.tensor([[0.0, 0.0], [0.0, -1000.0], [0.0, -1000.0]])
        >>> fastvi.effective_sample_size(log_w)
        tensor([3., 1.], dtype=torch.float64)

    References:
        | A Note on Importance Sampling using Standardized Weights (Kong, 1992)
    """
    weights = _relative(_log_weights("effective_sample_size", log_w))
    total, squares = weights.sum(0), weights.square().sum(0)
    return torch.where(total == 0, 0.0, total.square() / squares)


@torch.no_grad()
def pareto_k(log_w: Tensor) -> Tensor:
    r"""Estimate the shape k of the tail of the weights, which says if more samples help.

    A generalised Pareto distribution is fitted to the largest
    :math:`M = \lfloor \min(K / 5, 3 \sqrt{K}) \rfloor` weights above the next one, by the method
    of Zhang and Stephens with the weak prior of Vehtari et al. Weights with shape k have finite
    moments below order 1/k:

    - below 0.5: finite variance; the error of :math:`L_K` falls as 1/K;
    - 0.5 to 0.7: infinite variance; the estimate is of use, and gains slowly from K;
    - above 0.7: no K that one can afford gives a reliable estimate;
    - above 1: the weights have no mean to estimate.

    Args:
        log_w: log-weights in nats, shape (K, \*batch).

    Returns:
        k-hat, float64, shape (\*batch,). It is ``-inf`` if the tail has no spread (equal weights,
        the best case), ``inf`` if a quarter of the tail or more is zero beside the largest weight
        (the weights have collapsed), and NaN for K below 25, which leaves no tail to fit, for a
        column without any weight, and if a log-weight is NaN or ``inf``.

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: K = 0.

    Example:
        >>> uniform = (torch.arange(20_000) + 0.5) / 20_000
        >>> log_w = -0.6 * uniform.log()  # a Pareto distribution of shape 0.6
        >>> round(fastvi.pareto_k(log_w).item(), 1)
        0.6

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024),
        | https://arxiv.org/abs/1507.02646
        | A New and Efficient Estimation Method for the Generalized Pareto Distribution
        | (Zhang & Stephens, 2009), https://doi.org/10.1198/tech.2009.08017
    """
    log_w = _log_weights("pareto_k", log_w)
    num_samples, batch = log_w.shape[0], log_w.shape[1:]
    columns = log_w.reshape(num_samples, batch.numel())
    size = tail_size(num_samples)
    if size < _SMALLEST_TAIL:
        return columns.new_full(batch, math.nan)
    largest = torch.topk(columns, size + 1, dim=0).values
    bad = ~(columns < math.inf).all(0) | (largest[0] == -math.inf)
    weights = _relative(largest).flip(0)
    excess = weights[1:] - weights[0]
    k, _ = fit_pareto(excess)
    k = torch.where(excess[_quartile(size)] <= 0, math.inf, k)
    k = torch.where(weights[1] == weights[-1], -math.inf, k)
    return torch.where(bad, math.nan, k).reshape(batch)


def tail_size(num_samples: int) -> int:
    """Return M, the number of weights in the tail."""
    return int(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def _quartile(size: int) -> int:
    return int(size / 4 + 0.5) - 1


def fit_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    r"""Fit a generalised Pareto distribution to excesses, shape (M, N), each column ascending.

    .. math:: P(X > x) = (1 + k x / \sigma)^{-1 / k}

    Returns:
        k with its weak prior, and the scale :math:`\sigma`, each of shape (N,).
    """
    size = excess.shape[0]
    points = _GRID + int(math.sqrt(size))
    index = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device)
    # The grid over theta = -k / sigma, [points, N].
    steps = (1 - torch.sqrt(points / (index - 0.5)))[:, None]
    theta = steps / (_PRIOR_SCALE * excess[_quartile(size)]) + 1 / excess[-1]
    # One point at a time, because all at once would need 60 copies of the tail.
    shapes = torch.stack([torch.log1p(-row * excess).mean(0) for row in theta])
    log_likelihood = size * (torch.log(-theta / shapes) - shapes - 1)
    posterior = torch.softmax(log_likelihood, 0)
    mean = (posterior * theta).sum(0)
    k = torch.log1p(-mean * excess).mean(0)
    return (size * k + _PRIOR_COUNT * _PRIOR_K) / (size + _PRIOR_COUNT), -k / mean


@torch.no_grad()
def evidence_gap(log_w: Tensor) -> Tensor:
    r"""Estimate the gap of the bound, log p - E L_K, by the jackknife.

    .. math::
        \widehat{\log p} - L_K = (K - 1) \Bigl(L_K - \frac{1}{K} \sum_k L_{K \setminus k}\Bigr)
        \approx \frac{\chi^2}{2 K}

    with :math:`L_{K \setminus k}` the bound without sample k and :math:`\chi^2` the variance of
    the weights over the square of their mean. It removes the 1/K term of the bias, so that
    :math:`L_K + \mathrm{gap}` has an error of :math:`O(K^{-2})`. Its noise is as large as the noise
    of :math:`L_K`, which for a single example is larger than the gap: take means over data.

    If :func:`pareto_k` is above 0.7 the weights have no such expansion, and the large ones were
    probably never drawn: then the number is far too small, and no estimate of the gap.

    Args:
        log_w: log-weights in nats, shape (K, \*batch).

    Returns:
        The gap in nats, at least 0, float64, shape (\*batch,): ``inf`` if one weight is all of the
        sum; NaN for K = 1, for a column without any weight, and if a log-weight is NaN or ``inf``.

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor.
        ValueError: K = 0.

    Example:
        >>> log_w = torch.tensor([[0.0], [0.0], [0.0]])
        >>> fastvi.evidence_gap(log_w).abs() < 1e-12  # equal weights: the bound is log p
        tensor([True])

    References:
        | Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife
        | Variational Inference (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb
    """
    weights = _relative(_log_weights("evidence_gap", log_w))
    count = weights.shape[0]
    if count == 1:
        return torch.full_like(weights[0], math.nan)
    total, largest = weights.sum(0), weights.argmax(0, keepdim=True)
    # The weights beside the largest are summed by themselves: total minus 1 would lose them.
    beside = weights.scatter(0, largest, 0.0).sum(0, keepdim=True)
    rest = (total - weights).scatter(0, largest, beside)
    mean = torch.log(rest / total).mean(0)
    gap = -(count - 1) * (mean + math.log(count / (count - 1)))
    # By Jensen's inequality it is not negative, except for rounding.
    return gap.clamp(min=0.0)


@torch.no_grad()
def needed_backward_samples(log_w: Tensor, *, variance_growth: float = GROWTH) -> Tensor:
    r"""Count the samples that have to run backward, m, for a variance that grows little.

    .. math::
        m = \min \Bigl\{ m :
        \frac{\sum_k \tilde w_k^2 (1 / \pi_k - 1)}{\sum_k \tilde w_k^2} \le \frac{g - 1}{2}
        \Bigr\},
        \qquad \pi_k = \min(1, c\, \tilde w_k), \quad \sum_k \pi_k = m

    with g the growth of the variance over the samples. The left side is the law of it, which may
    fall short somewhat; docs/backward_samples.md derives it. This is what
    ``backward_samples="auto"`` of :func:`fastvi.iwlb_loss` takes. Equal weights need
    2 K / (g + 1), a few large ones little more than their number.

    Args:
        log_w: log-weights in nats, shape (K, \*batch).
        variance_growth: g, above 1.

    Returns:
        m, from 1 to K, float64, shape (\*batch,): NaN for a column without any weight, and where a
        log-weight is NaN or ``inf``.

    Raises:
        TypeError: ``log_w`` is not a floating-point tensor, ``variance_growth`` no number.
        ValueError: K = 0, ``variance_growth`` of 1 or below.

    Example:
        >>> log_w = torch.zeros(450, 2)
        >>> log_w[12:, 1] = -1000.0  # all weight is on twelve samples
        >>> fastvi.needed_backward_samples(log_w)
        tensor([429.,  12.], dtype=torch.float64)
    """
    where = "needed_backward_samples"
    log_w = _log_weights(where, log_w)
    variance_growth = plain(variance_growth)
    check_backward_samples(where, "auto", variance_growth)
    columns = log_w.reshape(len(log_w), -1)
    bad = ~(columns < math.inf).all(0) | (columns.amax(0) == -math.inf)
    found = columns.new_full(bad.shape, math.nan)
    known = columns[:, ~bad]
    if known.numel() > 0:
        sums = Renyi(len(known), "iwae").sums()
        sums.add(0, known)
        sums.bound()
        found[~bad] = enough(sums, 0, known, "model", float(variance_growth)).double()
    return found.reshape(log_w.shape[1:])


Groups = Mapping[str, Iterable[Tensor]]


def gradient_snr(
    loss_fn: Callable[[Tensor], Tensor],
    parameters: Groups | Iterable[Tensor],
    *,
    num_draws: int = 100,
    key: Tensor | None = None,
) -> dict[str, float]:
    r"""Measure the signal-to-noise ratio of a stochastic gradient.

    .. math::
        \mathrm{SNR} = \frac{\lVert \mathbb{E}\, g \rVert}
        {\sqrt{\mathbb{E}\, \lVert g - \mathbb{E}\, g \rVert^2}}

    over independent keys, for each group of parameters as one vector. The noise that remains in
    the mean of ``num_draws`` gradients is subtracted from its squared norm; otherwise no ratio
    below :math:`1 / \sqrt{n}` could be measured. A gradient that is all noise gives 0.

    Args:
        loss_fn: the loss of a fixed batch as a function of a key, e.g.
            ``lambda key: vae.loss(x, criterion, key=key)``.
        parameters: groups by name, ``{"encoder": encoder.parameters(), ...}``; or tensors, which
            are one group, ``"all"``. Their ``grad`` does not change.
        num_draws: the number of gradients, at least 2.
        key: from :func:`fastvi.ops.new_key`, the source of all keys; ``None`` draws one.

    Returns:
        The ratio of each group: ``inf`` for a gradient without noise, NaN for a gradient of zero.

    Raises:
        TypeError: ``loss_fn`` is not a function, a parameter is not a tensor.
        ValueError: ``num_draws`` below 2, no parameters, one that needs no gradient.

    Example:
        >>> loc, scale = torch.zeros(1000, 1, requires_grad=True), torch.ones(1000, 1)
        >>> def loss(key):
        ...     z, _, _ = fastvi.ops.gaussian_rsample(loc, scale=scale, num_samples=1, key=key)
        ...     return (3 * z + 0.5 * z.square()).sum()  # its gradient is 3 + z
        >>> fastvi.gradient_snr(loss, [loc], num_draws=50)["all"]
        3.0...

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018),
        | https://arxiv.org/abs/1802.04537
    """
    where = "gradient_snr"
    check_callable(where, "loss_fn", loss_fn, "a function of a key")
    check_num_samples(where, num_draws, "num_draws", at_least=2)
    groups = _groups(where, parameters)
    tensors = [tensor for group in groups.values() for tensor in group]
    if key is None:
        key = new_key(tensors[0].device)
    check_tensor(where, "key", key)
    means = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in tensors]
    spreads = [torch.zeros((), dtype=torch.float64, device=x.device) for x in tensors]
    for draw in range(num_draws):
        # Gradients are measured in every mode of autograd.
        with torch.inference_mode(False), torch.enable_grad():
            loss = loss_fn(_key_of_draw(key, draw).clone())
            grads = torch.autograd.grad(loss, tensors, allow_unused=True)
        for index, grad in enumerate(grads):
            # Welford's recurrence has no difference of large sums.
            value = means[index].new_zeros(()) if grad is None else grad.double()
            before = value - means[index]
            means[index] += before / (draw + 1)
            spreads[index] += (before * (value - means[index])).sum()
    result, start = {}, 0
    for name, group in groups.items():
        part = slice(start, start + len(group))
        start += len(group)
        variance = sum(spread.item() for spread in spreads[part]) / (num_draws - 1)
        power = sum(mean.square().sum().item() for mean in means[part])
        signal = max(power - variance / num_draws, 0.0)
        if variance == 0.0:
            result[name] = math.inf if signal else math.nan
        else:
            result[name] = math.sqrt(signal / variance)
    return result


def _key_of_draw(key: Tensor, draw: int) -> Tensor:
    """Return another stream of the same seed, which is independent noise."""
    return torch.stack((key[0], key[1] + draw))


def _groups(where: str, parameters: Groups | Iterable[Tensor]) -> dict[str, list[Tensor]]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    named = parameters if isinstance(parameters, Mapping) else {"all": parameters}
    groups = {name: list(group) for name, group in named.items()}
    if not groups or not all(groups.values()):
        empty = next((repr(name) for name, group in groups.items() if not group), "no group")
        raise ValueError(
            f"{where}: expected parameters to have tensors in each group, got none in {empty}"
        )
    for name, group in groups.items():
        for tensor in group:
            check_tensor(where, f"each parameter of {name!r}", tensor)
            if not tensor.requires_grad:
                raise ValueError(
                    f"{where}: expected each parameter of {name!r} to need a gradient, got one of "
                    f"shape {tuple(tensor.shape)} that does not"
                )
    return groups
