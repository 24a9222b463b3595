"""Several numbers for each feature, and positive parameters, for all families."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def heads_of(event: torch.Size, heads: int) -> torch.Size:
    """Return the shape of an output that joins this many numbers for each feature."""
    if not event:
        raise ValueError(
            "expected x to have a last dimension of features, beside which the decoder joins "
            f"{heads} outputs for each, got one number for each datum"
        )
    return torch.Size((*event[:-1], heads * event[-1]))


def split_heads(output: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return the numbers of each kind, each of the shape of x."""
    return output.chunk(heads, -1)


def positive_parameter(where: str, name: str, value: object) -> Tensor:
    """Return the logarithm of a positive number or tensor."""
    try:
        tensor = torch.as_tensor(value)
        # A number has a value, even if new tensors are made on the meta device.
        known = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{where}: expected {name} to be a number or a tensor, got {type(value).__name__}"
        ) from error
    if tensor.is_complex():
        raise TypeError(f"{where}: expected {name} to be real, got {tensor.dtype}")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    if not known.is_meta and not bool(((known > 0) & (known < math.inf)).all()):
        raise ValueError(f"{where}: expected {name} to be positive and finite, got {value}")
    return tensor.detach().log()
