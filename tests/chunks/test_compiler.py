"""torch's compiler: not imported by fastvi, and kept out of what is more than one graph."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

import fastvi

K, B, D = 8, 3, 4


# What a log-likelihood saw of the compiler, call by call.
compiling: list[bool] = []


def log_likelihood(z: Tensor) -> Tensor:
    compiling.append(torch.compiler.is_compiling())
    return -z.square().sum(-1)


def bound(loc: Tensor, log_var: Tensor, key: Tensor) -> Tensor:
    criterion = fastvi.IWLBLoss(num_samples=K, chunk_size=3)
    scaled = 2.0 * loc
    return criterion(scaled, log_var, log_likelihood, key=key) + 1.0


def test_the_import_leaves_the_compiler_alone():
    # It takes longer than all of fastvi.
    code = "import sys, fastvi; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_group_ends_where_the_compiler_came_after_it():
    # Torch's own functions would keep it, and gloo's threads with it, until the process ends.
    code = """
import weakref
import torch.distributed as dist
import fastvi
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
group = weakref.ref(dist.group.WORLD)
import torch._dynamo
assert group() is not None
dist.destroy_process_group()
assert group() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["compiled", "eager"])
def test_chunks_in_a_compiled_function(first: str):
    code = f"""
import sys
sys.path.insert(0, {str(__file__.rpartition("/")[0])!r})
import torch
import test_compiler
from test_compiler import B, D, bound
torch.manual_seed(0)
loc, log_var = torch.randn(B, D, requires_grad=True), torch.randn(B, D, requires_grad=True)
key = torch.tensor([1, 2])
def both(function):
    value = function(loc, log_var, key)
    return value, *torch.autograd.grad(value, (loc, log_var))
compiled = torch.compile(bound, backend="eager")
order = {{"compiled": compiled, "eager": bound}}
results = [both(order[name]) for name in ({first!r}, "eager", "compiled", "compiled")]
for result in results:
    torch.testing.assert_close(result, results[0], rtol=0, atol=0)
assert test_compiler.compiling and not any(test_compiler.compiling)
torch.compiler.set_stance("fail_on_recompile")
both(compiled)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_whole_graph_is_refused_with_the_reason():
    given = torch.zeros(B, D), torch.zeros(B, D), torch.tensor([1, 2])
    with pytest.raises(Exception, match="the bound of chunks of samples is more than one graph"):
        torch.compile(bound, backend="eager", fullgraph=True)(*given)
