"""Arguments of log-densities with a positive parameter, or with its logarithm."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi._checks import check_event_dims, check_finite, check_positive, check_tensor, holds


def one_of(op: str, name: str, plain: Tensor | None, log: Tensor | None) -> tuple[Tensor, str]:
    """Return the one of the two that was given, and its name: ``name`` or ``log_name``."""
    given, kind = (plain, name) if log is None else (log, f"log_{name}")
    if given is None or (plain is not None and log is not None):
        got = "neither" if given is None else "both"
        raise ValueError(f"{op}: expected exactly one of {name} and log_{name}, got {got}")
    check_tensor(op, kind, given)
    return given, kind


def wide(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in float32, or in float64 if the second, the first parameter, is."""
    acc = torch.float64 if tensors[1].dtype == torch.float64 else torch.float32
    return [x.to(acc) for x in tensors]


def check_location_scale(
    op: str,
    value: Tensor,
    loc: Tensor,
    spread: Tensor,
    kind: str,
    event_dims: int,
    validate_args: bool,
) -> None:
    """Check the arguments of a density with a location and a scale, whose name is ``kind``."""
    check_tensor(op, "value", value)
    check_tensor(op, "loc", loc)
    check_event_dims(op, event_dims)
    if validate_args:
        check_finite(op, value=value, loc=loc)
        check_positive(op, kind, spread)


def check_count(op: str, value: Tensor) -> None:
    """Refuse negative counts, but not fractions: the formulas hold for expected counts too."""
    check_finite(op, value=value)
    if not holds(op, value >= 0):
        raise ValueError(
            f"{op}: expected value to be at least 0, got a smallest value of {value.min().item()}"
        )
