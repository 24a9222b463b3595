"""Bad input: the error names the op, the argument, what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bad_input import BAD, BAD_BERNOULLI, Bad, Make, make
from bad_input_linear import BAD_LINEAR
from op_samples import OPS, op_cases, typical_cases
from op_table import Op, Sample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

import fastvi
from fastvi import ops

bad_calls = pytest.mark.parametrize(
    "bad",
    [pytest.param(bad, id=f"{bad.op}-{bad.what.replace(' ', '_')}") for bad in (*BAD, *BAD_LINEAR)],
)


def refusal(bad: Bad, t: Make) -> str:
    with pytest.raises(bad.error) as caught:
        bad.call(t)
    return str(caught.value)


@bad_calls
def test_refused_by_name(bad: Bad):
    message = refusal(bad, make)
    assert message.startswith(f"{bad.op}: expected "), message
    assert "got" in message, message
    for words in bad.says:
        assert words in message, message
    assert "\n" not in message, "one line is enough"


@bad_calls
def test_fake_tensors_are_refused_in_the_same_words(bad: Bad):
    if not bad.fake:
        return
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = refusal(bad, make).replace("FakeTensor", "Tensor")
    assert fake == refusal(bad, make)


@bad_calls
def test_meta_tensors_are_refused_in_the_same_words(bad: Bad):
    if not bad.fake:
        return

    def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return make(*shape, dtype=dtype, device="meta")

    assert refusal(bad, on_meta) == refusal(bad, make)


@pytest.mark.native
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "vmap of grad"])
@bad_calls
def test_transforms_refuse_in_the_same_words(bad: Bad, transform: str):
    """The reference that runs there would broadcast and promote as torch does."""

    def call(x: Tensor) -> Tensor:
        def traced(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
            made = make(*shape, dtype=dtype, device=device)
            return made + x.to(dtype) if device == "cpu" else made

        out = bad.call(traced)
        return (out if isinstance(out, Tensor) else out[0]).sum()

    run = {
        "vmap": lambda: torch.func.vmap(call, randomness="same")(torch.zeros(2)),
        "grad": lambda: torch.func.grad(call)(torch.zeros(())),
        "jvp": lambda: torch.func.jvp(call, (torch.zeros(()),), (torch.ones(()),)),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(call))(torch.zeros(2)),
    }[transform]
    with pytest.raises(bad.error) as caught:
        run()
    assert str(caught.value) == refusal(bad, make)


@pytest.mark.native
def test_a_loss_refuses_under_a_transform():
    log_var = torch.zeros(4, 2, dtype=torch.float64)

    def loss(loc: Tensor) -> Tensor:
        return fastvi.iwlb_loss(loc, log_var, lambda z: z.sum(-1), num_samples=3)

    with pytest.raises(
        TypeError, match="expected log_var to have the dtype of loc, Float, got Double"
    ):
        torch.func.grad(loss)(torch.zeros(4, 2))


@pytest.mark.parametrize("what", ["sparse_coo", "sparse_csr", "quantised", "mkldnn", "nested"])
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_other_backends_are_refused(op: Op, sample: Sample, what: str):
    """Each argument alone: the op has no kernel for it, and says so in its own words."""
    convert = {
        "sparse_coo": Tensor.to_sparse,
        "sparse_csr": lambda x: x.reshape(x.shape[0] if x.ndim else 1, -1).to_sparse_csr(),
        "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "mkldnn": lambda x: x.reshape(x.shape or (1,)).to_mkldnn(),
        "nested": lambda x: torch.nested.nested_tensor([x, x]),
    }[what]
    tensors = {name: x.detach() for name, x in sample.make(torch.float32).items()}
    positional, named = op.arguments(tensors, sample.options)
    for name, x in tensors.items():

        def converted(argument: Any, x: Tensor = x) -> Any:
            return convert(x) if argument is x else argument

        with pytest.raises(TypeError) as caught:
            op.public(*tree_map(converted, positional), **tree_map(converted, named))
        said = name.replace("log_px", "log_w")
        message = f"{op.name}: expected {said} to be a dense tensor, got "
        assert str(caught.value).startswith(message), caught.value


def test_a_device_that_does_not_exist_here():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="new_key: expected device to be one .* got cuda: "):
        ops.new_key("cuda")


@pytest.mark.parametrize("op", [op for op in OPS if op.noise], ids=lambda op: op.name)
def test_numpys_integers_are_numbers(op: Op):
    tensors = op.sample("odd").make(torch.float32)
    options = {"num_samples": 5, "sample_offset": 3}
    numpys = {name: np.int64(value) for name, value in options.items()}
    expected = op.call(op.public, tensors, options)
    torch.testing.assert_close(op.call(op.public, tensors, numpys), expected, rtol=0, atol=0)


@pytest.mark.parametrize("op", op_cases())
def test_the_reference_is_not_stricter(op: Op):
    """What the table calls good is good for both: no row tests an error by accident."""
    for sample in op.samples:
        tensors = sample.make(torch.float64)
        op.call(op.reference, tensors, sample.options)


@pytest.mark.native
def test_compile_shows_the_same_words(fresh_compiler):
    """The compiler wraps the error of the fake kernel; the words are still there."""

    @torch.compile(backend="eager", fullgraph=True)
    def density(value: Tensor, logits: Tensor) -> Tensor:
        return ops.bernoulli_log_prob(value, logits)

    eager = refusal(next(b for b in BAD_BERNOULLI if b.what == "batch"), make)
    with pytest.raises(torch._dynamo.exc.TorchRuntimeError) as caught:
        density(make(3, 3), make(5, 4, 3))
    assert eager in str(caught.value)
