"""NaN and infinities: visible in the output, and refused where the arguments are validated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_samples import OPS, op_cases
from op_table import Op

from fastvi import ops


def poisoned() -> list[Any]:
    cases = []
    for op in OPS:
        for id in dict.fromkeys((op.typical[0], *(s.id for s in op.samples if s.id in SPREADS))):
            for name in op.sample(id).tensors:
                for value in ("nan", "inf", "-inf"):
                    cases.append(
                        pytest.param(op, id, name, value, id=f"{op.name}-{id}-{name}-{value}")
                    )
    return cases


# They take any log-weight, and validate nothing.
REDUCTIONS = ("iwlb", "leave_one_out")
# Infinities that mean something: an impossible sample, beside which the bound over the others is
# finite; a class that cannot be; a gate that is shut; the limit of a Poisson.
HONEST = [
    ("iwlb", "log_w", "-inf"),
    ("iwlb", "log_px", "-inf"),
    ("iwlb", "log_pz", "-inf"),
    ("iwlb", "log_qz", "inf"),
    ("leave_one_out", "log_w", "-inf"),
    ("categorical_log_prob", "logits", "-inf"),
    ("categorical_sample", "logits", "-inf"),
    ("zero_inflated_negative_binomial_log_prob", "gate_logits", "-inf"),
    ("zero_inflated_negative_binomial_log_prob", "dispersion", "inf"),
    ("negative_binomial_log_prob", "dispersion", "inf"),
]
SPREADS = ("scale", "log_scale", "prior per feature", "three terms")


@pytest.mark.parametrize(("op", "id", "name", "value"), poisoned())
def test_what_is_not_finite_shows(op: Op, id: str, name: str, value: str):
    """In the outputs that depend on it, and in no other."""
    sample = op.sample(id)
    tensors = {n: x.detach().clone() for n, x in sample.make(torch.float32).items()}
    if op.name.endswith("bernoulli_log_prob"):
        # Between the certain outcomes: a certain outcome that comes true has density 1.
        tensors["value"].fill_(0.5)
    with op.kernel_noise(torch.float32):
        flat = tensors[name].view(-1)
        flat[flat.numel() // 2] = float(value)
        expected = op.call(op.reference, tensors, sample.options)
    outputs = op.call(op.public, tensors, sample.options)
    touched = [~torch.isfinite(out) for out in expected]
    if (op.name, name, value) in HONEST:
        assert not any(mask.any() for mask in touched)
        torch.testing.assert_close(outputs, expected)
        return
    seen = torch.cat([~torch.isfinite(out).flatten() for out in outputs])
    assert seen.any()
    for output, out, true, mask in zip(op.outputs, outputs, expected, touched, strict=True):
        torch.testing.assert_close(out[~mask], true[~mask])
        # The density of q at its own sample is a function of the noise: the mean is not in it.
        if (output, name) != ("log_q", "loc"):
            assert not torch.isfinite(out[mask]).any()
            assert value != "nan" or torch.isnan(out[mask]).all()


@pytest.mark.parametrize(("op", "id", "name", "value"), poisoned())
def test_validate_args_refuses_what_is_not_finite(op: Op, id: str, name: str, value: str):
    if op.name in REDUCTIONS or (op.name.startswith("categorical") and value == "-inf"):
        return
    sample = op.sample(id)
    tensors = {n: x.detach().clone() for n, x in sample.make(torch.float32).items()}
    options = sample.options | {"validate_args": True}
    op.call(op.public, tensors, options)
    flat = tensors[name].view(-1)
    flat[flat.numel() // 2] = float(value)
    said = {"prior_loc": "prior[0]", "prior_log_var": "prior[1]"}.get(name, name)
    with pytest.raises(ValueError) as caught:
        op.call(op.public, tensors, options)
    assert str(caught.value).startswith(f"{op.name}: expected {said} "), caught.value
    assert "got" in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0], ids=["zero", "negative"])
@pytest.mark.parametrize("op", ["gaussian_rsample", "gaussian_log_prob"])
def test_a_scale_that_is_not_positive(op: str, value: float):
    row = next(row for row in OPS if row.name == op)
    sample = row.sample("scale")
    tensors = {n: x.detach().clone() for n, x in sample.make(torch.float32).items()}
    tensors["scale"].view(-1)[3] = value
    with pytest.raises(ValueError, match=rf"{op}: expected scale to be positive, got .*{value}"):
        row.call(row.public, tensors, sample.options | {"validate_args": True})
    # Without the check it shows in the density.
    outputs = row.call(row.public, tensors, sample.options)
    assert any(not torch.isfinite(out).all() for out in outputs)


@pytest.mark.parametrize("value", [-0.25, 1.5], ids=["below", "above"])
def test_a_bernoulli_value_outside_the_unit_interval(value: float):
    x = torch.tensor([0.0, value, 1.0])
    with pytest.raises(ValueError, match=rf"value to lie in \[0, 1\], got .*{value}"):
        ops.bernoulli_log_prob(x, torch.zeros(3), validate_args=True)


@pytest.mark.parametrize("op", op_cases())
def test_validate_args_takes_empty_tensors(op: Op):
    if op.name in REDUCTIONS:
        return
    for id in ("empty batch", "no features"):
        sample = op.sample(id)
        tensors = sample.make(torch.float32)
        op.call(op.public, tensors, sample.options | {"validate_args": True})
