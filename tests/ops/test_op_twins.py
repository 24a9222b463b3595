"""Each reference is as right as its kernel: it is what runs under ``torch.func``."""

from __future__ import annotations

import pytest
import torch
from error_budget import as_leaves
from op_samples import cases
from op_table import Op, Sample
from test_op_contract import value_and_gradients, weigh
from torch import Tensor


@pytest.mark.native
@pytest.mark.parametrize(("op", "sample"), cases())
def test_the_twin_is_as_right_as_the_kernel(op: Op, sample: Sample):
    """What runs under torch.func, at the same ugly values: its float32 against float64's truth."""
    if op.noise or op.name in COUNTS or sample.elements > 4000 or not sample.gradient:
        return
    tensors = {n: x.detach() for n, x in sample.make(torch.float32).items()}
    names = list(tensors)

    def run_of(function, transformed: bool):
        def total(*inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            outputs = op.call(function, dict(zip(names, inputs, strict=True)), sample.options)
            return weigh(outputs), outputs

        def run(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
            values = [x.detach() for x in leaves.values()]
            if transformed:
                every = tuple(range(len(names)))
                gradients, outputs = torch.func.grad(total, every, has_aux=True)(*values)
            else:
                outputs, found = value_and_gradients(op, function, leaves, sample.options)
                gradients = found.values()
            named = dict(zip(op.outputs, outputs, strict=True))
            return named | {
                f"gradient of {name}": x for name, x in zip(names, gradients, strict=True)
            }

        return run

    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    found = run_of(op.public, True)(leaves)
    exact = run_of(op.reference, False)(as_leaves(leaves, torch.float64))
    kernel = run_of(op.public, False)(leaves)
    for name, true in exact.items():
        rounded = true.float()
        finite = torch.isfinite(rounded)
        assert torch.equal(torch.isfinite(found[name]), finite), name
        if not finite.any():
            continue
        twin, ours = (
            (x[name].detach().double() - true)[finite].abs().max() for x in (found, kernel)
        )
        # Four roundings of the largest beyond four times what the kernel is off by.
        largest = true[finite].abs().max()
        assert twin <= 4 * ours + 4 * torch.finfo(torch.float32).eps * largest, (name, twin, ours)


# Their twins have tests of their own, over a grid of counts and parameters.
COUNTS = (
    "negative_binomial_log_prob",
    "zero_inflated_negative_binomial_log_prob",
    "poisson_log_prob",
    "linear_poisson_log_prob",
)
