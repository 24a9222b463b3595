"""The rows of the log-densities: Laplace, the densities of counts, and that of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from error_budget import ROUNDINGS
from op_table import Argument, Op, Sample
from torch import Tensor

Shape = tuple[int, ...]
_SINGLE_AND_DOUBLE = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)
# Under a large dispersion the reference is the one that is wrong in float64: it subtracts two
# log-gammas of it. tests/ops/test_ops_counts.py has the exact numbers.
_NOT_DOUBLE = (torch.float32, *_HALVES)
_KBF = (5, 7, 13)
_POSITIVE = ("scale", "rate", "dispersion")


def _named_arguments(tensors: Mapping[str, Tensor], options: Mapping[str, Any]):
    return (), {**tensors, **options}


class _Density:
    """Samples of a density: what its arguments hold, and which of them may be a logarithm."""

    def __init__(self, **holds: str) -> None:
        self.holds = holds
        self.positive = next(name for name in holds if name in _POSITIVE)

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        full: Shape = _KBF,
        *,
        log: bool = False,
        at_least_float32: bool = False,
        **holds: str,
    ) -> dict[str, Argument]:
        tensors = {}
        for name, usual in self.holds.items():
            values = holds.get(name, usual)
            said = name
            if log and name == self.positive:
                said, values = f"log_{name}", holds.get(name, "small spread")
            shape = shapes.get(name, full)
            tensors[said] = Argument(shape, values, at_least_float32 and name == "value")
        return tensors

    def samples(self) -> Iterator[Sample]:
        """Shapes, broadcasting and layouts, as every density has them."""
        positive, value = self.positive, {"value": (7, 13)}
        last = list(self.holds)[-1]
        yield Sample("odd", self(value))
        yield Sample("one", self({"value": (1, 1)}, (1, 1, 1)))
        yield Sample("wide row", self({"value": (2, 784)}, (3, 2, 784)))
        yield Sample("one feature", self({"value": (7, 1)}, (5, 7, 1)))
        yield Sample("no features", self({"value": (7, 0), positive: (0,)}, (5, 7, 0)))
        yield Sample("empty batch", self({"value": (0, 13), positive: (13,)}, (5, 0, 13)))
        yield Sample("wide", self({"value": (2, 4099)}, (2, 4099)))
        yield Sample(positive, self(value))
        yield Sample(f"log_{positive}", self(value, log=True))
        yield Sample(f"{positive} per feature", self(value | {positive: (13,)}))
        yield Sample(f"log_{positive} per feature", self(value | {positive: (13,)}, log=True))
        yield Sample(f"{positive} per datum", self(value | {positive: (7, 1)}))
        yield Sample(f"one {positive}", self(value | {positive: ()}))
        yield Sample(f"one {last}", self(value | {last: ()}))
        yield Sample("value per sample", self({last: (7, 13)}))
        yield Sample("value with a gap", self({"value": (5, 1, 13)}))
        yield Sample("one value", self({"value": ()}))
        yield Sample("elementwise", self(value), {"event_dims": 0})
        yield Sample("elementwise, per feature", self(value | {last: (13,)}), {"event_dims": 0})
        yield Sample("event of two dimensions", self(value), {"event_dims": 2})
        yield Sample("event of all dimensions", self(value), {"event_dims": 3})
        yield Sample("scalars, elementwise", self({}, ()), {"event_dims": 0})
        yield Sample("float32 value", self(value, at_least_float32=True), dtypes=_HALVES)
        for layout in ("transposed", "sliced", "expanded"):
            yield Sample(layout, self({}, (7, 13)), {}, layout)


# A difference of two log-gammas or digammas: a product of four factors over four others and its
# logarithm, and two polynomials.
_GAMMA_ROUNDINGS = 20.0


def dispersion_sizes(
    value: Tensor, tensors: Mapping[str, Tensor], upstream: Tensor
) -> dict[str, Tensor]:
    """The terms of gradients that cancel: by a large dispersion, and by the gate of an empty zero.

    ``upstream`` has the shape of the density, with a 1 for each dimension that is summed.
    """
    name = "dispersion" if "dispersion" in tensors else "log_dispersion"
    x, mean, given = (t.detach().double() for t in (value, tensors["mean"], tensors[name]))
    theta = given.exp() if name == "log_dispersion" else given
    terms = (
        torch.log1p(mean / theta)
        + (x - mean).abs() / (theta + mean)
        + (torch.digamma(x + theta) - torch.digamma(theta)).abs()
    )
    terms = upstream.double() * terms * (theta if name == "log_dispersion" else 1.0)
    sizes = {f"gradient of {name}": terms.square().sum_to_size(given.shape).sqrt()}
    if "gate_logits" in tensors:
        gate = tensors["gate_logits"].detach().double()
        terms = upstream.double() * torch.sigmoid(-gate).expand(terms.shape)
        sizes["gradient of gate_logits"] = terms.square().sum_to_size(gate.shape).sqrt()
    return sizes


class _DispersionOp(Op):
    def sizes(self, tensors, options, upstream):
        if not upstream:
            return {}
        up = upstream["output"]
        event = (1,) * options.get("event_dims", 1)
        return dispersion_sizes(tensors["value"], tensors, up.reshape(up.shape + event))


def _row(
    name: str,
    density: _Density,
    *more: Sample,
    roundings: float = ROUNDINGS,
    kind: type[Op] = Op,
) -> Op:
    positive = density.positive
    return kind(
        name,
        _named_arguments,
        (*density.samples(), *more),
        typical=("odd", f"log_{positive} per feature", "elementwise"),
        terms_apart=True,
        roundings=roundings,
        large=Sample("large", density({"value": (16, 784), positive: (784,)}, (24, 16, 784))),
    )


# ---- Laplace ------------------------------------------------------------------------------------
_laplace = _Density(value="normal", loc="normal", scale="positive")
LAPLACE_LOG_PROB = _row(
    "laplace_log_prob",
    _laplace,
    Sample("huge", _laplace({"value": (7, 13)}, value="huge"), dtypes=_SINGLE_AND_DOUBLE),
    Sample("wide spread", _laplace({"value": (7, 13)}, log=True, scale="wide spread")),
    Sample("at the peak", _laplace({}, value="constant", loc="constant")),
)

# ---- counts -------------------------------------------------------------------------------------
_BF = {"value": (7, 13)}
# Fractions of counts where the table differentiates with respect to the value: at zero there is
# nothing on one side.
_poisson = _Density(value="positive", rate="positive")
POISSON_LOG_PROB = _row(
    "poisson_log_prob",
    _poisson,
    Sample("counts", _poisson(_BF, value="counts")),
    Sample("counts, log_rate", _poisson(_BF, value="counts", log=True)),
    Sample("many counts", _poisson(_BF, value="many counts"), dtypes=_SINGLE_AND_DOUBLE),
    Sample("rates far apart", _poisson(_BF, value="counts", rate="far apart")),
    Sample("rates far apart, log", _poisson(_BF, value="counts", rate="wide spread", log=True)),
    roundings=_GAMMA_ROUNDINGS,
)

_nb = _Density(value="positive", mean="positive", dispersion="positive")
NEGATIVE_BINOMIAL_LOG_PROB = _row(
    "negative_binomial_log_prob",
    _nb,
    Sample("counts", _nb(_BF, value="counts")),
    Sample("counts, log_dispersion", _nb(_BF, value="counts", log=True)),
    Sample("many counts", _nb(_BF, value="many counts"), dtypes=_SINGLE_AND_DOUBLE),
    Sample(
        "dispersions far apart",
        _nb(_BF, value="counts", dispersion="far apart"),
        dtypes=_NOT_DOUBLE,
    ),
    Sample(
        "dispersions far apart, log", _nb(_BF, value="counts", dispersion="wide spread", log=True)
    ),
    Sample("means far apart", _nb(_BF, value="counts", mean="far apart")),
    roundings=_GAMMA_ROUNDINGS,
    kind=_DispersionOp,
)

_zinb = _Density(value="positive", mean="positive", dispersion="positive", gate_logits="normal")
ZERO_INFLATED_NEGATIVE_BINOMIAL_LOG_PROB = _row(
    "zero_inflated_negative_binomial_log_prob",
    _zinb,
    Sample("counts", _zinb(_BF, value="counts")),
    Sample("counts, log_dispersion", _zinb(_BF, value="counts", log=True)),
    Sample("many counts", _zinb(_BF, value="many counts"), dtypes=_SINGLE_AND_DOUBLE),
    Sample(
        "dispersions far apart",
        _zinb(_BF, value="counts", dispersion="far apart"),
        dtypes=_NOT_DOUBLE,
    ),
    Sample("gates wide open and shut", _zinb(_BF, value="counts", gate_logits="huge")),
    Sample("one gate", _zinb(_BF | {"gate_logits": ()}, value="counts")),
    roundings=_GAMMA_ROUNDINGS,
    kind=_DispersionOp,
)


# ---- classes ------------------------------------------------------------------------------------
def _categorical_arguments(tensors: Mapping[str, Tensor], options: Mapping[str, Any]):
    """Classes that differ from row to row, and hold the first and the last."""
    logits = tensors["logits"]
    options = dict(options)
    shape = options.pop("value", logits.shape[1:-1])
    count = 1
    for size in shape:
        count *= size
    value = torch.arange(count, device=logits.device).mul(7).remainder(logits.shape[-1])
    return (value.reshape(shape).to(options.pop("dtype", torch.int64)), logits), options


def _logits(*shape: int, values: str = "normal") -> dict[str, Argument]:
    return {"logits": Argument(shape, values)}


CATEGORICAL_LOG_PROB = Op(
    "categorical_log_prob",
    _categorical_arguments,
    (
        Sample("odd", _logits(5, 7, 13)),
        Sample("one", _logits(1, 1, 1)),
        Sample("one class", _logits(5, 7, 1)),
        Sample("two classes", _logits(5, 33, 2)),
        Sample("sixteen classes", _logits(5, 3, 16)),
        Sample("no features", _logits(5, 0, 3)),
        Sample("empty batch", _logits(0, 7, 13)),
        Sample("no batch", _logits(13), {"value": ()}),
        Sample("wide", _logits(2, 3, 4099)),
        Sample("batch of two dimensions", _logits(3, 2, 5, 7)),
        Sample("int32", _logits(5, 7, 13), {"dtype": torch.int32}),
        Sample("value per sample", _logits(5, 7, 13), {"value": (5, 7)}),
        Sample("more values than logits", _logits(7, 13), {"value": (5, 7)}),
        Sample("values of one distribution", _logits(13), {"value": (50,)}),
        Sample("value with a gap", _logits(5, 7, 13), {"value": (5, 1)}),
        Sample("logits with a gap", _logits(5, 1, 13), {"value": (5, 7)}),
        Sample("huge", _logits(5, 7, 13, values="huge")),
        Sample(
            "near -1e5",
            _logits(5, 7, 13, values="near -1e5"),
            dtypes=(torch.float32, torch.float64, torch.bfloat16),
        ),
        Sample("-inf scattered", _logits(5, 7, 13, values="-inf scattered")),
        *(
            Sample(layout, _logits(5, 7, 13), layout=layout)
            for layout in ("transposed", "sliced", "expanded")
        ),
    ),
    typical=("odd", "more values than logits"),
    normalised_over=-1,
    large=Sample("large", _logits(50, 200, 100)),
)

DENSITIES = (
    LAPLACE_LOG_PROB,
    POISSON_LOG_PROB,
    NEGATIVE_BINOMIAL_LOG_PROB,
    ZERO_INFLATED_NEGATIVE_BINOMIAL_LOG_PROB,
    CATEGORICAL_LOG_PROB,
)
