"""Checks that several ops share. Every message names the argument, what was expected, what came."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal, overload

import torch
from torch import Tensor

MAX_SAMPLES = 2**32
MAX_OFFSET = 2**62


def check_tensor(op: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {type(value).__name__}")


def is_integer(value: object) -> bool:
    """Whether it is a whole number of any type, NumPy's too; True and False are none."""
    if type(value) is int:
        return True
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def check_num_samples(op: str, num_samples: object, name: str = "num_samples") -> int:
    """The number as the kernels take it."""
    if not is_integer(num_samples):
        raise TypeError(f"{op}: expected {name} to be an int, got {type(num_samples).__name__}")
    if not 1 <= num_samples <= MAX_SAMPLES:  # type: ignore[operator]
        raise ValueError(f"{op}: expected {name} to be from 1 to {MAX_SAMPLES}, got {num_samples}")
    return _as_int(num_samples)


def check_sample_offset(op: str, sample_offset: object) -> int:
    """The number as the kernels take it."""
    if not is_integer(sample_offset):
        raise TypeError(
            f"{op}: expected sample_offset to be an int, got {type(sample_offset).__name__}"
        )
    if not 0 <= sample_offset < MAX_OFFSET:  # type: ignore[operator]
        raise ValueError(
            f"{op}: expected sample_offset to be from 0 to {MAX_OFFSET - 1}, got {sample_offset}"
        )
    return _as_int(sample_offset)


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
    """K and the offset of a keyed draw.

    A K that is not given is that of ``sample_index``; with ``own_rows`` that of the parameters.
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
    """Part of validate_args: a CPU looks at the numbers without being asked."""
    if isinstance(sample_index, Tensor) and not holds(op, sample_index >= 0):
        least = sample_index.min().item()
        raise ValueError(f"{op}: expected sample_index to be at least 0, got {least}")


def _as_int(value: object) -> int:
    # A symbolic size stays one.
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore


def one_spread(
    op: str, scale: Tensor | None, log_scale: Tensor | None, log_var: Tensor | None
) -> tuple[Tensor, str]:
    """The one of the three that was given, and its name."""
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
    """log sigma from any of the three parametrisations."""
    if kind == "scale":
        return spread.log()
    return spread if kind == "log_scale" else 0.5 * spread


def check_prior(op: str, prior: object) -> tuple[Tensor | None, Tensor | None]:
    if prior is None:
        return None, None
    if not isinstance(prior, (tuple, list)) or len(prior) != 2:
        raise TypeError(
            f"{op}: expected prior to be None for N(0, I) or a pair (loc, log_var), "
            f"got {type(prior).__name__}"
        )
    check_tensor(op, "prior[0] (loc)", prior[0])
    check_tensor(op, "prior[1] (log_var)", prior[1])
    return prior[0], prior[1]


def holds(op: str, condition: Tensor) -> bool:
    """Whether a condition of validate_args holds everywhere."""
    try:
        return bool(condition.all())
    except RuntimeError as error:
        # vmap has no type of error of its own.
        if not str(error).startswith("vmap:"):
            raise
        raise ValueError(
            f"{op}: expected validate_args to be False under torch.func.vmap, where no check can "
            "look at the values"
        ) from error


def check_finite(op: str, **tensors: Tensor | None) -> None:
    """Part of validate_args: costs a pass over each tensor and, on CUDA, a synchronisation."""
    for name, value in tensors.items():
        if value is not None and not holds(op, torch.isfinite(value)):
            raise ValueError(f"{op}: expected {name} to be finite, got NaN or infinity in it")


def check_positive(op: str, name: str, value: Tensor) -> None:
    """Part of validate_args; a logarithm has to be finite, and no more."""
    check_finite(op, **{name: value})
    if not name.startswith("log_") and not holds(op, value > 0):
        raise ValueError(
            f"{op}: expected {name} to be positive, got a smallest value of {value.min().item()}"
        )
