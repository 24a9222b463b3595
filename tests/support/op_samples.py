"""The table of the ops: one row per op, with the ugly inputs among its samples.

``test_op_contract.py`` runs every sample of every row through every part of the contract. A new op
is one more row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_samples_densities import DENSITIES
from op_samples_draws import (
    BERNOULLI_SAMPLE,
    CATEGORICAL_SAMPLE,
    KEY,
    LAPLACE_RSAMPLE,
    numbers,
    on,
)
from op_samples_linear import LINEAR_OPS
from op_samples_reductions import LEAVE_ONE_OUT
from op_table import DTYPES, EMULATED, Argument, Op, Sample
from torch import Tensor

# Emulated kernels run one host thread per CUDA thread: only small samples, in fewer dtypes.
EMULATED_ELEMENTS = 600
EMULATED_DTYPES = (torch.float32, torch.bfloat16)


def _layouts(tensors: dict[str, Argument], **options: Any) -> list[Sample]:
    return [
        Sample(layout, tensors, options, layout) for layout in ("transposed", "sliced", "expanded")
    ]


# ---- iwlb ---------------------------------------------------------------------------------------
def _iwlb_arguments(tensors, options):
    return tuple(tensors.values()), options


def _log_w(*shape: int, values: str = "normal") -> dict[str, Argument]:
    return {"log_w": Argument(shape, values)}


def _three_terms(*shape: int, values: str = "normal") -> dict[str, Argument]:
    return {name: Argument(shape, values) for name in ("log_px", "log_pz", "log_qz")}


# -1e5 is beyond float16.
_NOT_HALF = (torch.float32, torch.float64, torch.bfloat16)

IWLB = Op(
    "iwlb",
    _iwlb_arguments,
    (
        Sample("odd", _log_w(29, 19)),
        Sample("tiles", _log_w(129, 297)),
        Sample("one", _log_w(1, 1)),
        Sample("K=1", _log_w(1, 37)),
        Sample("no batch", _log_w(7)),
        Sample("empty batch", _log_w(50, 0)),
        Sample("batch of two dimensions", _log_w(5, 2, 3)),
        Sample("wide", _log_w(3, 1030)),
        Sample("long", _log_w(20011, 3)),
        Sample("long, one datum", _log_w(20011, 1)),
        Sample("samples last", _log_w(19, 29), {"dim": -1}),
        Sample("long, samples last", _log_w(3, 20011), {"dim": 1}),
        Sample("samples in the middle", _log_w(3, 19, 5), {"dim": 1}),
        Sample("huge", _log_w(33, 17, values="huge")),
        Sample("near -1e5", _log_w(33, 17, values="near -1e5"), dtypes=_NOT_HALF),
        Sample("-inf column", _log_w(33, 17, values="-inf column")),
        Sample(
            "-inf column, samples last",
            _log_w(17, 33, values="-inf column"),
            {"dim": 1},
        ),
        Sample("-inf scattered", _log_w(33, 17, values="-inf scattered")),
        Sample("one dominates", _log_w(33, 17, values="one dominates")),
        Sample("constant", _log_w(33, 17, values="constant")),
        Sample("alpha 0.5", _log_w(33, 17), {"alpha": 0.5}),
        Sample("alpha 1", _log_w(129, 41), {"alpha": 1.0}),
        Sample("alpha 1, samples last", _log_w(41, 129), {"alpha": 1.0, "dim": -1}),
        Sample("alpha 2", _log_w(33, 17), {"alpha": 2.0}),
        Sample("alpha -1", _log_w(33, 17), {"alpha": -1.0}),
        Sample("alpha 2, -inf", _log_w(33, 17, values="-inf scattered"), {"alpha": 2.0}),
        Sample("alpha 0.9", _log_w(33, 17), {"alpha": 0.9}),
        Sample("alpha 0.9999", _log_w(33, 17), {"alpha": 0.9999}),
        Sample("alpha 1.000001", _log_w(33, 17, values="wide spread"), {"alpha": 1.000001}),
        Sample("alpha 0.9999, samples last", _log_w(17, 33), {"alpha": 0.9999, "dim": 1}),
        Sample("alpha 0.5, huge", _log_w(33, 17, values="huge"), {"alpha": 0.5}),
        Sample("three terms", _three_terms(29, 19)),
        Sample("three terms, tiles", _three_terms(129, 297)),
        Sample("three terms, samples last", _three_terms(41, 129), {"dim": -1}),
        Sample("three terms, samples in the middle", _three_terms(3, 19, 5), {"dim": 1}),
        Sample("three terms, alpha 0.5", _three_terms(33, 17), {"alpha": 0.5}),
        *_layouts(_log_w(13, 5)),
        Sample("three terms, transposed", _three_terms(13, 5), layout="transposed"),
    ),
    typical=("odd", "samples last", "three terms"),
    normalised_over=0,
    large=Sample("large", _log_w(20000, 11)),
)


# ---- gaussian_rsample ---------------------------------------------------------------------------
_SPREADS = ("scale", "log_scale", "log_var")


def _prior(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    return (tensors["prior_loc"], tensors["prior_log_var"]) if "prior_loc" in tensors else None


def _rsample_arguments(tensors, options):
    named = {name: tensors[name] for name in _SPREADS if name in tensors}
    key = torch.tensor(KEY, device=tensors["loc"].device)
    return (tensors["loc"],), named | {"prior": _prior(tensors), "key": key} | on(
        key.device, options
    )


def _gaussian(
    *shape: int,
    kind: str = "log_var",
    values: str = "normal",
    spread: str | None = None,
    prior: tuple[int, ...] | None = None,
) -> dict[str, Argument]:
    spread = spread or ("positive" if kind == "scale" else "small spread")
    tensors = {"loc": Argument(shape, values), kind: Argument(shape, spread)}
    if prior is not None:
        tensors["prior_loc"] = Argument(prior)
        tensors["prior_log_var"] = Argument(prior, "small spread")
    return tensors


def _broadcast_gaussian(loc: tuple[int, ...], spread: tuple[int, ...]) -> dict[str, Argument]:
    return {"loc": Argument(loc), "log_scale": Argument(spread, "small spread")}


GAUSSIAN_RSAMPLE = Op(
    "gaussian_rsample",
    _rsample_arguments,
    (
        Sample("odd", _gaussian(7, 13), {"num_samples": 5}),
        Sample("one", _gaussian(1, 1), {"num_samples": 1}),
        Sample("no batch", _gaussian(13), {"num_samples": 5}),
        Sample("batch of two dimensions", _gaussian(2, 3, 5), {"num_samples": 4}),
        Sample("empty batch", _gaussian(0, 5), {"num_samples": 3}),
        Sample("no features", _gaussian(4, 0), {"num_samples": 3}),
        Sample("two features", _gaussian(65, 2), {"num_samples": 3}),
        Sample("wide", _gaussian(1, 4099), {"num_samples": 2}),
        Sample("many samples", _gaussian(1, 3), {"num_samples": 4099}),
        Sample("scale", _gaussian(7, 13, kind="scale"), {"num_samples": 5}),
        Sample("log_scale", _gaussian(7, 13, kind="log_scale"), {"num_samples": 5}),
        Sample("huge", _gaussian(7, 13, values="huge"), {"num_samples": 5}),
        Sample("wide spread", _gaussian(7, 13, spread="wide spread"), {"num_samples": 5}),
        Sample("one scale", _broadcast_gaussian((7, 13), ()), {"num_samples": 5}),
        Sample("a scale per feature", _broadcast_gaussian((7, 13), (13,)), {"num_samples": 5}),
        Sample("a scale per datum", _broadcast_gaussian((7, 13), (7, 1)), {"num_samples": 5}),
        Sample("a mean per feature", _broadcast_gaussian((13,), (7, 13)), {"num_samples": 5}),
        Sample("prior", _gaussian(7, 13, prior=(7, 13)), {"num_samples": 5}),
        Sample("prior per feature", _gaussian(7, 13, prior=(13,)), {"num_samples": 5}),
        Sample("one prior", _gaussian(7, 13, prior=()), {"num_samples": 5}),
        Sample("path", _gaussian(7, 13), {"num_samples": 5, "path_only": True}),
        Sample("path, prior", _gaussian(7, 13, prior=(13,)), {"num_samples": 5, "path_only": True}),
        Sample(
            "path, scale", _gaussian(7, 13, kind="scale"), {"num_samples": 5, "path_only": True}
        ),
        Sample("offset", _gaussian(7, 13), {"num_samples": 5, "sample_offset": 2**33 + 1}),
        Sample("of each", _gaussian(7, 13), {"num_samples": 5, "event_dims": 0}),
        Sample("of each, wide", _gaussian(1, 4099), {"num_samples": 2, "event_dims": 0}),
        Sample("numbered", _gaussian(7, 13), {"sample_index": numbers(5, 7)}),
        Sample("numbered, prior", _gaussian(3, 5, prior=(5,)), {"sample_index": numbers(4, 3)}),
        Sample("numbered, of each", _gaussian(13), {"sample_index": numbers(5), "event_dims": 0}),
        Sample("numbered, wide", _gaussian(1, 4099), {"sample_index": numbers(2, 1)}),
        Sample("numbered, many", _gaussian(1, 3), {"sample_index": numbers(4099, 1)}),
        *_layouts(_gaussian(7, 13, prior=(7, 13)), num_samples=5),
    ),
    outputs=("z", "log_q", "log_p"),
    typical=("odd", "prior per feature", "path", "numbered, prior"),
    large=Sample("large", _gaussian(64, 50, prior=(50,)), {"num_samples": 50}),
    noise=True,
)


# ---- log-densities ------------------------------------------------------------------------------
def _bernoulli_arguments(tensors, options):
    return (tensors["value"], tensors["logits"]), options


def _bernoulli(
    value: tuple[int, ...],
    logits: tuple[int, ...],
    *,
    values: str = "binary",
    at: str = "normal",
    at_least_float32: bool = False,
) -> dict[str, Argument]:
    return {"value": Argument(value, values, at_least_float32), "logits": Argument(logits, at)}


BERNOULLI_LOG_PROB = Op(
    "bernoulli_log_prob",
    _bernoulli_arguments,
    (
        Sample("odd", _bernoulli((7, 13), (5, 7, 13))),
        Sample("one", _bernoulli((1, 1), (1, 1, 1))),
        Sample("picture", _bernoulli((2, 784), (3, 2, 784))),
        Sample("grey picture", _bernoulli((2, 784), (3, 2, 784), values="unit")),
        Sample("one feature", _bernoulli((7, 1), (5, 7, 1))),
        Sample("no features", _bernoulli((7, 0), (5, 7, 0))),
        Sample("empty batch", _bernoulli((0, 13), (5, 0, 13))),
        Sample("wide", _bernoulli((2, 4099), (2, 4099))),
        Sample("huge", _bernoulli((7, 13), (5, 7, 13), at="huge")),
        Sample("huge, grey", _bernoulli((7, 13), (5, 7, 13), values="unit", at="huge")),
        Sample("elementwise", _bernoulli((7, 13), (5, 7, 13)), {"event_dims": 0}),
        Sample("event of two dimensions", _bernoulli((7, 13), (5, 7, 13)), {"event_dims": 2}),
        Sample("event of all dimensions", _bernoulli((7, 13), (5, 7, 13)), {"event_dims": 3}),
        Sample("scalars, elementwise", _bernoulli((), ()), {"event_dims": 0}),
        Sample("value per feature", _bernoulli((13,), (5, 7, 13))),
        Sample("one value", _bernoulli((), (5, 7, 13), values="unit")),
        Sample("value per sample", _bernoulli((5, 7, 13), (5, 7, 13))),
        Sample("value with a gap", _bernoulli((5, 1, 13), (5, 7, 13))),
        Sample("logits per feature", _bernoulli((7, 13), (13,))),
        Sample("logits per datum", _bernoulli((7, 13), (5, 7, 1))),
        Sample(
            "float32 value",
            _bernoulli((7, 13), (5, 7, 13), values="unit", at_least_float32=True),
            dtypes=(torch.bfloat16, torch.float16),
        ),
        *_layouts(_bernoulli((7, 13), (5, 7, 13), values="unit")),
    ),
    typical=("odd", "value per feature", "elementwise"),
    terms_apart=True,
    large=Sample("large", _bernoulli((16, 784), (20, 16, 784))),
)


def _gaussian_log_prob_arguments(tensors, options):
    named = {name: tensors[name] for name in _SPREADS if name in tensors}
    return (tensors["value"], tensors["loc"]), named | options


def _density(
    value: tuple[int, ...],
    loc: tuple[int, ...],
    spread: tuple[int, ...],
    *,
    kind: str = "log_var",
    values: str = "normal",
    spreads: str | None = None,
    at_least_float32: bool = False,
) -> dict[str, Argument]:
    spreads = spreads or ("positive" if kind == "scale" else "small spread")
    return {
        "value": Argument(value, values, at_least_float32),
        "loc": Argument(loc),
        kind: Argument(spread, spreads),
    }


_KBF = (5, 7, 13)
GAUSSIAN_LOG_PROB = Op(
    "gaussian_log_prob",
    _gaussian_log_prob_arguments,
    (
        Sample("odd", _density((7, 13), _KBF, _KBF)),
        Sample("one", _density((1, 1), (1, 1, 1), (1, 1, 1))),
        Sample("picture", _density((2, 784), (3, 2, 784), (3, 2, 784))),
        Sample("one feature", _density((7, 1), (5, 7, 1), (5, 7, 1))),
        Sample("no features", _density((7, 0), (5, 7, 0), (0,))),
        Sample("empty batch", _density((0, 13), (5, 0, 13), (13,))),
        Sample("wide", _density((2, 4099), (2, 4099), (2, 4099))),
        Sample("scale", _density((7, 13), _KBF, _KBF, kind="scale")),
        Sample("log_scale", _density((7, 13), _KBF, _KBF, kind="log_scale")),
        Sample("one scale", _density((7, 13), _KBF, (), kind="scale")),
        Sample("one log_var", _density((7, 13), _KBF, ())),
        Sample("scale per feature", _density((7, 13), _KBF, (13,), kind="scale")),
        Sample("scale per datum", _density((7, 13), _KBF, (7, 1), kind="log_scale")),
        Sample("loc per feature", _density((7, 13), (13,), (13,))),
        Sample("loc per datum", _density((7, 13), (5, 7, 1), ())),
        Sample("value per sample", _density(_KBF, (7, 13), (13,))),
        Sample("value with a gap", _density((5, 1, 13), _KBF, (7, 1))),
        Sample("one value", _density((), _KBF, _KBF)),
        Sample("elementwise", _density((7, 13), _KBF, _KBF), {"event_dims": 0}),
        Sample("elementwise, one scale", _density((7, 13), _KBF, ()), {"event_dims": 0}),
        Sample("event of two dimensions", _density((7, 13), _KBF, _KBF), {"event_dims": 2}),
        Sample("event of all dimensions", _density((7, 13), _KBF, (13,)), {"event_dims": 3}),
        Sample("scalars, elementwise", _density((), (), ()), {"event_dims": 0}),
        Sample(
            "huge",
            _density((7, 13), _KBF, _KBF, values="huge"),
            dtypes=(torch.float32, torch.float64),
        ),
        Sample("wide spread", _density((7, 13), _KBF, _KBF, spreads="wide spread")),
        Sample(
            "float32 value",
            _density((7, 13), _KBF, (), at_least_float32=True),
            dtypes=(torch.bfloat16, torch.float16),
        ),
        *_layouts(_density((7, 13), _KBF, _KBF)),
    ),
    typical=("odd", "one scale", "elementwise"),
    terms_apart=True,
    large=Sample("large", _density((16, 784), (20, 16, 784), ())),
)


# ---- gaussian_kl --------------------------------------------------------------------------------
def _kl_arguments(tensors, options):
    return (tensors["loc"], tensors["log_var"], _prior(tensors)), options


GAUSSIAN_KL = Op(
    "gaussian_kl",
    _kl_arguments,
    (
        Sample("odd", _gaussian(7, 13)),
        Sample("one", _gaussian(1, 1)),
        Sample("no batch", _gaussian(13)),
        Sample("batch of two dimensions", _gaussian(2, 3, 5)),
        Sample("empty batch", _gaussian(0, 5)),
        Sample("no features", _gaussian(4, 0)),
        Sample("one feature", _gaussian(65, 1)),
        Sample("wide", _gaussian(2, 4099)),
        Sample("tall", _gaussian(1031, 3)),
        Sample("huge", _gaussian(7, 13, values="huge"), dtypes=(torch.float32, torch.float64)),
        Sample("wide spread", _gaussian(7, 13, spread="wide spread")),
        Sample("log_var per feature", {"loc": Argument((7, 13)), "log_var": Argument((13,))}),
        Sample("one log_var", {"loc": Argument((7, 13)), "log_var": Argument(())}),
        Sample("loc per feature", {"loc": Argument((13,)), "log_var": Argument((7, 13))}),
        Sample("prior", _gaussian(7, 13, prior=(7, 13))),
        Sample("prior per feature", _gaussian(7, 13, prior=(13,))),
        Sample("one prior", _gaussian(7, 13, prior=())),
        Sample("prior per datum", _gaussian(7, 13, prior=(7, 1))),
        Sample("prior, wide", _gaussian(2, 4099, prior=(4099,))),
        *_layouts(_gaussian(7, 13, prior=(7, 13))),
    ),
    typical=("odd", "prior per feature"),
    terms_apart=True,
    large=Sample("large", _gaussian(2048, 50, prior=(50,))),
)

OPS = (
    IWLB,
    GAUSSIAN_RSAMPLE,
    BERNOULLI_LOG_PROB,
    BERNOULLI_SAMPLE,
    CATEGORICAL_SAMPLE,
    LAPLACE_RSAMPLE,
    GAUSSIAN_LOG_PROB,
    GAUSSIAN_KL,
    LEAVE_ONE_OUT,
    *LINEAR_OPS,
    *DENSITIES,
)


# ---- selections ---------------------------------------------------------------------------------
def _selected(sample: Sample) -> bool:
    return not EMULATED or sample.elements <= EMULATED_ELEMENTS


def cases(samples: Callable[[Op], Any] = lambda op: op.samples) -> list[Any]:
    """(op, sample) of every row, as test parameters."""
    return [
        pytest.param(op, sample, id=f"{op.name}-{sample.id.replace(' ', '_')}")
        for op in OPS
        for sample in samples(op)
        if _selected(sample)
    ]


COUNTS = ("binomial_log_prob", "poisson_log_prob")


def cases_by_dtype() -> list[Any]:
    """(op, sample, dtype) of every row. Other than float32 the layouts and shapes add little."""
    dtypes = EMULATED_DTYPES if EMULATED else DTYPES

    def marks(op: Op, sample: Sample, dtype: torch.dtype) -> Any:
        typical = sample.id in op.typical
        # The twins of counts take several times as long as others.
        quick = dtype == torch.float32 and (typical or not op.name.endswith(COUNTS))
        return () if quick or (dtype == torch.bfloat16 and typical) else pytest.mark.slow

    return [
        pytest.param(
            op,
            sample,
            dtype,
            id=f"{case.id}-{str(dtype).removeprefix('torch.')}",
            marks=marks(op, sample, dtype),
        )
        for case in cases()
        for op, sample in [case.values]
        for dtype in sample.dtypes
        if dtype in dtypes
    ]


def typical_cases() -> list[Any]:
    return cases(lambda op: [op.sample(id) for id in op.typical])


def op_cases() -> list[Any]:
    return [pytest.param(op, id=op.name) for op in OPS]
