"""The checks of arguments, each of them once.

An error names the caller, ``where``, and the argument, and says what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

MAX_SAMPLES = 2**32


# ---- tensors ------------------------------------------------------------------------------------
def check_tensor(where: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected {name} to be a tensor, got {type(value).__name__}")


def check_floating(where: str, name: str, value: object) -> None:
    check_tensor(where, name, value)
    assert isinstance(value, Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{where}: expected {name} to be floating-point, got {value.dtype}")


def check_log_w(where: str, log_w: object, *, at_least: int = 1, groups: bool = False) -> None:
    check_floating(where, "log_w", log_w)
    assert isinstance(log_w, Tensor)
    if groups:
        if log_w.ndim < 2 or 0 in log_w.shape[:2]:
            raise ValueError(
                f"{where}: expected log_w to have shape (M, K, *batch) with M and K at least 1, "
                f"got {list(log_w.shape)}"
            )
    elif log_w.ndim < 1 or log_w.shape[0] < at_least:
        raise ValueError(
            f"{where}: expected log_w to have shape (K, *batch) with K at least {at_least}, "
            f"got {list(log_w.shape)}"
        )


def check_like_log_w(where: str, name: str, value: object, log_w: Tensor) -> None:
    check_floating(where, name, value)
    assert isinstance(value, Tensor)
    if value.shape != log_w.shape:
        raise ValueError(
            f"{where}: expected {name} to have the shape of log_w, {list(log_w.shape)}, "
            f"got {list(value.shape)}"
        )
    if value.device != log_w.device:
        raise ValueError(
            f"{where}: expected {name} to be on the device of log_w, {log_w.device}, "
            f"got {value.device}"
        )


def check_rows(where: str, x: object) -> None:
    """Refuse what is not the data of at least one row."""
    check_tensor(where, "x", x)
    assert isinstance(x, Tensor)
    if x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(
            f"{where}: expected x to have shape (N, *event) with N at least 1, got {tuple(x.shape)}"
        )


def check_key(where: str, key: object) -> None:
    check_tensor(where, "key", key)
    assert isinstance(key, Tensor)
    if key.dtype != torch.int64 or key.shape != (2,):
        raise ValueError(
            f"{where}: expected key to be an int64 tensor of shape (2,), got {key.dtype} of shape "
            f"{tuple(key.shape)}"
        )


def check_prior(where: str, prior: object) -> tuple[Tensor | None, Tensor | None]:
    """Return the two tensors of a Gaussian prior, or None twice for N(0, I)."""
    if prior is None:
        return None, None
    if not isinstance(prior, (tuple, list)) or len(prior) != 2:
        raise TypeError(
            f"{where}: expected prior to be None for N(0, I) or a pair (loc, log_var), "
            f"got {type(prior).__name__}"
        )
    check_tensor(where, "prior[0] (loc)", prior[0])
    check_tensor(where, "prior[1] (log_var)", prior[1])
    return prior[0], prior[1]


# ---- the values of tensors, if validate_args asks for it ----------------------------------------
def holds(where: str, condition: Tensor) -> bool:
    """Return whether a condition of validate_args is true everywhere."""
    try:
        return bool(condition.all())
    except RuntimeError as error:
        # vmap has no type of error of its own.
        if not str(error).startswith("vmap:"):
            raise
        raise ValueError(
            f"{where}: expected validate_args to be False under torch.func.vmap, where no check "
            "can look at the values"
        ) from error


def check_finite(where: str, **tensors: Tensor | None) -> None:
    """Refuse NaN and infinity: a pass over each tensor and, on CUDA, a synchronisation."""
    for name, value in tensors.items():
        if value is not None and not holds(where, torch.isfinite(value)):
            raise ValueError(f"{where}: expected {name} to be finite, got NaN or infinity in it")


def check_positive(where: str, name: str, value: Tensor) -> None:
    """Refuse what is not positive; a logarithm only has to be finite."""
    check_finite(where, **{name: value})
    if not name.startswith("log_") and not holds(where, value > 0):
        raise ValueError(
            f"{where}: expected {name} to be positive, got a smallest value of {value.min().item()}"
        )


# ---- numbers ------------------------------------------------------------------------------------
# What options are as a rule; to ask whether a value of another type is a number takes longer.
_PLAIN = frozenset({int, float, bool, str, type(None)})


def plain(value: Any) -> Any:
    """Return a number of Python's in place of one of numpy's, and anything else as it is."""
    if type(value) in _PLAIN or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def is_integer(value: object) -> bool:
    """Return whether it is a whole number of any type, NumPy's too; True and False are none."""
    if type(value) is int:
        return True
    return isinstance(value, (Integral, torch.SymInt)) and not isinstance(value, bool)


def check_integer(where: str, name: str, value: object) -> None:
    if not is_integer(value):
        raise TypeError(f"{where}: expected {name} to be an int, got {type(value).__name__}")


def check_at_least(where: str, name: str, value: Any, least: int) -> None:
    if value < least:
        raise ValueError(f"{where}: expected {name} to be at least {least}, got {value}")


def as_int(value: object) -> int:
    # A symbolic size stays one.
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore


def check_num_samples(
    where: str, num_samples: object, name: str = "num_samples", *, at_least: int = 1
) -> int:
    """Return the number as the kernels take it."""
    if type(num_samples) is not int:
        check_integer(where, name, num_samples)
    if not 1 <= num_samples <= MAX_SAMPLES:  # type: ignore[operator]
        raise ValueError(
            f"{where}: expected {name} to be from 1 to {MAX_SAMPLES}, got {num_samples}"
        )
    if at_least > 1:
        check_at_least(where, name, num_samples, at_least)
    return as_int(num_samples)


def check_event_dims(where: str, event_dims: object) -> None:
    if type(event_dims) is not int or event_dims < 0:
        check_integer(where, "event_dims", event_dims)
        check_at_least(where, "event_dims", event_dims, 0)


def check_float(where: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{where}: expected {name} to be a float, got {type(value).__name__}")


def check_number(where: str, name: str, value: Any, *, at_least: int | None = None) -> None:
    """Refuse what is no finite number, or is below ``at_least``."""
    check_float(where, name, value)
    too_small = at_least is not None and value < at_least
    if too_small or not -math.inf < value < math.inf:
        least = "" if at_least is None else f" and at least {at_least}"
        raise ValueError(f"{where}: expected {name} to be finite{least}, got {value}")


def check_share(where: str, name: str, value: Any) -> None:
    """Refuse what is no number from 0 to 1."""
    check_float(where, name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{where}: expected {name} to be from 0 to 1, got {value}")


def check_chunks(where: str, num_samples: int, chunk_size: object, memory_budget: object) -> None:
    if isinstance(chunk_size, str):
        check_choice(where, "chunk_size", chunk_size, ("auto",))
    elif chunk_size is not None:
        check_num_samples(where, chunk_size, "chunk_size")
        if chunk_size > num_samples:  # type: ignore[operator]
            raise ValueError(
                f"{where}: expected chunk_size to be at most num_samples, {num_samples}, "
                f"got {chunk_size}"
            )
    if memory_budget is None:
        return
    if isinstance(memory_budget, bool) or not isinstance(memory_budget, Integral):
        raise TypeError(
            f"{where}: expected memory_budget to be a number of bytes, "
            f"got {type(memory_budget).__name__}"
        )
    if chunk_size != "auto" or memory_budget < 1:
        raise ValueError(
            f"{where}: expected memory_budget to be positive and given with chunk_size='auto', got "
            f"{memory_budget} with chunk_size={chunk_size!r}"
        )


# ---- words and functions ------------------------------------------------------------------------
def check_backward_samples(where: str, backward_samples: object, variance_growth: object) -> None:
    if isinstance(backward_samples, str):
        check_choice(where, "backward_samples", backward_samples, ("auto",))
    elif backward_samples is not None:
        check_num_samples(where, backward_samples, "backward_samples")
    if variance_growth is None:
        return
    if backward_samples != "auto":
        raise ValueError(
            f"{where}: expected variance_growth to be given with backward_samples='auto', got "
            f"{variance_growth!r} with backward_samples={backward_samples!r}"
        )
    check_number(where, "variance_growth", variance_growth)
    if not 1.0 < variance_growth < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"{where}: expected variance_growth to be above 1 and finite, got {variance_growth}"
        )


def check_choice(where: str, name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{where}: expected {name} to be a str, got {type(value).__name__}")
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{where}: expected {name} to be one of {names}, got {value!r}")


def check_callable(
    where: str, name: str, value: object, expected: str = "a module or a function"
) -> None:
    if not callable(value):
        raise TypeError(f"{where}: expected {name} to be {expected}, got {type(value).__name__}")
