"""The event: the trailing dimensions that a log-density is summed over."""

from __future__ import annotations

from torch import Tensor


def sum_event(log_prob: Tensor, event_dims: int) -> Tensor:
    if event_dims == 0:
        return log_prob
    return log_prob.flatten(-event_dims).sum(-1)
