"""Sums over the event, the trailing dimensions of a log-density."""

from __future__ import annotations

from torch import Tensor


def sum_event(log_prob: Tensor, event_dims: int) -> Tensor:
    if event_dims == 0:
        return log_prob
    return log_prob.flatten(-event_dims).sum(-1)
