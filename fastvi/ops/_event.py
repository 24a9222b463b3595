"""The event: the trailing dimensions that a log-density is summed over."""

from __future__ import annotations

from torch import Tensor


def check_event_dims(op: str, event_dims: object) -> None:
    if isinstance(event_dims, bool) or not isinstance(event_dims, int):
        raise TypeError(f"{op}: expected event_dims to be an int, got {type(event_dims).__name__}")
    if event_dims < 0:
        raise ValueError(f"{op}: expected event_dims to be at least 0, got {event_dims}")


def sum_event(log_prob: Tensor, event_dims: int) -> Tensor:
    if event_dims == 0:
        return log_prob
    return log_prob.flatten(-event_dims).sum(-1)
