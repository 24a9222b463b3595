"""Rows of the table for the ops that draw, other than gaussian_rsample."""

from __future__ import annotations

import torch
from op_table import Argument, Op, Sample
from torch import Tensor

# Seed and stream with both halves in use.
KEY = (0x0123456789ABCDEF, 0x0FEDCBA987654321)


def numbers(*shape: int, up_to: int = 9) -> Tensor:
    """Numbers of samples, in no order, some of them more than once."""
    return torch.randint(up_to, shape, generator=torch.Generator().manual_seed(7))


def taken(whole: tuple[Tensor, ...], index: Tensor) -> list[Tensor]:
    """Row ``index[k, b]`` of each output, in plain indexing."""
    found = []
    for out in whole:
        at = index.reshape(*index.shape, *[1] * (out.ndim - index.ndim))
        found.append(out.gather(0, at.expand(*index.shape, *out.shape[index.ndim :])))
    return found


class LaplaceOp(Op):
    def units(self, tensors, options):
        """Near 0 the noise is the logarithm of a rounded number near 1: off by 1 unit of scale."""
        named = super().units(tensors, options)
        spread = tensors["scale"] if "scale" in tensors else tensors["log_scale"].exp()
        spread = spread.detach().double()

        def units(name: str, x: Tensor) -> Tensor:
            unit = named(name, x)
            return unit + spread.expand(x.shape) if name == "loc" else unit

        return units


def on(device: torch.device, options):
    return {k: x.to(device) if isinstance(x, Tensor) else x for k, x in options.items()}


class DensityOf(Op):
    """The table asks for gradients: the samples, which have none, have a test file of their own."""

    def call(self, function, tensors, options):
        return super().call(function, tensors, options)[1:]


def _arguments(tensors, options):
    key = torch.tensor(KEY, device=tensors["logits"].device)
    return (tensors["logits"],), {"key": key} | on(key.device, options)


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
        Sample("of each", _logits(7, 13), {"num_samples": 5, "event_dims": 0}),
        Sample("of each, wide", _logits(1, 4099), {"num_samples": 2, "event_dims": 0}),
        Sample("of each, logits per sample", _logits(5, 7, 13), {"event_dims": 0}),
        Sample("numbered", _logits(7, 13), {"num_samples": 5, "sample_index": numbers(5, 7)}),
        Sample("numbered, logits per sample", _logits(5, 7, 13), {"sample_index": numbers(5, 7)}),
        Sample("numbered, wide", _logits(4099), {"num_samples": 2, "sample_index": numbers(2)}),
        *(
            Sample(layout, _logits(7, 13), {"num_samples": 5}, layout)
            for layout in ("transposed", "sliced", "expanded")
        ),
    ),
    outputs=("log_prob",),
    typical=("odd", "logits per sample", "of each", "numbered"),
    large=Sample("large", _logits(64, 200), {"num_samples": 50}),
)

CATEGORICAL_SAMPLE = DensityOf(
    "categorical_sample",
    _arguments,
    (
        Sample("odd", _logits(7, 13), {"num_samples": 5}),
        Sample("one", _logits(1, 2), {"num_samples": 1}),
        Sample("one class", _logits(3, 1), {"num_samples": 5}),
        Sample("no batch", _logits(13), {"num_samples": 5}),
        Sample("batch of two dimensions", _logits(2, 3, 5), {"num_samples": 4}),
        Sample("empty batch", _logits(0, 5), {"num_samples": 3}),
        Sample("no features", _logits(5, 0, 3)),
        Sample("few classes", _logits(65, 3), {"num_samples": 3}),
        Sample("very many classes", _logits(2, 5003), {"num_samples": 3}),
        Sample("many samples", _logits(1, 3), {"num_samples": 4099}),
        Sample("logits per sample", _logits(5, 7, 13)),
        Sample("logits per sample, no batch", _logits(5, 13)),
        Sample("huge", _logits(7, 13, values="huge"), {"num_samples": 5}),
        Sample("-inf scattered", _logits(7, 13, values="-inf scattered"), {"num_samples": 5}),
        Sample("numbered", _logits(7, 13), {"num_samples": 5, "sample_index": numbers(5, 7)}),
        Sample("numbered, logits per sample", _logits(5, 7, 13), {"sample_index": numbers(5, 7)}),
        Sample("offset", _logits(7, 13), {"num_samples": 5, "sample_offset": 2**33 + 1}),
        *(
            Sample(layout, _logits(7, 13), {"num_samples": 5}, layout)
            for layout in ("transposed", "sliced", "expanded")
        ),
    ),
    outputs=("log_prob",),
    normalised_over=-1,
    typical=("odd", "logits per sample", "numbered"),
    large=Sample("large", _logits(64, 200), {"num_samples": 500}),
)


# ---- laplace_rsample ----------------------------------------------------------------------------
def _laplace_arguments(tensors, options):
    named = {name: tensors[name] for name in ("scale", "log_scale") if name in tensors}
    key = torch.tensor(KEY, device=tensors["loc"].device)
    return (tensors["loc"],), named | {"key": key} | on(key.device, options)


def _laplace(
    *shape: int, kind: str = "scale", values: str = "normal", spread: tuple[int, ...] | None = None
) -> dict[str, Argument]:
    widths = "positive" if kind == "scale" else "small spread"
    return {
        "loc": Argument(shape, values),
        kind: Argument(shape if spread is None else spread, widths),
    }


LAPLACE_RSAMPLE = LaplaceOp(
    "laplace_rsample",
    _laplace_arguments,
    (
        Sample("odd", _laplace(7, 13), {"num_samples": 5}),
        Sample("one", _laplace(1, 1), {"num_samples": 1}),
        Sample("no batch", _laplace(13), {"num_samples": 5}),
        Sample("batch of two dimensions", _laplace(2, 3, 5), {"num_samples": 4}),
        Sample("empty batch", _laplace(0, 5), {"num_samples": 3}),
        Sample("no features", _laplace(4, 0), {"num_samples": 3}),
        Sample("two features", _laplace(65, 2), {"num_samples": 3}),
        Sample("wide", _laplace(1, 4099), {"num_samples": 2}),
        Sample("many samples", _laplace(1, 3), {"num_samples": 4099}),
        Sample("log_scale", _laplace(7, 13, kind="log_scale"), {"num_samples": 5}),
        Sample("huge", _laplace(7, 13, values="huge"), {"num_samples": 5}),
        Sample("one scale", _laplace(7, 13, spread=()), {"num_samples": 5}),
        Sample("a scale per feature", _laplace(7, 13, spread=(13,)), {"num_samples": 5}),
        Sample("offset", _laplace(7, 13), {"num_samples": 5, "sample_offset": 2**33 + 1}),
        Sample("of each", _laplace(7, 13), {"num_samples": 5, "event_dims": 0}),
        Sample("of each, whole quads", _laplace(3, 8), {"num_samples": 5, "event_dims": 0}),
        Sample("of each, wide", _laplace(1, 4099), {"num_samples": 2, "event_dims": 0}),
        Sample("numbered", _laplace(7, 13), {"sample_index": numbers(5, 7)}),
        Sample("numbered, of each", _laplace(13), {"sample_index": numbers(5), "event_dims": 0}),
        *(
            Sample(layout, _laplace(7, 13), {"num_samples": 5}, layout)
            for layout in ("transposed", "sliced", "expanded")
        ),
    ),
    outputs=("z", "log_q"),
    typical=("odd", "log_scale", "of each", "numbered"),
    large=Sample("large", _laplace(64, 200), {"num_samples": 50}),
)
