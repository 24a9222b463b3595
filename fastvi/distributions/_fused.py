"""The conditions for a kernel in a distribution, and fast checks of its arguments.

A check here can only accept. If it does not, torch's own check runs, which decides and raises the
error.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributions import Distribution
from torch.overrides import _get_current_function_mode_stack, has_torch_function
from torch.utils._device import DeviceContext

from fastvi.ops._call import OWN_HOOK, transforms_active
from fastvi.ops._event import sum_event

_tracing = torch._C._get_tracing_state
_PLAIN = (Tensor.__torch_function__, nn.Parameter.__torch_function__)
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def can_evaluate(value: object, *parameters: Tensor) -> bool:
    """Return whether a kernel can take this value and the parameters without a promotion."""
    return (
        isinstance(value, Tensor)
        and value.dtype in _FLOATING
        and all(x.dtype is value.dtype and x.device == value.device for x in parameters)
        and can_run(value, *parameters)
    )


def can_run(x: Tensor, *others: Tensor) -> bool:
    """Return whether a kernel may run: no tracing, forward mode, tensor subclass or torch mode.

    None of these can follow a kernel. Pyro's subclass of Tensor, which tracks dependence, would be
    lost.
    """
    return (
        x.device.type in ("cpu", "cuda")
        and _tracing() is None
        and forward_ad._current_level < 0
        and (not has_torch_function((x, *others)) or _only_default_device(x, *others))
    )


def _only_default_device(*tensors: Tensor) -> bool:
    """Return whether the only mode is torch.set_default_device, which only makes tensors."""
    return all(isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()) and (
        all(type(x).__torch_function__ in _PLAIN for x in tensors)
    )


def common_dtype(value: Tensor, *parameters: Tensor) -> torch.dtype:
    """Return the floating-point type to which torch promotes a value and its parameters."""
    dtype = torch.get_default_dtype() if not value.is_floating_point() else value.dtype
    types = [torch.result_type(value, x) for x in parameters]
    floating = [x for x in types if x.is_floating_point]
    return functools.reduce(torch.promote_types, floating) if floating else dtype


def evaluate_plainly(
    self: Distribution, op: Any, value: Any, *parameters: Tensor, event_dims: int, **named: Tensor
) -> Tensor:
    """Evaluate the op's reference, which is as exact as the kernel, if no kernel can run.

    A value that is no tensor of real numbers goes to torch's formula, which may refuse it.
    """
    if not isinstance(value, Tensor) or value.is_complex():
        kind: Any = next(x for x in type(self).__mro__ if x.__module__.startswith("torch."))
        return sum_event(kind.log_prob(self, value), event_dims)
    if self._validate_args:
        self._validate_sample(value)
    dtype = common_dtype(value, *parameters, *named.values())
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [x.to(wide) for x in (value, *parameters)]
    named = {name: x.to(wide) for name, x in named.items()}
    return sum_event(op.reference(*tensors, **named, event_dims=0), event_dims).to(dtype)


def evaluate(op: Any, *tensors: Tensor, **options: Any) -> Tensor:
    """Return the op's result, whose second derivatives are those of the op's reference."""
    result = op(*tensors, **options)
    node = result.grad_fn
    if node is not None and not torch.compiler.is_compiling() and not transforms_active():
        node.register_hook(_Again(op.reference, tensors, options))
        node.metadata[OWN_HOOK] = True
    return result


class _Again:
    """Replace the kernel's gradient by the reference's if the gradient needs a graph.

    The tensors that the op saved belong to the graph, which frees them after its backward pass.
    """

    __slots__ = ("reference", "tensors", "options")

    def __init__(
        self, reference: Callable[..., Tensor], tensors: tuple[Tensor, ...], options: dict[str, Any]
    ) -> None:
        self.reference = reference
        self.tensors = [weakref.ref(x) for x in tensors]
        self.options = {
            name: weakref.ref(x) if isinstance(x, Tensor) else x for name, x in options.items()
        }

    def __call__(
        self, grads: tuple[Tensor | None, ...], outer: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        if not torch.is_grad_enabled():
            return None
        inputs: list[Tensor] = []

        def alone(x: Any) -> Any:
            # An input may be a function of another, but here each is an independent variable.
            tensor = x() if isinstance(x, weakref.ref) else None
            if tensor is None:
                return x
            inputs.append(tensor.view_as(tensor))
            return inputs[-1]

        tensors = [alone(x) for x in self.tensors]
        options = {name: alone(x) for name, x in self.options.items()}
        if len(inputs) < len(grads):  # the graph holds them in another form
            return None
        result = self.reference(*tensors, **options)
        wanted = [x for x, grad in zip(inputs, grads, strict=True) if grad is not None]
        found = iter(torch.autograd.grad(result, wanted, outer[0], create_graph=True))
        return tuple(None if grad is None else next(found) for grad in grads)


def unrepeated(x: Tensor, value: Tensor, event_dims: int) -> Tensor:
    """Return a constant without the leading dimensions that repeat it, to save a copy."""
    if x.requires_grad or x.shape != value.shape:
        return x
    while x.ndim > max(event_dims, 1) and x.stride(0) == 0 and x.shape[0] > 0:
        x = x[0]
    return x


def in_dtype(log_prob: Tensor, like: Tensor) -> Tensor:
    """Return the result in the parameters' type, as torch does; kernels return at least float32."""
    return log_prob if log_prob.dtype is like.dtype else log_prob.to(like.dtype)


def as_count(value: Tensor, like: Tensor) -> Tensor:
    """Return whole numbers in the type of the parameters, to which torch promotes them."""
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        return value.to(like.dtype)
    return value


def log_prob(self: Any, value: Tensor) -> Tensor:
    """Evaluate the log-density of each element, in nats."""
    return self._event_log_prob(value, 0)


def sums_events(self: Distribution) -> bool:
    """Return whether ``_event_log_prob`` belongs to ``log_prob``, which a subclass may override."""
    return type(self).log_prob is log_prob


# ---- checks -------------------------------------------------------------------------------------
def can_look(x: Tensor) -> bool:
    """Return whether a value may be read: no compiling, tracing or transform, and not empty."""
    return (
        not torch.compiler.is_compiling()
        and not transforms_active()
        and x.numel() > 0
        and x.device.type != "meta"
        and _tracing() is None
    )


def is_real(x: Tensor | float) -> bool:
    """Return whether there is no NaN, by the sum; torch decides if infinities cancel."""
    total = x.detach().sum().item() if isinstance(x, Tensor) else x
    return total == total


def is_positive(x: Tensor | float) -> bool:
    """Return whether all are positive, by the least number, which is NaN if there is one."""
    return (x.detach().amin().item() if isinstance(x, Tensor) else x) > 0


def is_nonnegative(x: Tensor) -> bool:
    return x.detach().amin().item() >= 0


def is_unit(x: Tensor) -> bool:
    least, most = x.detach().aminmax()
    return least.item() >= 0 and most.item() <= 1


def is_boolean(x: Tensor) -> bool:
    """Return whether all are 0 or 1, the numbers that equal their squares."""
    x = x.detach()
    return torch.addcmul(x, x, x, value=-1).count_nonzero().item() == 0


def is_count(x: Tensor) -> bool:
    """Return whether all are whole numbers from 0 on, which equal their rounded absolute value."""
    x = x.detach()
    return torch.equal(x.abs() - x.frac(), x)


def same_shape(*tensors: object) -> bool:
    """Return whether all tensors have one shape, so that broadcasting does not change them."""
    first = tensors[0]
    return isinstance(first, Tensor) and all(
        isinstance(x, Tensor) and x.shape == first.shape for x in tensors[1:]
    )


def checked(
    self: Distribution,
    own: type[Distribution],
    like: Tensor,
    validate_args: bool | None,
    valid: Callable[[], bool],
) -> bool:
    """Return whether the parameters need no check, or pass the quick one, ``valid``.

    A subclass of ``own`` may have other constraints, which need torch's check.
    """
    wanted = self._validate_args if validate_args is None else validate_args
    return not wanted or (
        self.arg_constraints == own.arg_constraints and can_look(like) and valid()
    )


def initialise(
    self: Distribution, shape: torch.Size, validate_args: bool | None, is_checked: bool
) -> None:
    """Initialise as ``Distribution.__init__`` does, with its check only if there was none."""
    Distribution.__init__(self, shape, validate_args=False if is_checked else validate_args)
    if is_checked:
        if validate_args is None:
            del self._validate_args
        else:
            self._validate_args = validate_args


def _same_from_the_right(one: torch.Size, other: torch.Size) -> bool:
    """Return whether two shapes are equal, except for leading dimensions of one of them."""
    both = min(len(one), len(other))
    return one[len(one) - both :] == other[len(other) - both :]


def validate(
    self: Distribution, own: type[Distribution], value: object, valid: Callable[[Tensor], bool]
) -> None:
    """Check a value as ``_validate_sample`` does; ``valid`` is the quick check of the support."""
    batch = self._batch_shape + self._event_shape
    if (
        self.support is own.support
        and isinstance(value, Tensor)
        and _same_from_the_right(value.shape, batch)
        and value.is_floating_point()
        and can_look(value)
        and valid(value)
    ):
        return
    self._validate_sample(value)  # type: ignore[arg-type]
