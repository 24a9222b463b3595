"""What a row of the table of ops is made of: values, layouts, samples, and how the op is called."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from error_budget import ROUNDINGS, Units, units_by_name
from torch import Tensor

import fastvi
from fastvi._ext import C

EMULATED = C.build_info()["cuda_emulated"]
DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.cuda),
]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# ---- values -------------------------------------------------------------------------------------
def _minus_inf_column(x: Tensor) -> Tensor:
    x[:, 0] = -torch.inf
    return x


def _one_dominates(x: Tensor) -> Tensor:
    x[x.shape[0] // 2] += 500.0
    return x


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "huge": lambda x: 1e4 * x,
    "near -1e5": lambda x: x - 1e5,
    "-inf column": _minus_inf_column,
    "-inf scattered": lambda x: x.masked_fill(x > 0.8, -torch.inf),
    "one dominates": _one_dominates,
    "constant": lambda x: torch.full_like(x, -3.3),
    "positive": lambda x: (0.5 * x).exp(),
    "small spread": lambda x: 0.5 * x - 1.0,
    "wide spread": lambda x: 3.0 * x,
    "binary": lambda x: (x > 0).double(),
    "unit": lambda x: x.sigmoid(),
    "counts": lambda x: (3.0 * x.abs()).floor(),
    "many counts": lambda x: (3000.0 * x.abs()).floor(),
    "far apart": lambda x: (3.0 * x).exp(),
}


# ---- layouts ------------------------------------------------------------------------------------
def _transposed(x: Tensor) -> Tensor:
    order = tuple(reversed(range(x.ndim)))
    return x.permute(order).contiguous().permute(order)


def _sliced(x: Tensor) -> Tensor:
    if x.ndim == 0:
        return x
    room = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype)
    room[..., 1::2] = x
    return room[..., 1::2]


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape) if x.ndim and x.shape[0] else x


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": _transposed,
    "sliced": _sliced,
    "expanded": _expanded,
}


# ---- samples ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Argument:
    shape: tuple[int, ...]
    values: str = "normal"
    # float32 beside data of a lower precision, as pictures are beside bfloat16 logits.
    at_least_float32: bool = False


@dataclass(frozen=True)
class Sample:
    id: str
    tensors: dict[str, Argument]
    options: dict[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"
    dtypes: tuple[torch.dtype, ...] = DTYPES
    # False where plain PyTorch's own gradient is NaN; the op's test file says what ours is.
    gradient: bool = True
    # The elements that the op goes through, where that is not what the tensors broadcast to.
    work: int | None = None

    def make(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """Leaf tensors that require gradients."""
        generator = torch.Generator().manual_seed(1234)
        made = {}
        for name, argument in self.tensors.items():
            normal = torch.randn(argument.shape, generator=generator, dtype=torch.float64)
            x = VALUES[argument.values](normal).to(dtype)
            if argument.at_least_float32 and dtype.itemsize < 4:
                x = x.float()
            made[name] = self.place(x, device).requires_grad_()
        return made

    def place(self, x: Tensor, device: str) -> Tensor:
        # A copy to another device keeps strides only of dense tensors.
        return LAYOUTS[self.layout](x) if device == "cpu" else LAYOUTS[self.layout](x).to(device)

    @property
    def elements(self) -> int:
        if self.work is not None:
            return self.work
        shapes = [argument.shape for argument in self.tensors.values()]
        numbers = self.options.get("sample_index")
        samples = self.options.get("num_samples", 1) if numbers is None else len(numbers)
        return samples * torch.broadcast_shapes(*shapes).numel()


def _leading_features(name: str, x: Tensor, size: int) -> Tensor:
    return x[..., :size] if x.ndim else x


@dataclass(frozen=True)
class Op:
    name: str
    # From the tensors by name and the options to the arguments of the public function, which are
    # those of its reference.
    arguments: Callable[[dict[str, Tensor], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    samples: tuple[Sample, ...]
    outputs: tuple[str, ...] = ("output",)
    # Contiguous and differentiable, for what is too slow to run on every sample.
    typical: tuple[str, ...] = ("odd",)
    # Enough work for several threads.
    large: Sample | None = None
    noise: bool = False
    # (name, tensor, size) -> the part of a tensor that belongs to so many features.
    corner: Callable[[str, Tensor, int], Tensor] = _leading_features
    # The tensors that autocast makes narrower, as it does those of a Linear.
    lowered: tuple[str, ...] = ()
    # Whether all tensors may be broadcast to one shape, each element of it being a term by itself.
    terms_apart: bool = False
    # The dimension over which log-weights are normalised: only their distance from the largest
    # counts. An option `dim` takes its place.
    normalised_over: int | None = None
    # The roundings that a term passes on its way, see ``error_budget.py``.
    roundings: float = ROUNDINGS
    # Whether the terms of gradients are rounded to the type of the tensors before they are added.
    rounds_terms: bool = False

    @property
    def public(self) -> Callable[..., Any]:
        return getattr(fastvi.ops, self.name)

    @property
    def reference(self) -> Callable[..., Any]:
        return self.public.reference

    def call(
        self, function: Callable[..., Any], tensors: dict[str, Tensor], options: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        positional, named = self.arguments(tensors, options)
        out = function(*positional, **named)
        return out if isinstance(out, tuple) else (out,)

    def computes_in(self, dtype: torch.dtype) -> torch.dtype:
        if dtype == torch.float64 or self.rounds_terms:
            return dtype
        return torch.float32

    def units(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> Units:
        """What a rounding moves each tensor by, see ``error_budget.py``."""
        dim = options.get("dim", self.normalised_over)

        def units(name: str, x: Tensor) -> Tensor:
            if self.normalised_over is None or name not in ("log_w", "logits") or x.numel() == 0:
                return units_by_name(name, x)
            largest = x.nan_to_num(neginf=-torch.inf).amax(dim, keepdim=True)
            return 1.0 + (x - largest).abs()

        return units

    def roundings_of(self, tensors: dict[str, Tensor]) -> float:
        return self.roundings

    def nats(self, tensors: dict[str, Tensor], options: dict[str, Any]) -> float:
        """The size of the logarithm of the sum of the weights, and 1 for the rounded sum."""
        if self.normalised_over is None:
            return 0.0
        count = next(iter(tensors.values())).shape[options.get("dim", self.normalised_over)]
        power = abs(1.0 - options.get("alpha", 0.0))
        return (1.0 + math.log(max(1, count))) / (power if power > 0.0 else 1.0)

    def sizes(
        self, tensors: dict[str, Tensor], options: dict[str, Any], upstream: dict[str, Tensor]
    ) -> dict[str, Tensor | float]:
        """The sizes of what cancels on the way to an output or a gradient, by its name."""
        return dict.fromkeys(self.outputs, self.nats(tensors, options))

    def sample(self, id: str) -> Sample:
        return next(sample for sample in self.samples if sample.id == id)

    @contextlib.contextmanager
    def kernel_noise(self, dtype: torch.dtype) -> Iterator[None]:
        """Give the reference the kernel's noise: the noise has tests of its own."""
        if not self.noise:
            yield
            return
        module = sys.modules[f"fastvi.ops.{self.name}"]
        acc = torch.float64 if dtype == torch.float64 else torch.float32

        def standard_normal(
            key: Tensor,
            num_samples: int,
            batch: int,
            features: int,
            sample_offset: int = 0,
            sample_index: Tensor | None = None,
        ) -> Tensor:
            zero = torch.zeros(batch, features, dtype=acc, device=key.device)
            if sample_index is not None:
                sample_index = sample_index.reshape(num_samples, batch)
            return self.public(
                zero,
                scale=torch.ones_like(zero),
                num_samples=num_samples,
                key=key,
                sample_offset=sample_offset,
                sample_index=sample_index,
            )[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "standard_normal", standard_normal)
            yield
