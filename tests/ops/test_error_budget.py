"""The budget is not loose: what is exact but for a planted rounding fault does not pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from error_budget import Leaves, assert_within_budget
from op_samples import op_cases
from op_table import Op, Sample
from test_op_contract import weights
from torch import Tensor

pytestmark = pytest.mark.native

UNIT = torch.finfo(torch.float32).eps
# Units in the last place for each rounding that the budget of an op has.
ULPS = 2.5


class _Times(torch.autograd.Function):
    """A number times one factor, and its gradient times another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float, gradient: float) -> Tensor:
        ctx.gradient = gradient
        return x * value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.gradient, None, None


def exact_outputs(op: Op, sample: Sample, leaves: Leaves) -> Leaves:
    wide = {name: x.double() for name, x in leaves.items()}
    return dict(zip(op.outputs, op.call(op.reference, wide, sample.options), strict=True))


def no_fault(op: Op, sample: Sample, relative: float, leaves: Leaves) -> Leaves:
    return exact_outputs(op, sample, leaves)


def fault_in_every_term(op: Op, sample: Sample, relative: float, leaves: Leaves) -> Leaves:
    """As if an argument were wrongly rounded on its way into its terms."""
    units = op.units(leaves, sample.options)
    name = next(iter(leaves))
    x = leaves[name].double()
    unit = units(name, x.detach())
    moved = x + relative * torch.where(torch.isfinite(unit), unit, 0.0)
    return exact_outputs(op, sample, leaves | {name: moved})


def fault_in_the_sum(op: Op, sample: Sample, relative: float, leaves: Leaves) -> Leaves:
    """Of what is summed, that is: a logarithm of a sum is as large as its ``nats`` on the way."""
    outputs = exact_outputs(op, sample, leaves)
    nats = op.nats(leaves, sample.options)
    return {
        name: _Times.apply(x, 1.0 + relative, 1.0) + relative * nats for name, x in outputs.items()
    }


def fault_in_one_gradient(op: Op, sample: Sample, relative: float, leaves: Leaves) -> Leaves:
    # Not a dispersion's, of which nearly everything cancels.
    name = next(name for name in reversed(leaves) if "dispersion" not in name)
    faulty = _Times.apply(leaves[name].double(), 1.0, 1.0 + relative)
    return exact_outputs(op, sample, leaves | {name: faulty})


def in_float32(run: Callable[[Leaves], Leaves], like: Leaves, leaves: Leaves) -> Leaves:
    return {name: x.to(like[name].dtype) for name, x in run(leaves).items()}


def check(fault: Callable[..., Leaves], op: Op, sample: Sample, ulps: float) -> None:
    tensors = sample.make(torch.float32)
    with op.kernel_noise(torch.float32):
        outputs = op.call(op.reference, tensors, sample.options)
        named = dict(zip(op.outputs, outputs, strict=True))
        upstream = dict(zip(op.outputs, weights(outputs), strict=True))
        assert_within_budget(
            partial(in_float32, partial(fault, op, sample, ulps * UNIT), named),
            lambda x: dict(zip(op.outputs, op.call(op.reference, x, sample.options), strict=True)),
            tensors,
            torch.float32,
            upstream,
            terms_apart=op.terms_apart,
            units=op.units(tensors, sample.options),
            computes_in=op.computes_in(torch.float32),
            roundings=op.roundings_of(tensors),
            sizes=op.sizes(tensors, sample.options, upstream),
        )


FAULTS = [fault_in_every_term, fault_in_the_sum, fault_in_one_gradient]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("op", op_cases())
def test_a_planted_fault_of_a_few_units_is_found(op: Op, fault: Callable[..., Leaves]):
    missed = []
    for name in (*op.typical, "one"):
        try:
            sample = op.sample(name)
            check(fault, op, sample, ULPS * op.roundings_of(sample.make(torch.float32)))
        except AssertionError:
            return
        missed.append(name)
    pytest.fail(f"{fault.__name__} passes in {missed}")


@pytest.mark.parametrize("op", op_cases())
def test_what_is_rounded_once_passes(op: Op):
    for name in op.typical:
        check(no_fault, op, op.sample(name), 0.0)
