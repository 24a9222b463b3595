"""Calls that the ops with a Linear refuse."""

from __future__ import annotations

from typing import Any

import torch
from bad_input import F64, HALF, I64, Bad, Make

from fastvi import ops


def bad_linear(
    what: str,
    error: type[Exception],
    says: tuple[str, ...],
    family: str = "bernoulli",
    **change: Any,
) -> Bad:
    """A change is a function of ``t``; the spread is the Gaussian's alone."""
    op = f"linear_{'gaussian' if 'scale' in change else family}_log_prob"

    def arguments(t: Make) -> tuple[Any, ...]:
        good = {"hidden": t(5, 4, 3), "weight": t(2, 3), "bias": t(2), "value": t(4, 2)}
        return tuple((good | {name: make(t) for name, make in change.items()}).items())

    class Named(Bad):
        def call(self, t: Make) -> Any:
            return getattr(ops, op)(**dict(self.arguments(t)))

    return Named(op, what, arguments, error, says, fake="device" not in what)


BAD_LINEAR = [
    bad_linear("hidden not a tensor", TypeError, ("hidden", "float"), hidden=lambda t: 1.0),
    bad_linear("weight not a tensor", TypeError, ("weight", "None"), weight=lambda t: None),
    bad_linear("bias not a tensor", TypeError, ("bias", "None", "float"), bias=lambda t: 0.0),
    bad_linear("value not a tensor", TypeError, ("value", "int"), value=lambda t: 1),
    bad_linear("hidden without K", ValueError, ("hidden", "2 dim"), hidden=lambda t: t(3)),
    bad_linear("wrong H", ValueError, ("weight", "[F, 3]"), weight=lambda t: t(2, 4)),
    bad_linear("weight transposed", ValueError, ("weight", "[3, 2]"), weight=lambda t: t(3, 2)),
    bad_linear("weight a vector", ValueError, ("weight", "[3]"), weight=lambda t: t(3)),
    bad_linear("bias too long", ValueError, ("bias", "[2]", "[3]"), bias=lambda t: t(3)),
    bad_linear("bias of one", ValueError, ("bias", "[2]", "[1]"), bias=lambda t: t(1)),
    bad_linear("bias a matrix", ValueError, ("bias", "[1, 2]"), bias=lambda t: t(1, 2)),
    bad_linear("wrong F", ValueError, ("value", "[4, 2]", "[4, 3]"), value=lambda t: t(4, 3)),
    bad_linear("wrong batch", ValueError, ("value", "[4, 2]"), value=lambda t: t(3, 2)),
    bad_linear("value per sample", ValueError, ("value", "[4, 2]"), value=lambda t: t(5, 4, 2)),
    bad_linear(
        "value of counts per sample",
        ValueError,
        ("value", "[4, 2]"),
        "poisson",
        value=lambda t: t(5, 4, 2),
    ),  # fmt: skip
    bad_linear("integers", TypeError, ("hidden",), hidden=lambda t: t(5, 4, 3, dtype=I64)),
    bad_linear("weight dtype", TypeError, ("weight", "dtype"), weight=lambda t: t(2, 3, dtype=F64)),
    bad_linear("bias dtype", TypeError, ("bias", "dtype"), bias=lambda t: t(2, dtype=HALF)),
    bad_linear("value dtype", TypeError, ("value", "dtype"), value=lambda t: t(4, 2, dtype=F64)),
    bad_linear("boolean value", TypeError, ("value",), value=lambda t: t(4, 2, dtype=torch.bool)),
    bad_linear(
        "weight device", ValueError, ("weight", "device"), weight=lambda t: t(2, 3, device="meta")
    ),
    bad_linear("bias device", ValueError, ("bias", "device"), bias=lambda t: t(2, device="meta")),
    bad_linear(
        "value device", ValueError, ("value", "device"), value=lambda t: t(4, 2, device="meta")
    ),
    bad_linear("scale per sample", ValueError, ("scale", "[4, 2]"), scale=lambda t: t(5, 1, 1)),
    bad_linear("scale shape", ValueError, ("scale", "[3]"), scale=lambda t: t(3)),
    bad_linear("scale dtype", TypeError, ("scale", "dtype"), scale=lambda t: t(dtype=F64)),
    bad_linear("scale a number", TypeError, ("scale", "float"), scale=lambda t: 1.0),
]
