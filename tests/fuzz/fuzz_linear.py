"""The fused decoders' ops and the density of classes, against float64 with counted roundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fuzz_tensors import DTYPES, Numbers, numbers, parts, shapes
from hypothesis import strategies as st
from torch import Tensor, nn

from fastvi import ops

ROUNDINGS = 32
_MILD = st.integers(-48, 48).map(lambda n: n / 16)
_VALUES = {
    "linear_bernoulli_log_prob": st.integers(0, 16).map(lambda n: n / 16),
    "linear_gaussian_log_prob": _MILD,
    "linear_poisson_log_prob": st.integers(0, 40).map(float),
}
MODES = ("kernel", "twin", "no_grad", "inference", "vjp", "vmap")


@dataclass(frozen=True)
class Linear:
    op: str
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Numbers]
    dtype: torch.dtype
    mode: str


@st.composite
def linear_calls(draw: Any) -> Linear:
    op = draw(st.sampled_from(sorted(_VALUES)))
    rows = draw(shapes(least=1, largest=24))
    inner, outer = draw(st.sampled_from((1, 2, 5, 0))), draw(st.sampled_from((1, 3, 17, 0)))
    shaped = {
        "hidden": (*rows, inner),
        "weight": (outer, inner),
        "value": (*draw(parts(rows[1:])), outer),
    }
    values = {"hidden": _MILD, "weight": _MILD, "value": _VALUES[op]}
    if draw(st.booleans()):
        shaped["bias"], values["bias"] = (outer,), _MILD
    if op == "linear_gaussian_log_prob":
        kind = draw(st.sampled_from(("scale", "log_scale", "log_var")))
        shaped[kind] = draw(st.sampled_from(((), (outer,))))
        values[kind] = st.integers(4, 40).map(lambda n: n / 16) if kind == "scale" else _MILD
    return Linear(
        op, shaped, {n: draw(numbers(v)) for n, v in values.items()},
        draw(st.sampled_from((torch.float32, torch.float64))), draw(st.sampled_from(MODES)),
    )  # fmt: skip


def _densities(op: str, out: Tensor, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Elements in float64: the density, its derivative by the output, the derivative's slope."""
    x = named["value"]
    if op == "linear_bernoulli_log_prob":
        p = out.sigmoid()
        value = x * out - nn.functional.softplus(out)
        return {"value": value, "lost": (x * out).abs() + nn.functional.softplus(out.abs()),
                "d": x - p, "d_lost": x.abs() + p, "slope": p * (1 - p)}  # fmt: skip
    if op == "linear_poisson_log_prob":
        rate = out.exp()
        gamma = torch.lgamma(x + 1)
        return {"value": x * out - rate - gamma, "lost": (x * out).abs() + rate + gamma.abs() + 1,
                "d": x - rate, "d_lost": x + rate, "slope": rate}  # fmt: skip
    log = named.get("log_scale", named.get("log_var", torch.zeros((), dtype=torch.float64)) / 2)
    if "scale" in named:
        log = named["scale"].log()
    s = log.exp()
    u = (x - out) / s
    return {"value": -u * u / 2 - log - 0.9189385332046727, "lost": u * u / 2 + log.abs() + 1,
            "d": u / s, "d_lost": u.abs() / s, "slope": (1 / s**2).expand_as(u)}  # fmt: skip


def check_linear(case: Linear) -> None:
    tensors = {n: case.values[n].tensor(s, case.dtype) for n, s in case.shapes.items()}
    names = list(tensors)
    function = getattr(ops, case.op)
    function = function.reference if case.mode == "twin" else function

    def call(named: dict[str, Tensor]) -> Tensor:
        return function(**({"bias": None} | named))

    def run(*xs: Tensor) -> Tensor:
        return call(dict(zip(names, xs, strict=False)))

    eps = torch.finfo(case.dtype).eps
    wide = {n: x.double() for n, x in tensors.items()}
    h, w = wide["hidden"], wide["weight"]
    zero = torch.zeros((), dtype=torch.float64)
    out64 = h @ w.mT + wide.get("bias", zero)
    size = (h.abs() @ w.mT.abs() + wide.get("bias", zero).abs()) * (h.shape[-1] + 2)
    found = _densities(case.op, out64, wide)
    exact = found["value"].sum(-1)
    n = w.shape[0] + ROUNDINGS
    # A rounded output moves the density by its derivative, and that by its own.
    lost = (found["lost"] * n + found["d"].abs() * size + found["slope"] * size * eps * size).sum(
        -1
    )
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            out = call(tensors).clone()
    elif case.mode == "vmap":
        stacked = [torch.stack([x.roll(1), x]) for x in tensors.values()]
        out = torch.func.vmap(run)(*stacked)[1]
    elif case.mode == "vjp":
        out, pull = torch.func.vjp(run, *tensors.values())
    else:
        leaves = [x.detach().requires_grad_() for x in tensors.values()]
        out = run(*leaves)
    assert out.dtype == case.dtype and out.shape == exact.shape, (out.shape, exact.shape)
    assert ((out.detach().double() - exact).abs() <= eps * lost).all(), (out, exact, eps * lost)
    if case.mode in ("no_grad", "inference", "vmap"):
        return
    g = (torch.arange(exact.numel()) * 5 % 7 - 3).to(case.dtype).view(exact.shape) / 2
    grads = pull(g) if case.mode == "vjp" else torch.autograd.grad(out, leaves, g)
    grads = dict(zip(names, grads, strict=False))
    full = g.double()[..., None]
    d = full * found["d"]
    off = full.abs() * (found["d_lost"] * ROUNDINGS + found["slope"] * size)
    rows = max(1, exact.numel()) + ROUNDINGS
    flat, flat_off = d.flatten(0, -2), off.flatten(0, -2)
    inputs = h.expand(*exact.shape, h.shape[-1]).flatten(0, -2)
    expected = {
        "hidden": (d @ w, off @ w.abs() + n * d.abs() @ w.abs()),
        "weight": (
            flat.mT @ inputs,
            flat_off.mT @ inputs.abs() + rows * flat.abs().mT @ inputs.abs(),
        ),
        "bias": (flat.sum(0), flat_off.sum(0) + rows * flat.abs().sum(0)),
    }
    for name, (true, lost) in expected.items():
        if name in grads:
            assert grads[name].shape == tensors[name].shape
            true, lost = true.reshape(tensors[name].shape), lost.reshape(tensors[name].shape)
            gap = (grads[name].double() - true).abs()
            assert (gap <= eps * lost).all(), (name, gap, eps * lost)


# ---- classes ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Classes:
    value: tuple[int, ...]
    logits: tuple[int, ...]
    numbers: Numbers
    dtype: torch.dtype
    integers: torch.dtype
    step: int
    mode: str


@st.composite
def class_calls(draw: Any) -> Classes:
    full = draw(shapes(most=2, largest=16))
    real = st.one_of(_MILD, st.sampled_from((-float("inf"), 1e4, -1e4, 88.0, 3e38, -3e38, 1e-20)))
    return Classes(
        draw(parts(full)), (*draw(parts(full)), draw(st.sampled_from((1, 2, 3, 17)))),
        draw(numbers(real)), draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from((torch.int64, torch.int32, torch.uint8))), draw(st.integers(0, 5)),
        draw(st.sampled_from(MODES)),
    )  # fmt: skip


def check_classes(case: Classes) -> None:
    logits = case.numbers.tensor(case.logits, case.dtype)
    classes = case.logits[-1]
    count = torch.Size(case.value).numel()
    value = ((torch.arange(count) * 3 + case.step) % classes).to(case.integers).view(case.value)
    function = ops.categorical_log_prob
    function = function.reference if case.mode == "twin" else function
    wide = logits.double()
    shape = torch.broadcast_shapes(value.shape, wide.shape[:-1])
    top = wide.amax(-1, keepdim=True)
    possible = (top > -torch.inf).expand(*shape, 1)[..., 0]
    table = wide.log_softmax(-1).expand(*shape, classes)
    index = value.long().expand(shape)[..., None]
    exact = table.gather(-1, index)[..., 0]
    acc = torch.float64 if case.dtype == torch.float64 else torch.float32
    eps = torch.finfo(acc).eps
    far = (wide.expand(*shape, classes).gather(-1, index)[..., 0] - top[..., 0]).abs()
    lost = (ROUNDINGS + classes) * (exact.abs() + far + 1)
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            out = function(value, logits).clone()
    elif case.mode == "vmap":
        stacked = torch.stack([logits.roll(1), logits])
        out = torch.func.vmap(function, in_dims=(None, 0))(value, stacked)[1]
    else:
        leaf = logits.detach().requires_grad_()
        out = function(value, leaf)
    assert out.dtype == acc and out.shape == shape
    got = out.detach().double()
    assert (got[~possible].isnan() | (got[~possible] == -torch.inf)).all()
    inside = possible & exact.isfinite() & (far < torch.finfo(acc).max / 8)
    assert ((got - exact).abs() <= eps * lost)[inside].all(), (got, exact)
    assert (got == -torch.inf)[possible & (exact == -torch.inf)].all(), (got, exact)
    if case.mode not in ("kernel", "twin") or not bool(inside.all()):
        return
    g = (torch.arange(exact.numel()) * 5 % 7 - 3).to(acc).view(exact.shape) / 2
    (grad,) = torch.autograd.grad(out, leaf, g)
    one = torch.nn.functional.one_hot(index[..., 0], classes).double()
    share = g.double()[..., None] * (one - table.exp())
    size = (
        g.double().abs()[..., None]
        * (one + table.exp())
        * (1 + (wide - top).nan_to_num(0, 0, 0).abs())
    )
    true, spread = share.sum_to_size(wide.shape), size.sum_to_size(wide.shape)
    allowed = (ROUNDINGS + classes + exact.numel()) * eps * spread
    allowed += torch.finfo(case.dtype).eps * true.abs() + torch.finfo(case.dtype).smallest_normal
    assert ((grad.double() - true).abs() <= allowed).all(), (grad, true, allowed)
