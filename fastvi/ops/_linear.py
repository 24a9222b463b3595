"""The checks of ops that take a Linear's input and parameters."""

from __future__ import annotations

from torch import Tensor

from fastvi._checks import check_tensor


def check_linear(op: str, hidden: object, weight: object, bias: object, value: object) -> None:
    for name, tensor in (("hidden", hidden), ("weight", weight), ("value", value)):
        check_tensor(op, name, tensor)
    if bias is not None and not isinstance(bias, Tensor):
        raise TypeError(f"{op}: expected bias to be a tensor or None, got {type(bias).__name__}")
