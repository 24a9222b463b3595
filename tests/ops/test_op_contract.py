"""What every op promises, asked of every row of the table in ``op_samples.py``."""

from __future__ import annotations

import inspect

import pytest
import torch
from error_budget import as_leaves, assert_within_budget
from op_samples import cases, cases_by_dtype, op_cases, typical_cases
from op_table import DEVICES, LAYOUTS, Op, Sample
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastvi.ops._call import transforms_active

on_devices = pytest.mark.parametrize("device", DEVICES)


def weights(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """A weight for every element of every output; none for what is infinite."""
    generator = torch.Generator().manual_seed(99)
    found = []
    for out in outputs:
        # Rounded to bfloat16: then the gradients that enter the backward are the same at any dtype.
        weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).bfloat16()
        weight = weight.to(out.device, out.dtype)
        found.append(torch.where(torch.isfinite(out.detach()), weight, 0.0))
    return found


def weigh(outputs: tuple[Tensor, ...]) -> Tensor:
    """A scalar that depends on every element of every output, each with its own weight."""
    total = outputs[0].new_zeros((), dtype=torch.float64)
    for out, weight in zip(outputs, weights(outputs), strict=True):
        total = total + torch.where(torch.isfinite(out), out * weight, out.detach()).double().sum()
    return total


def value_and_gradients(
    op: Op, function, tensors: dict[str, Tensor], options: dict
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    outputs = op.call(function, tensors, options)
    gradients = torch.autograd.grad(
        weigh(outputs), list(tensors.values()), allow_unused=True, materialize_grads=True
    )
    return outputs, dict(zip(tensors, gradients, strict=True))


# ---- the reference ------------------------------------------------------------------------------
@pytest.mark.parametrize("op", op_cases())
def test_the_reference_takes_the_same_arguments(op: Op):
    """By position and by name, with the same defaults. It checks no values."""
    ours, oracle = (
        [(x.name, x.kind, x.default) for x in inspect.signature(f).parameters.values()]
        for f in (op.public, op.reference)
    )
    assert [x for x in ours if x[0] != "validate_args"] == oracle


# ---- numbers ------------------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize(("op", "sample", "dtype"), cases_by_dtype())
def test_error_budget(op: Op, sample: Sample, dtype: torch.dtype, device: str):
    def run_of(function):
        def run(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            outputs = op.call(function, tensors, sample.options)
            return dict(zip(op.outputs, outputs, strict=True))

        return run

    tensors = sample.make(dtype, device)
    with op.kernel_noise(dtype):
        upstream = None
        if sample.gradient:
            outputs = op.call(op.reference, as_leaves(tensors, torch.float64), sample.options)
            upstream = dict(zip(op.outputs, weights(outputs), strict=True))
        assert_within_budget(
            run_of(op.public),
            run_of(op.reference),
            tensors,
            dtype,
            upstream,
            terms_apart=op.terms_apart,
            units=op.units(tensors, sample.options),
            computes_in=op.computes_in(dtype),
            roundings=op.roundings_of(tensors),
            sizes=op.sizes(tensors, sample.options, upstream or {}),
        )


@on_devices
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_gradients_have_the_dtype_of_their_inputs(op: Op, sample: Sample, device: str):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        tensors = sample.make(dtype, device)
        _, gradients = value_and_gradients(op, op.public, tensors, sample.options)
        for name, x in tensors.items():
            assert gradients[name].dtype == x.dtype, name
            assert gradients[name].shape == x.shape, name


@on_devices
@pytest.mark.parametrize(("op", "sample"), cases())
def test_strides_do_not_matter(op: Op, sample: Sample, device: str):
    """The numbers are those of a contiguous copy, to the bit."""
    if sample.layout == "contiguous":
        return
    tensors = sample.make(torch.float32, device)
    assert any(not x.is_contiguous() for x in tensors.values())
    ours, gradients = value_and_gradients(op, op.public, tensors, sample.options)
    other, other_gradients = value_and_gradients(op, op.public, as_leaves(tensors), sample.options)
    torch.testing.assert_close(ours, other, rtol=0, atol=0)
    torch.testing.assert_close(gradients, other_gradients, rtol=0, atol=0)


@pytest.mark.slow
@on_devices
@pytest.mark.parametrize(
    ("op", "sample"), cases(lambda op: [*map(op.sample, op.typical), op.large])
)
def test_same_input_same_bits(op: Op, sample: Sample, device: str, threads):
    tensors = sample.make(torch.float32, device)
    runs = []
    for count in (1, 2, 2):
        threads(count)
        runs.append(value_and_gradients(op, op.public, tensors, sample.options))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], rtol=0, atol=0, equal_nan=True)


# ---- autograd -----------------------------------------------------------------------------------
@on_devices
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_gradcheck(op: Op, sample: Sample, device: str):
    tensors = sample.make(torch.float64, device)
    # A corner of the sample: finite differences call the op twice for each element.
    small = {
        name: op.corner(name, x, 2).detach().clone().requires_grad_() for name, x in tensors.items()
    }
    options = sample.options
    if options.get("path_only"):
        pytest.skip("the path gradient is not the derivative of the outputs, on purpose")

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return op.call(op.public, dict(zip(small, inputs, strict=True)), options)

    assert torch.autograd.gradcheck(call, tuple(small.values()))


@on_devices
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_a_gradient_only_where_asked(op: Op, sample: Sample, device: str):
    """Each argument alone gets the gradient that it gets beside the others."""
    tensors = sample.make(torch.float32, device)
    _, together = value_and_gradients(op, op.public, tensors, sample.options)
    for name in tensors:
        alone = {other: x.detach() for other, x in tensors.items()}
        alone[name].requires_grad_()
        outputs = op.call(op.public, alone, sample.options)
        (gradient,) = torch.autograd.grad(weigh(outputs), alone[name])
        torch.testing.assert_close(gradient, together[name], rtol=0, atol=0)


@on_devices
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_no_graph_without_need(op: Op, sample: Sample, device: str):
    tensors = {name: x.detach() for name, x in sample.make(torch.float32, device).items()}
    assert not any(out.requires_grad for out in op.call(op.public, tensors, sample.options))
    with torch.no_grad():
        outputs = op.call(op.public, as_leaves(tensors), sample.options)
    assert not any(out.requires_grad for out in outputs)


@pytest.mark.parametrize("out", [0, 1, 2], ids=["first", "second", "third"])
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_each_output_alone_carries_its_gradient(op: Op, sample: Sample, out: int):
    """The backward of an output whose siblings no one uses: their gradients are undefined."""
    if out >= len(op.outputs):
        return
    tensors = sample.make(torch.float64)
    outputs = op.call(op.public, tensors, sample.options)
    with op.kernel_noise(torch.float64):
        expected = op.call(op.reference, tensors, sample.options)
    gradients = [
        torch.autograd.grad(
            weigh(run[out : out + 1]),
            list(tensors.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        for run in (outputs, expected)
    ]
    torch.testing.assert_close(*gradients)


@on_devices
@pytest.mark.parametrize("layout", ["expanded", "transposed", "sliced"])
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_strides_of_the_incoming_gradient(op: Op, sample: Sample, layout: str, device: str):
    """``sum().backward()`` sends an expanded gradient, others send views."""
    tensors = sample.make(torch.float32, device)
    outputs = op.call(op.public, tensors, sample.options)
    sent = [LAYOUTS[layout](torch.randn_like(out)) for out in outputs]
    assert any(not x.is_contiguous() for x in sent) or outputs[0].ndim == 1
    gradients = [
        torch.autograd.grad(outputs, list(tensors.values()), grads, retain_graph=True)
        for grads in (sent, [x.contiguous() for x in sent])
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.native
@on_devices
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_batched_gradients(op: Op, sample: Sample, device: str):
    """``is_grads_batched``, as in ``jacobian(vectorize=True)``: one by one, all the same."""
    tensors = sample.make(torch.float64, device)
    outputs = op.call(op.public, tensors, sample.options)
    sent = [torch.randn(3, *out.shape, dtype=out.dtype, device=device) for out in outputs]
    values = list(tensors.values())
    batched = torch.autograd.grad(outputs, values, sent, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        one = torch.autograd.grad(outputs, values, [x[i] for x in sent], retain_graph=True)
        torch.testing.assert_close(tuple(x[i] for x in batched), one)


@on_devices
@pytest.mark.parametrize("op", op_cases())
def test_double_backward_raises(op: Op, device: str):
    sample = op.sample(op.typical[0])
    tensors = sample.make(torch.float32, device)
    outputs = op.call(op.public, tensors, sample.options)
    gradients = torch.autograd.grad(weigh(outputs), list(tensors.values()), create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=rf"double backward of {op.name} .*reference"):
            torch.autograd.grad(gradient.sum(), list(tensors.values()), retain_graph=True)


@pytest.mark.parametrize("op", op_cases())
def test_forward_mode_dual_raises(op: Op):
    """Left alone, an opaque op gives a tangent of zero without a word."""
    sample = op.sample(op.typical[0])
    tensors = sample.make(torch.float32)
    for name, x in tensors.items():
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
            with pytest.raises(RuntimeError, match=f"{op.name}: expected .*torch.func.jvp"):
                op.call(op.public, tensors | {name: dual}, sample.options)


# ---- torch.func ---------------------------------------------------------------------------------
def scalar_of_first(op: Op, sample: Sample, function):
    """A function of the first tensor of a sample, and that tensor, in float64."""
    tensors = sample.make(torch.float64)
    name = next(iter(tensors))
    fixed = {other: x.detach() for other, x in tensors.items()}

    def scalar(x: Tensor) -> Tensor:
        # Squared: a Hessian that is not zero.
        outputs = op.call(function, fixed | {name: x}, sample.options)
        return sum((out.double() ** 2).sum() for out in outputs)

    return scalar, fixed[name]


@pytest.mark.native
def test_the_private_flag_of_torch_means_what_we_take_it_for():
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(transforms_active())
        return x.sum()

    x = torch.ones(3)
    look(x)
    torch.func.grad(look)(x)
    torch.func.vmap(look)(x[None])
    torch.func.jvp(look, (x,), (x,))
    look(x)
    assert seen == [False, True, True, True, False]


@pytest.mark.native
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_func_grad_and_jvp(op: Op, sample: Sample):
    scalar, x = scalar_of_first(op, sample, op.public)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(scalar(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(scalar)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(scalar)(x), expected)
    tangent = torch.randn_like(x)
    value, derivative = torch.func.jvp(scalar, (x,), (tangent,))
    torch.testing.assert_close(value, scalar(x))
    torch.testing.assert_close(derivative, (expected * tangent).sum())


@pytest.mark.native
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_func_vmap(op: Op, sample: Sample):
    tensors = {name: x.detach() for name, x in sample.make(torch.float64).items()}
    many = {name: torch.stack([x, 0.5 * x, 0.9 * x]) for name, x in tensors.items()}

    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        return op.call(op.public, dict(zip(tensors, inputs, strict=True)), sample.options)

    ours = torch.func.vmap(call)(*many.values())
    one_by_one = [call(*(x[i] for x in many.values())) for i in range(3)]
    for out, parts in zip(ours, zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(out, torch.stack(parts))


@pytest.mark.native
@pytest.mark.parametrize("op", op_cases())
def test_func_hessian(op: Op):
    """Against finite differences of the kernel's own gradient."""
    sample = op.sample("one")
    scalar, x = scalar_of_first(op, sample, op.public)
    x = x + 0.3
    hessian = torch.func.hessian(scalar)(x).reshape(x.numel(), x.numel())

    def gradient(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        return torch.autograd.grad(scalar(leaf), leaf)[0].flatten()

    step = 1e-5
    for row, direction in zip(hessian, torch.eye(x.numel(), dtype=x.dtype), strict=True):
        move = step * direction.reshape(x.shape)
        expected = (gradient(x + move) - gradient(x - move)) / (2 * step)
        torch.testing.assert_close(row, expected, rtol=1e-6, atol=1e-8)


# ---- the dispatcher -----------------------------------------------------------------------------
class RecordOps(TorchDispatchMode):
    """The fastvi ops that a computation calls, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastvi":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.native
@on_devices
@pytest.mark.parametrize(("op", "sample"), typical_cases())
def test_opcheck(op: Op, sample: Sample, device: str):
    pytest.importorskip("expecttest", reason="opcheck imports it")
    tensors = sample.make(torch.float32, device)
    with RecordOps() as record:
        value_and_gradients(op, op.public, tensors, sample.options)
    names = [func._schema.name for func, _, _ in record.calls]
    assert names == [f"fastvi::{op.name}", f"fastvi::_{op.name}_backward"]
    for func, args, kwargs in record.calls:
        backward = func._schema.name.endswith("_backward")

        def as_leaf(x: Tensor, backward: bool = backward) -> Tensor:
            return x.detach().clone().requires_grad_(x.is_floating_point() and not backward)

        torch.library.opcheck(
            func, tree_map_only(Tensor, as_leaf, args), tree_map_only(Tensor, as_leaf, kwargs)
        )


@pytest.mark.native
@pytest.mark.parametrize(
    ("op", "sample"),
    # The linear ops reshape the gradient by torch, which reads no further than it goes.
    [case for case in typical_cases() if not case.values[0].name.startswith("linear_")],
)
def test_the_backward_checks_what_it_is_given(op: Op, sample: Sample):
    """The private op reads as much as the shapes of the others say."""
    tensors = sample.make(torch.float32)
    with RecordOps() as record:
        value_and_gradients(op, op.public, tensors, sample.options)
    func, args, kwargs = record.calls[-1]
    names = [x.name for x in func._schema.arguments]
    for i, name in enumerate(names):
        if not name.startswith("grad") or not isinstance(args[i], Tensor):
            continue
        for wrong in (args[i][..., :1], args[i][None], args[i].double()):
            error = TypeError if wrong.dtype == torch.float64 else ValueError
            with pytest.raises(error, match=f"expected {name} to "):
                func(*args[:i], wrong, *args[i + 1 :], **kwargs)


@pytest.mark.parametrize("op", op_cases())
def test_registered_under_every_key(op: Op):
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    for name in (op.name, f"_{op.name}_backward"):
        for key in ("CPU", "CUDA", "Meta", "AutogradCPU", "AutogradCUDA"):
            assert has_kernel(f"fastvi::{name}", key), (name, key)
    for key in ("AutocastCPU", "AutocastCUDA"):
        assert has_kernel(f"fastvi::{op.name}", key), key


@on_devices
@pytest.mark.parametrize("op", op_cases())
def test_autocast(op: Op, device: str):
    """Tensors of one call meet in the widest of their types, and gradients go back in their own."""
    sample = op.sample(op.typical[-1])
    tensors = sample.make(torch.float32, device)
    if len(tensors) > 1:
        first = next(iter(tensors))
        tensors[first] = tensors[first].detach().bfloat16().requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        outputs, gradients = value_and_gradients(op, op.public, tensors, sample.options)
    wide = as_leaves(tensors, torch.float32)
    lowered = as_leaves(tensors, torch.bfloat16)
    wide |= {name: x for name, x in lowered.items() if name in op.lowered}
    expected, wide_gradients = value_and_gradients(op, op.public, wide, sample.options)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    for name, x in tensors.items():
        torch.testing.assert_close(
            gradients[name], wide_gradients[name].to(x.dtype), rtol=0, atol=0
        )
