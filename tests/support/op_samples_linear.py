"""The rows of the ops that take a Linear's input and parameters: see ``op_samples.py``."""

from __future__ import annotations

from typing import Any

import torch
from op_table import Argument, Op, Sample
from torch import Tensor

_SPREADS = ("scale", "log_scale", "log_var")


def _arguments(tensors: dict[str, Tensor], options: dict[str, Any]):
    named = {name: tensors[name] for name in _SPREADS if name in tensors}
    linear = (tensors["hidden"], tensors["weight"], tensors.get("bias"), tensors["value"])
    return linear, named | options


def _corner(name: str, x: Tensor, size: int) -> Tensor:
    return x[:size, :size] if name == "weight" else x[..., :size] if x.ndim else x


def _linear(
    *rows: int,
    hidden: int,
    features: int,
    bias: bool = True,
    value: tuple[int, ...] | None = None,
    values: str = "binary",
    at: str = "normal",
    at_least_float32: bool = False,
    **spread: tuple[int, ...],
) -> dict[str, Argument]:
    value = (*rows[1:], features) if value is None else value
    tensors = {"hidden": Argument((*rows, hidden), at), "weight": Argument((features, hidden))}
    if bias:
        tensors["bias"] = Argument((features,))
    tensors["value"] = Argument(value, values, at_least_float32)
    for kind, shape in spread.items():
        tensors[kind] = Argument(shape, "positive" if kind == "scale" else "small spread")
    return tensors


def _sample(
    id: str, *rows: int, layout: str = "contiguous", dtypes: Any = None, **sizes: Any
) -> Sample:
    tensors = _linear(*rows, **sizes)
    elements = torch.Size(rows).numel() * sizes["features"]
    chosen = {} if dtypes is None else {"dtypes": dtypes}
    return Sample(id, tensors, layout=layout, work=elements, **chosen)


class LinearOp(Op):
    def roundings_of(self, tensors: dict[str, Tensor]) -> float:
        """The products are torch's, and no library says in which order it adds up.

        One after the other, n terms of random signs leave sqrt(n / 2) roundings of what they are
        together.
        """
        features, hidden = tensors["weight"].shape
        rows = tensors["hidden"].shape[:-1].numel()
        return self.roundings + max(features, hidden, rows) ** 0.5


_ROUNDINGS = 8.0
_ODD = {"hidden": 11, "features": 13}
_LOW = (torch.bfloat16, torch.float16)
_LAYOUTS = ("transposed", "sliced", "expanded")

LINEAR_BERNOULLI_LOG_PROB = LinearOp(
    "linear_bernoulli_log_prob",
    _arguments,
    (
        _sample("odd", 5, 7, **_ODD),
        _sample("one", 1, 1, hidden=1, features=1),
        _sample("picture", 3, 2, hidden=20, features=784),
        _sample("K=1", 1, 7, **_ODD),
        _sample("no batch", 5, **_ODD),
        _sample("batch of two dimensions", 5, 2, 3, **_ODD),
        # No bias: its gradient would be one number, whose error is a matter of luck.
        _sample("one feature", 5, 7, hidden=11, features=1, bias=False),
        _sample("one datum, one feature", 37, 1, hidden=11, features=1),
        _sample("no features", 5, 7, hidden=11, features=0),
        _sample("no hidden units", 5, 7, hidden=0, features=13),
        _sample("empty batch", 5, 0, **_ODD),
        _sample("no samples", 0, 7, **_ODD),
        _sample("two segments", 2, 2, hidden=3, features=16390),
        _sample("no bias", 5, 7, bias=False, **_ODD),
        _sample("grey", 5, 7, values="unit", **_ODD),
        _sample("huge", 5, 7, at="huge", dtypes=(torch.float32, torch.float64), **_ODD),
        _sample("value per feature", 5, 7, value=(13,), **_ODD),
        _sample("value per datum", 5, 7, value=(7, 1), **_ODD),
        _sample("one value", 5, 7, value=(), values="unit", **_ODD),
        _sample("value with a gap", 5, 2, 3, value=(2, 1, 13), **_ODD),
        _sample("float32 value", 5, 7, at_least_float32=True, dtypes=_LOW, **_ODD),
        *(_sample(layout, 5, 7, layout=layout, values="unit", **_ODD) for layout in _LAYOUTS),
    ),
    typical=("odd", "no bias", "value per feature"),
    large=_sample("large", 300, 20, hidden=50, features=784),
    corner=_corner,
    rounds_terms=True,
    roundings=_ROUNDINGS,
    lowered=("hidden", "weight", "bias"),
)

LINEAR_GAUSSIAN_LOG_PROB = LinearOp(
    "linear_gaussian_log_prob",
    _arguments,
    (
        _sample("odd", 5, 7, values="normal", log_var=(7, 13), **_ODD),
        _sample("one", 1, 1, hidden=1, features=1, values="normal", log_var=(1, 1)),
        _sample("picture", 3, 2, hidden=20, features=784, values="normal", log_scale=()),
        _sample("no batch", 5, values="normal", log_var=(13,), **_ODD),
        _sample("batch of two dimensions", 5, 2, 3, values="normal", log_var=(3, 1), **_ODD),
        _sample(
            "one feature", 5, 7, hidden=11, features=1, bias=False, values="normal", log_var=(7, 1)
        ),
        _sample("no features", 5, 7, hidden=11, features=0, log_var=()),
        _sample("empty batch", 5, 0, log_var=(13,), **_ODD),
        _sample("two segments", 2, 2, hidden=3, features=16390, values="normal", log_var=()),
        _sample("no bias", 5, 7, bias=False, values="normal", log_var=(), **_ODD),
        _sample("scale", 5, 7, values="normal", scale=(7, 13), **_ODD),
        _sample("log_scale", 5, 7, values="normal", log_scale=(13,), **_ODD),
        _sample("one scale", 5, 7, values="normal", scale=(), **_ODD),
        _sample("scale per datum", 5, 7, values="normal", scale=(7, 1), **_ODD),
        _sample("value per feature", 5, 7, value=(13,), log_var=(13,), **_ODD),
        _sample("float32 value", 5, 7, at_least_float32=True, dtypes=_LOW, log_var=(13,), **_ODD),
        *(
            _sample(layout, 5, 7, layout=layout, values="normal", log_var=(7, 13), **_ODD)
            for layout in _LAYOUTS
        ),
    ),
    typical=("odd", "no bias", "log_scale"),
    large=_sample("large", 300, 20, hidden=50, features=784, values="normal", log_var=(784,)),
    corner=_corner,
    rounds_terms=True,
    roundings=_ROUNDINGS,
    lowered=("hidden", "weight", "bias", "log_var", "log_scale", "scale"),
)

# Fractions of counts, as in the rows of the densities: at zero a count has no derivative. Hidden
# units that are small, so that no rate is beyond what float16 can say.
_COUNTS = {"values": "counts", "at": "unit"}
_FRACTIONS = {"values": "positive", "at": "unit"}
LINEAR_POISSON_LOG_PROB = LinearOp(
    "linear_poisson_log_prob",
    _arguments,
    (
        _sample("odd", 5, 7, **_FRACTIONS, **_ODD),
        _sample("one", 1, 1, hidden=1, features=1, **_FRACTIONS),
        _sample("picture", 3, 2, hidden=20, features=784, **_COUNTS),
        _sample("no batch", 5, **_COUNTS, **_ODD),
        _sample("batch of two dimensions", 5, 2, 3, **_COUNTS, **_ODD),
        _sample("one feature", 5, 7, hidden=11, features=1, bias=False, **_COUNTS),
        _sample("no features", 5, 7, hidden=11, features=0),
        _sample("empty batch", 5, 0, **_ODD),
        _sample("two segments", 2, 2, hidden=3, features=16390, **_COUNTS),
        _sample("no bias", 5, 7, bias=False, **_FRACTIONS, **_ODD),
        _sample("value per feature", 5, 7, value=(13,), **_FRACTIONS, **_ODD),
        _sample("value per datum", 5, 7, value=(7, 1), **_COUNTS, **_ODD),
        _sample("one value", 5, 7, value=(), **_FRACTIONS, **_ODD),
        _sample("float32 value", 5, 7, **_COUNTS, at_least_float32=True, dtypes=_LOW, **_ODD),
        *(_sample(layout, 5, 7, layout=layout, **_COUNTS, **_ODD) for layout in _LAYOUTS),
    ),
    typical=("odd", "no bias", "value per feature"),
    large=_sample("large", 300, 20, hidden=50, features=784, **_COUNTS),
    corner=_corner,
    rounds_terms=True,
    roundings=_ROUNDINGS,
    lowered=("hidden", "weight", "bias"),
)

LINEAR_OPS = (LINEAR_BERNOULLI_LOG_PROB, LINEAR_GAUSSIAN_LOG_PROB, LINEAR_POISSON_LOG_PROB)
