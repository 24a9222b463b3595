"""What the draws from a key share; which numbers a key gives is in ``docs/design.md``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastvi.ops._call import transforms_active


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
