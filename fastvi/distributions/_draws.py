"""Draws from a key, for all distributions; ``docs/design.md`` says which numbers a key gives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastvi._checks import check_num_samples
from fastvi.ops._call import transforms_active

Draw = Callable[..., tuple[Tensor, Tensor]]


def takes_shapes(draw: Draw) -> Draw:
    """Let a draw that takes a number of samples take a shape as well."""

    @functools.wraps(draw)
    def either(
        self: Any, num_samples: int | Sequence[int] = (), **place: Any
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(num_samples, (tuple, list)):
            return draw(self, num_samples, **place)
        where = f"{type(self).__name__}.{draw.__name__}"
        shape = [check_num_samples(where, size, "each size of the shape") for size in num_samples]
        x, log_prob = draw(self, math.prod(shape), **place)
        return x.reshape(*shape, *x.shape[1:]), log_prob.reshape(*shape, *log_prob.shape[1:])

    return either


def draws_by_key(q: Any, how: str) -> bool:
    """Return whether a distribution has this draw of this package, and not another's."""
    method = getattr(type(q), how, None)
    if not getattr(method, "__module__", "").startswith("fastvi.distributions"):
        return False
    # Independent has the draws of its base.
    base = getattr(q, "base_dist", None)
    return base is None or draws_by_key(base, how)


def rows_of(*parameters: Tensor) -> list[Tensor]:
    """Return the parameters in one shape and in their common type, as an op takes them."""
    dtype = parameters[0].dtype
    for x in parameters[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) if x.ndim else x.to(dtype)[None] for x in parameters]


def check_draws(name: str) -> None:
    """Refuse forward-mode derivatives outside torch.func, which the draws' kernels lack."""
    if forward_ad._current_level >= 0 and not transforms_active():
        raise NotImplementedError(
            f"{name}: forward-mode derivatives need torch.func (jvp, jacfwd) around the call"
        )
