"""Rows of the table for the ops that draw what has no gradient, and the density beside it."""

from __future__ import annotations

import torch
from op_table import Argument, Op, Sample

# Seed and stream with both halves in use.
KEY = (0x0123456789ABCDEF, 0x0FEDCBA987654321)


class DensityOf(Op):
    """The table asks for gradients: the samples, which have none, have a test file of their own."""

    def call(self, function, tensors, options):
        return super().call(function, tensors, options)[1:]


def _arguments(tensors, options):
    key = torch.tensor(KEY, device=tensors["logits"].device)
    return (tensors["logits"],), {"key": key} | options


def _logits(*shape: int, values: str = "normal") -> dict[str, Argument]:
    return {"logits": Argument(shape, values)}


BERNOULLI_SAMPLE = DensityOf(
    "bernoulli_sample",
    _arguments,
    (
        Sample("odd", _logits(7, 13), {"num_samples": 5}),
        Sample("one", _logits(1, 1), {"num_samples": 1}),
        Sample("no batch", _logits(13), {"num_samples": 5}),
        Sample("batch of two dimensions", _logits(2, 3, 5), {"num_samples": 4}),
        Sample("empty batch", _logits(0, 5), {"num_samples": 3}),
        Sample("no features", _logits(4, 0), {"num_samples": 3}),
        Sample("one feature", _logits(65, 1), {"num_samples": 3}),
        Sample("wide", _logits(1, 4099), {"num_samples": 2}),
        Sample("many samples", _logits(1, 3), {"num_samples": 4099}),
        Sample("logits per sample", _logits(5, 7, 13)),
        Sample("logits per sample, no batch", _logits(5, 13)),
        Sample("logits per sample, wide", _logits(2, 2, 4099)),
        Sample("huge", _logits(7, 13, values="huge"), {"num_samples": 5}),
        Sample("offset", _logits(7, 13), {"num_samples": 5, "sample_offset": 2**33 + 1}),
        *(
            Sample(layout, _logits(7, 13), {"num_samples": 5}, layout)
            for layout in ("transposed", "sliced", "expanded")
        ),
    ),
    outputs=("log_prob",),
    typical=("odd", "logits per sample"),
    large=Sample("large", _logits(64, 200), {"num_samples": 50}),
)
