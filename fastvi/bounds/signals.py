"""The signals of score-function gradients, for samples without a path."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastvi import ops

Baseline = None | str | Tensor | nn.Module


def vimco_signal(log_w: Tensor) -> Tensor:
    """Return L_K minus the bound in which a weight is the geometric mean of the others."""
    num_samples = log_w.shape[0]
    others_log_mean = ops.leave_one_out(log_w)
    # The sums are of distances from the largest: sums of large log-weights would round these away.
    finite = torch.finfo(others_log_mean.dtype)
    shift = log_w.to(others_log_mean.dtype).amax(0).clamp(finite.min, finite.max)
    shifted = log_w - shift
    impossible = shifted == -math.inf
    possible = shifted.masked_fill(impossible, 0.0)
    log_mean = (possible.sum(0) - possible) / (num_samples - 1)
    # One impossible sample among the others makes their geometric mean zero.
    others_impossible = impossible.sum(0) - impossible.long()
    log_mean = log_mean.masked_fill(others_impossible > 0, -math.inf)
    others = others_log_mean - shift + math.log(num_samples - 1)
    replaced = torch.logaddexp(others, log_mean) - math.log(num_samples)
    bound = ops.iwlb(shifted)
    # If all samples are impossible the signal is zero, and not -inf - -inf.
    signal = (bound - replaced).masked_fill(bound == -math.inf, 0.0)
    return signal


def credit(log_w: Tensor, alpha: float) -> Tensor:
    """Return the bound of order alpha minus the bound without each sample, (K, *batch)."""
    num_samples = len(log_w)
    if num_samples == 1 or alpha == 1.0:
        # A bound of -inf has no gradient, because no direction improves it.
        impossible = (log_w == -math.inf).any(0)
        log_w = log_w.masked_fill(impossible, 0.0)
        return log_w if num_samples == 1 else (log_w - log_w.mean(0)) / (num_samples - 1)
    order = 1.0 - alpha
    return vimco_signal(order * log_w) / order


def advantage(signal: Tensor, baseline: Baseline) -> Tensor:
    """Return the signal minus its baseline, (K, *batch); a baseline tensor gets a gradient.

    It is 0 for an example with an impossible sample: no direction improves its bound of -inf.
    """
    impossible = (signal == -math.inf).any(0)
    return _advantage(signal.masked_fill(impossible, 0.0), baseline).masked_fill(impossible, 0.0)


_BASELINES = (
    "reinforce: expected baseline to be None, 'leave_one_out', a DecayingAverage or a tensor"
)


def _advantage(signal: Tensor, baseline: Baseline) -> Tensor:
    if baseline is None:
        return signal
    if isinstance(baseline, str):
        if baseline != "leave_one_out":
            raise ValueError(f"{_BASELINES}, got {baseline!r}")
        num_samples = signal.shape[0]
        if num_samples < 2:
            raise ValueError(
                "reinforce: expected at least two samples for baseline 'leave_one_out', got 1"
            )
        # s_k - mean of the others = K / (K - 1) (s_k - mean of all).
        return (signal - signal.mean(0)) * (num_samples / (num_samples - 1))
    if isinstance(baseline, Tensor):
        if baseline.shape not in (signal.shape, signal.shape[1:]):
            raise ValueError(
                f"reinforce: expected a baseline tensor to have shape (*batch,) = "
                f"{list(signal.shape[1:])} or that of log_w, got {list(baseline.shape)}"
            )
        return signal - baseline
    if isinstance(baseline, nn.Module):
        return signal - baseline(signal)
    raise TypeError(f"{_BASELINES}, got {type(baseline).__name__}")
