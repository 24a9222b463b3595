"""When a kernel can serve a distribution, and how its arguments are checked in few passes.

A check here may only say yes. Where it does not, torch's own runs, which decides, and which words
the error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import Distribution

from fastvi.ops._call import transforms_active

_tracing = torch._C._get_tracing_state
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def serves(value: object, *parameters: Tensor) -> bool:
    """Whether a kernel can take this value beside its parameters: torch would promote none."""
    return (
        isinstance(value, Tensor)
        and value.dtype in _FLOATING
        and all(x.dtype is value.dtype and x.device == value.device for x in parameters)
        and can_run(value)
    )


def can_run(x: Tensor) -> bool:
    """Neither torch.jit.trace nor forward-mode derivatives look into a kernel."""
    return x.device.type in ("cpu", "cuda") and _tracing() is None and forward_ad._current_level < 0


def in_dtype(log_prob: Tensor, like: Tensor) -> Tensor:
    """The kernels answer in float32 at least; torch in the type of the parameters."""
    return log_prob if log_prob.dtype is like.dtype else log_prob.to(like.dtype)


# ---- checks -------------------------------------------------------------------------------------
def _can_look(x: Tensor) -> bool:
    """A single number may be read: nothing is being compiled or transformed, and there is one."""
    return not torch.compiler.is_compiling() and not transforms_active() and x.numel() > 0


def is_real(x: Tensor) -> bool:
    """No NaN. A NaN anywhere is one in the sum; so are two infinities, which torch may look at."""
    total = x.detach().sum().item()
    return total == total


def is_positive(x: Tensor) -> bool:
    """A NaN is the least number of a tensor, and not positive."""
    return x.detach().amin().item() > 0


def is_nonnegative(x: Tensor) -> bool:
    return x.detach().amin().item() >= 0


def is_unit(x: Tensor) -> bool:
    least, most = x.detach().aminmax()
    return least.item() >= 0 and most.item() <= 1


def is_boolean(x: Tensor) -> bool:
    """0 and 1 are the two numbers that are their own squares."""
    x = x.detach()
    return torch.equal(x * x, x)


def is_count(x: Tensor) -> bool:
    """A whole number from 0 on: its distance from 0, less its fraction, is itself."""
    x = x.detach()
    return torch.equal(x.abs() - x.frac(), x)


def same_shape(*tensors: object) -> bool:
    """Tensors of one shape, which broadcasting would leave as they are."""
    first = tensors[0]
    return isinstance(first, Tensor) and all(
        isinstance(x, Tensor) and x.shape == first.shape for x in tensors[1:]
    )


def begin(
    self: Distribution,
    like: Tensor,
    validate_args: bool | None,
    valid: Callable[[], bool],
) -> None:
    """Do what ``Distribution.__init__`` does; ``valid`` is the quick check of the parameters."""
    wanted = self._validate_args if validate_args is None else validate_args
    quick = wanted and _can_look(like) and valid()
    Distribution.__init__(self, like.shape, validate_args=False if quick else validate_args)
    if quick:
        if validate_args is None:
            del self._validate_args
        else:
            self._validate_args = True


def validate(self: Distribution, value: object, valid: Callable[[Tensor], bool]) -> None:
    """Do what ``_validate_sample`` does; ``valid`` is the quick check of the support."""
    batch = self.batch_shape + self.event_shape
    if (
        isinstance(value, Tensor)
        and value.shape[max(0, value.ndim - len(batch)) :] == batch
        and value.is_floating_point()
        and _can_look(value)
        and valid(value)
    ):
        return
    self._validate_sample(value)  # type: ignore[arg-type]
