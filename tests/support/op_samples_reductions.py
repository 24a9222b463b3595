"""Rows of the table for the ops that reduce log-weights to something other than the bound."""

from __future__ import annotations

import torch
from op_table import Argument, Op, Sample

# -1e5 is beyond float16.
_NOT_HALF = (torch.float32, torch.float64, torch.bfloat16)


def _arguments(tensors, options):
    return tuple(tensors.values()), options


def _log_w(*shape: int, values: str = "normal") -> dict[str, Argument]:
    return {"log_w": Argument(shape, values)}


LEAVE_ONE_OUT = Op(
    "leave_one_out",
    _arguments,
    (
        Sample("odd", _log_w(29, 19)),
        Sample("one", _log_w(2, 1)),
        Sample("K=2", _log_w(2, 37)),
        Sample("K=3", _log_w(3, 37)),
        Sample("no batch", _log_w(7, values="wide spread")),
        Sample("empty batch", _log_w(50, 0)),
        Sample("batch of two dimensions", _log_w(5, 2, 3)),
        Sample("tiles", _log_w(129, 297)),
        Sample("wide", _log_w(3, 1030)),
        Sample("long", _log_w(20011, 3)),
        Sample("long, one datum", _log_w(20011, 1)),
        Sample("wide spread", _log_w(33, 17, values="wide spread")),
        Sample("huge", _log_w(33, 17, values="huge")),
        Sample("near -1e5", _log_w(33, 17, values="near -1e5"), dtypes=_NOT_HALF),
        Sample("-inf column", _log_w(33, 17, values="-inf column")),
        Sample("-inf scattered", _log_w(33, 17, values="-inf scattered")),
        Sample("one dominates", _log_w(33, 17, values="one dominates")),
        Sample("one dominates, one datum", _log_w(301, values="one dominates")),
        Sample("constant", _log_w(33, 17, values="constant")),
        *(Sample(layout, _log_w(13, 5), {}, layout) for layout in ("transposed", "sliced")),
        Sample("expanded", _log_w(13, 5), {}, "expanded"),
    ),
    typical=("odd", "no batch", "wide spread"),
    normalised_over=0,
    large=Sample("large", _log_w(20000, 11)),
)
