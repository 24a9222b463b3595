"""Every op under torch.compile: one graph, the same numbers, also with checkpoint."""

from __future__ import annotations

import pytest
import torch
from op_samples import op_cases
from op_table import DEVICES, Op
from test_op_contract import weigh
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import fastvi

pytestmark = [pytest.mark.native, pytest.mark.slow]
on_devices = pytest.mark.parametrize("device", DEVICES)


def compiled_value_and_gradients(op: Op, function, tensors: dict[str, Tensor]):
    outputs = function(*tensors.values())
    gradients = torch.autograd.grad(weigh(outputs), list(tensors.values()))
    return outputs, gradients


@on_devices
@pytest.mark.parametrize("op", op_cases())
def test_compile(op: Op, device: str, fresh_compiler):
    sample = op.sample(op.typical[-1])
    tensors = sample.make(torch.float32, device)

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return op.call(op.public, dict(zip(tensors, inputs, strict=True)), sample.options)

    ours = compiled_value_and_gradients(op, torch.compile(call, fullgraph=True), tensors)
    eager = compiled_value_and_gradients(op, call, tensors)
    torch.testing.assert_close(ours, eager, rtol=0, atol=0)


@pytest.mark.parametrize("op", op_cases())
def test_every_option_is_in_the_graph(op: Op, fresh_compiler):
    """How arguments are read is traced too, and differs with those that are given."""
    one_of_each = {frozenset(s.options): s for s in reversed(op.samples)}
    for sample in one_of_each.values():
        tensors = sample.make(torch.float32)

        def call(sample=sample, tensors=tensors) -> tuple[Tensor, ...]:
            return op.call(op.public, tensors, sample.options)

        compiled = torch.compile(call, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(), call(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", op_cases())
def test_compile_with_dynamic_shapes(op: Op, fresh_compiler):
    """One graph for every batch size."""
    sample = op.sample(op.typical[0])
    tensors = sample.make(torch.float32)
    compiler = CompileCounterWithBackend("aot_eager")

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return op.call(op.public, dict(zip(tensors, inputs, strict=True)), sample.options)

    compiled = torch.compile(call, backend=compiler, fullgraph=True, dynamic=True)
    graphs = 0
    for size in (13, 11, 6):
        some = {
            name: op.corner(name, x.detach(), size).clone().requires_grad_()
            for name, x in tensors.items()
        }
        ours = compiled_value_and_gradients(op, compiled, some)
        eager = compiled_value_and_gradients(op, call, some)
        torch.testing.assert_close(ours, eager, rtol=0, atol=0)
        graphs = graphs or compiler.frame_count
        assert compiler.frame_count == graphs, "compiled again for another size"


@on_devices
@pytest.mark.parametrize("op", op_cases())
def test_compile_with_checkpoint(op: Op, device: str, fresh_compiler):
    sample = op.sample(op.typical[0])
    tensors = sample.make(torch.float32, device)

    def inner(*inputs: Tensor) -> Tensor:
        scaled = dict(zip(tensors, (1.1 * x for x in inputs), strict=True))
        return sum(out.tanh().sum() for out in op.call(op.public, scaled, sample.options))

    def call(*inputs: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(inner, *inputs, use_reentrant=False)

    values = list(tensors.values())
    compiled = torch.compile(call, backend="aot_eager_decomp_partition", fullgraph=True)
    ours = torch.autograd.grad(compiled(*values), values)
    torch.testing.assert_close(ours, torch.autograd.grad(inner(*values), values))


@on_devices
@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", "inductor"])
def test_compile_with_checkpoint_of_a_key_drawn_inside(backend: str, device: str, fresh_compiler):
    """The second run of the forward must not draw a second key."""
    loc = torch.randn(4, 3, device=device, requires_grad=True)
    log_var = torch.randn(4, 3, device=device, requires_grad=True)

    def inner(loc: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        z, log_q, log_p = fastvi.ops.gaussian_rsample(loc.sin(), log_var=log_var, num_samples=6)
        return z, (z**3).sum() + (log_p - log_q).tanh().sum()

    def call(loc: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
        return torch.utils.checkpoint.checkpoint(inner, loc, log_var, use_reentrant=False)

    runs = []
    for function in (inner, call, torch.compile(call, backend=backend, fullgraph=True)):
        torch.manual_seed(5)
        for _ in range(2):
            z, loss = function(loc, log_var)
            runs.append((z, loss, *torch.autograd.grad(loss, (loc, log_var))))
    eager = runs[:2]
    assert not torch.equal(eager[0][0], eager[1][0])
    torch.testing.assert_close(runs[2:4], eager)
    torch.testing.assert_close(runs[4:6], eager)
