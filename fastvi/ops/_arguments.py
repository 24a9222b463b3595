"""The checks of a keyed draw and of a spread, which several ops share."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastvi._checks import (
    as_int,
    check_at_least,
    check_integer,
    check_num_samples,
    check_tensor,
    holds,
)

MAX_OFFSET = 2**62


def check_sample_offset(op: str, sample_offset: object) -> int:
    """Return the number as the kernels take it."""
    check_integer(op, "sample_offset", sample_offset)
    if not 0 <= sample_offset < MAX_OFFSET:  # type: ignore[operator]
        raise ValueError(
            f"{op}: expected sample_offset to be from 0 to {MAX_OFFSET - 1}, got {sample_offset}"
        )
    return as_int(sample_offset)


@overload
def check_draw(
    op: str, num_samples: object, sample_offset: object, sample_index: object, key: object,
    validate_args: bool = False, own_rows: Literal[False] = False,
) -> tuple[int, int]: ...  # fmt: skip
@overload
def check_draw(
    op: str, num_samples: object, sample_offset: object, sample_index: object, key: object,
    validate_args: bool = False, *, own_rows: Literal[True],
) -> tuple[int | None, int]: ...  # fmt: skip
def check_draw(
    op: str,
    num_samples: object,
    sample_offset: object,
    sample_index: object,
    key: object,
    validate_args: bool = False,
    own_rows: bool = False,
) -> tuple[int | None, int]:
    """Return K and the offset of a keyed draw.

    If K is not given, ``sample_index`` has it; with ``own_rows`` the parameters have it.
    """
    name = "num_samples"
    if sample_index is not None:
        check_tensor(op, "sample_index", sample_index)
        assert isinstance(sample_index, Tensor)
        if num_samples is None and not own_rows:
            if sample_index.ndim == 0:
                raise ValueError(f"{op}: expected sample_index to have shape (K, *batch), got []")
            num_samples, name = sample_index.shape[0], "sample_index.shape[0]"
    count = None
    if num_samples is not None or not own_rows:
        count = check_num_samples(op, num_samples, name)
    sample_offset = check_sample_offset(op, sample_offset)
    if key is not None:
        check_tensor(op, "key", key)
    if validate_args:
        check_sample_index(op, sample_index)
    return count, sample_offset


def drawn_from(sample_offset: int | Tensor, rows: torch.Size) -> dict[str, Any]:
    r"""Return what tells an op which samples to draw: those from a number on, or of these numbers.

    Numbers, int64 of shape (K, \*batch), count for all rows of a datum, (\*batch, \*more).
    """
    if not isinstance(sample_offset, Tensor):
        return {"sample_offset": sample_offset}
    index = sample_offset.reshape(*sample_offset.shape, *[1] * (1 + len(rows) - sample_offset.ndim))
    return {"sample_index": index.expand(-1, *rows)}


def check_sample_index(op: str, sample_index: object) -> None:
    """Refuse negative numbers, as a part of validate_args; a CPU always checks them."""
    if isinstance(sample_index, Tensor) and not holds(op, sample_index >= 0):
        check_at_least(op, "sample_index", sample_index.min().item(), 0)


def one_spread(
    op: str, scale: Tensor | None, log_scale: Tensor | None, log_var: Tensor | None
) -> tuple[Tensor, str]:
    """Return the one of the three that was given, and its name."""
    given = [
        (value, name)
        for value, name in ((scale, "scale"), (log_scale, "log_scale"), (log_var, "log_var"))
        if value is not None
    ]
    if len(given) != 1:
        names = ", ".join(name for _, name in given) or "none of them"
        raise ValueError(f"{op}: expected exactly one of scale, log_scale and log_var, got {names}")
    check_tensor(op, given[0][1], given[0][0])
    return given[0]


def log_scale_of(spread: Tensor, kind: str) -> Tensor:
    """Return log sigma from any of the three parametrisations."""
    if kind == "scale":
        return spread.log()
    return spread if kind == "log_scale" else 0.5 * spread
