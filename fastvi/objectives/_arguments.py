"""What the objectives ask of log-weights."""

from __future__ import annotations

from torch import Tensor

from fastvi.ops._arguments import check_tensor


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


def check_floating(where: str, name: str, value: object) -> None:
    check_tensor(where, name, value)
    assert isinstance(value, Tensor)
    if not value.is_floating_point():
        raise TypeError(f"{where}: expected {name} to be floating-point, got {value.dtype}")


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
