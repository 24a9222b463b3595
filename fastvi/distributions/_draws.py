"""What the draws from a key share; which numbers a key gives is in ``docs/design.md``."""

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
    """Let a draw of so many samples take a shape too: as many samples, in that shape."""

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
    """Return whether a distribution has one of this package's draws, not another's of the name."""
    method = getattr(type(q), how, None)
    if not getattr(method, "__module__", "").startswith("fastvi.distributions"):
        return False
    # Independent has what its base has.
    base = getattr(q, "base_dist", None)
    return base is None or draws_by_key(base, how)


def rows_of(*parameters: Tensor) -> list[Tensor]:
    """Parameters of one shape as an op takes them: of the type that torch would promote them to."""
    dtype = parameters[0].dtype
    for x in parameters[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) if x.ndim else x.to(dtype)[None] for x in parameters]


def check_draws(name: str) -> None:
    """Outside torch.func, forward-mode derivatives cannot pass through the draws' kernels."""
    if forward_ad._current_level >= 0 and not transforms_active():
        raise NotImplementedError(
            f"{name}: forward-mode derivatives need torch.func (jvp, jacfwd) around the call"
        )
