"""Calls of the log-densities and the divergence in every mode, against 110 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import torch
from fuzz_exact import EXACT, Number
from fuzz_tensors import (
    COUNT,
    DTYPES,
    LOGARITHM,
    MEAN,
    MILD,
    POSITIVE,
    RATE,
    REAL,
    UNIT,
    Case,
    numbers,
    parts,
    shapes,
)
from hypothesis import strategies as st
from torch import Tensor

from fastvi import ops

Function = Callable[..., Tensor]
_SPREADS = {"scale": POSITIVE, "log_scale": LOGARITHM, "log_var": LOGARITHM}
# What each argument may be; of the second dict's names there is exactly one.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gaussian_log_prob": ({"value": REAL, "loc": REAL}, _SPREADS),
    "laplace_log_prob": (
        {"value": REAL, "loc": REAL},
        {name: _SPREADS[name] for name in ("scale", "log_scale")},
    ),
    "bernoulli_log_prob": ({"value": UNIT, "logits": REAL}, {}),
    "poisson_log_prob": ({"value": COUNT}, {"rate": RATE, "log_rate": LOGARITHM}),
    "negative_binomial_log_prob": (
        {"value": COUNT, "mean": MEAN},
        {"dispersion": POSITIVE, "log_dispersion": LOGARITHM},
    ),
    "zero_inflated_negative_binomial_log_prob": (
        {"value": COUNT, "mean": MEAN, "gate_logits": LOGARITHM},
        {"dispersion": POSITIVE, "log_dispersion": LOGARITHM},
    ),
    "gaussian_kl": ({"loc": REAL, "log_var": LOGARITHM}, {}),
}
_POSITIVE = frozenset({"scale", "mean", "dispersion"})
VALUE_MODES = ("kernel", "twin", "no_grad", "inference", "deterministic", "autocast")
MODES = (*VALUE_MODES, "vmap", "func_grad", "vjp", "jvp", "jacrev", "create_graph")
# The roundings of one element, beside one for each term of a sum: a difference, a quotient, a
# square, three elementary functions of two roundings each, and the products that join them.
ROUNDINGS = 16
# A density of counts has a dozen elementary functions.
ROUNDINGS_OF_COUNTS = 32


@st.composite
def density_calls(draw: Any, names: tuple[str, ...] = tuple(FORMS)) -> Case:
    op = draw(st.sampled_from(names))
    fixed, one_of = FORMS[op]
    values = dict(fixed)
    if one_of:
        kind = draw(st.sampled_from(sorted(one_of)))
        values[kind] = one_of[kind]
    divergence = op == "gaussian_kl"
    if divergence and draw(st.booleans()):
        values |= {"prior_loc": REAL, "prior_log_var": LOGARITHM}
    if draw(st.booleans()):
        # Ordinary numbers, so that not every example overflows.
        mild = {REAL: MILD, LOGARITHM: st.integers(-48, 48).map(lambda n: n / 16)}
        values = {name: mild.get(strategy, strategy) for name, strategy in values.items()}
    full = draw(shapes(least=int(divergence)))
    shaped = {name: draw(parts(full)) for name in values}
    if divergence:
        # Each has the dimension of the features, and one of the two has all.
        shaped = {n: s or (1,) for n, s in shaped.items()}
        shaped[draw(st.sampled_from(("loc", "log_var")))] = full
    dtype = draw(st.sampled_from(DTYPES))
    dtypes = dict.fromkeys(values, dtype)
    if "value" in values and dtype.itemsize < 4 and draw(st.booleans()):
        dtypes["value"] = torch.float32
    reached = torch.broadcast_shapes(*shaped.values())
    options = {} if divergence else {"event_dims": draw(st.integers(0, min(2, len(reached))))}
    return Case(
        op, tuple(reached), shaped, {n: draw(numbers(v)) for n, v in values.items()}, dtypes,
        _POSITIVE, options, draw(st.sampled_from(MODES)), draw(st.integers(0, 7)),
    )  # fmt: skip


def function_of(case: Case, public: Any = None) -> Callable[[dict[str, Tensor]], Tensor]:
    """The op, or its twin, as a function of its tensors by name."""
    function = public or getattr(ops, case.op)
    if case.mode in ("twin", "create_graph"):
        function = function.reference

    def call(tensors: dict[str, Tensor]) -> Tensor:
        named = dict(tensors)
        if "prior_loc" in named:
            named["prior"] = (named.pop("prior_loc"), named.pop("prior_log_var"))
        return function(**named, **case.options)

    return call


# ---- what is exact ------------------------------------------------------------------------------
class Sums:
    """Exact outputs and derivatives of a call, each a sum of numbers with their magnitudes."""

    def __init__(self, case: Case, tensors: dict[str, Tensor]) -> None:
        self.case = case
        full = torch.broadcast_shapes(*(x.shape for x in tensors.values()))
        events = 1 if case.op == "gaussian_kl" else case.options["event_dims"]
        self.out_shape = full[: len(full) - events]
        count, outputs = math.prod(full), math.prod(self.out_shape)
        self.terms: list[list[Number]] = [[] for _ in range(outputs)]
        # (output, place in the argument, derivative)
        self.by: dict[str, list[tuple[int, int, Number | None]]] = {n: [] for n in tensors}
        places = {
            name: torch.arange(x.numel()).view(x.shape).expand(full).flatten().tolist()
            for name, x in tensors.items()
        }
        flat = {name: x.detach().double().flatten().tolist() for name, x in tensors.items()}
        row = max(1, count // max(1, outputs)) if count else 1
        exact = EXACT[case.op]
        for n in range(count):
            element = exact(**{k: mp.mpf(flat[k][places[k][n]]) for k in tensors})
            self.terms[n // row].append(element.value)
            for k in tensors:
                self.by[k].append((n // row, places[k][n], element.by.get(k)))


def assert_is(
    got: Tensor, shape: torch.Size, terms: list[list[Number]], what: str, roundings: int,
    acc: torch.dtype,
) -> None:  # fmt: skip
    """Each number of ``got`` is the sum of its terms, within the roundings of their magnitudes."""
    assert got.shape == shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(shape)}"
    limits, own = torch.finfo(acc), torch.finfo(got.dtype)
    smallest = mp.mpf(limits.smallest_normal) * limits.eps
    for place, (x, summed) in enumerate(
        zip(got.detach().double().flatten().tolist(), terms, strict=False)
    ):
        exact = mp.fsum(number.exact for number in summed)
        lost = mp.fsum(number.magnitude for number in summed)
        under = mp.fsum(number.amplified for number in summed) * smallest
        allowed = (roundings + len(summed)) * (limits.eps * lost + under)
        allowed += mp.mpf(own.eps) * abs(exact) + mp.mpf(own.smallest_normal) * own.eps
        said = (
            f"{what}[{place}]: {x!r}, exact {mp.nstr(exact, 12)}, may be {mp.nstr(allowed, 3)} off"
        )
        if lost > mp.mpf(min(own.max, limits.max)) / 8:
            # The sum, or a step on the way, may overflow: to its own side, and not to NaN.
            one_sided = all(number.exact >= 0 for number in summed) or all(
                number.exact <= 0 for number in summed
            )
            if one_sided and math.isinf(x):
                assert (x > 0) == (exact > 0), said
            continue
        assert math.isfinite(x) and abs(mp.mpf(x) - exact) <= allowed, said


def check_density(case: Case, public: Any = None) -> None:
    """Value and derivatives, in the mode that the case asks for."""
    tensors = case.tensors()
    call = function_of(case, public)
    acc = torch.float64 if torch.float64 in case.dtypes.values() else torch.float32
    counts = "poisson" in case.op or "binomial" in case.op
    roundings = ROUNDINGS_OF_COUNTS if counts else ROUNDINGS
    sums = Sums(case, tensors)
    names = list(tensors)

    def assert_value(got: Tensor) -> None:
        assert got.dtype == acc, f"{case.op}: dtype {got.dtype}"
        assert_is(got, sums.out_shape, sums.terms, case.op, roundings, acc)

    # Whole numbers and halves, so that the products with them are exact.
    weights = [((n * 5) % 7 - 3) / 2 or 1.0 for n in range(math.prod(sums.out_shape))]
    upstream = torch.tensor(weights, dtype=acc).view(sums.out_shape)

    def assert_gradient(name: str, got: Tensor | None) -> None:
        if any(number is None for _, _, number in sums.by[name]):
            return
        places: list[list[Number]] = [[] for _ in range(tensors[name].numel())]
        for output, place, number in sums.by[name]:
            assert number is not None
            w = mp.mpf(weights[output])
            places[place].append(
                Number(w * number.exact, abs(w) * number.magnitude, abs(w) * number.amplified)
            )
        assert got is not None, f"{case.op}: no gradient by {name}"
        what = f"{case.op}: gradient by {name}"
        assert_is(got, tensors[name].shape, places, what, roundings, acc)

    if case.mode in VALUE_MODES:
        _check_plainly(case, call, tensors, upstream, assert_value, assert_gradient)
        return
    if case.mode == "create_graph":
        leaves = {name: x.clone().requires_grad_() for name, x in tensors.items()}
        out = call(leaves)
        assert_value(out)
        grads = torch.autograd.grad(out, list(leaves.values()), upstream, create_graph=True)
        for name, grad in zip(names, grads, strict=False):
            assert_gradient(name, grad)
        return
    if case.mode == "vmap":
        which = case.extra % 2
        mapped = [n for i, n in enumerate(names) if (case.extra >> 1) & (1 << i) or i == 0]
        stacked = {
            n: torch.stack([x, x.roll(1)] if which == 0 else [x.roll(1), x]) if n in mapped else x
            for n, x in tensors.items()
        }
        dims = tuple(0 if n in mapped else None for n in names)
        out = torch.func.vmap(lambda *xs: call(dict(zip(names, xs, strict=False))), in_dims=dims)(
            *stacked.values()
        )
        assert_value(out[which])
        return

    def scalar(*xs: Tensor) -> Tensor:
        return (call(dict(zip(names, xs, strict=False))) * upstream).sum()

    def whole(*xs: Tensor) -> Tensor:
        return call(dict(zip(names, xs, strict=False)))

    values, every = list(tensors.values()), tuple(range(len(names)))
    if case.mode == "func_grad":
        grads = torch.func.grad(scalar, argnums=every)(*values)
    elif case.mode == "vjp":
        out, pull = torch.func.vjp(whole, *values)
        assert_value(out)
        grads = pull(upstream)
    elif case.mode == "jacrev":
        if not weights:
            return  # torch maps over the outputs, of which there are none.
        found = torch.func.jacrev(whole, argnums=every)(*values)
        kept = [i for i, w in enumerate(weights)]
        grads = []
        for x, jacobian in zip(values, found, strict=False):
            flat = jacobian.reshape(len(kept), x.numel())
            # One row of a Jacobian at a time: its sums over outputs are not the op's.
            if len(kept) != 1 or not flat.numel():
                grads.append(None)
            else:
                grads.append(flat[0].view(x.shape) * upstream.flatten()[0].to(x.dtype))
    else:
        _check_tangents(case, sums, whole, tensors, assert_value, roundings, acc)
        return
    for name, grad in zip(names, grads, strict=False):
        if grad is not None:
            assert_gradient(name, grad)


def _check_plainly(
    case: Case, call: Any, tensors: dict[str, Tensor], upstream: Tensor, assert_value: Any,
    assert_gradient: Any,
) -> None:  # fmt: skip
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            assert_value(call(tensors))
        return
    leaves = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or case.mode == "deterministic")
    try:
        if case.mode == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = call(leaves)
        else:
            out = call(leaves)
        assert_value(out)
        out.backward(upstream)
    finally:
        torch.use_deterministic_algorithms(before)
    for name, leaf in leaves.items():
        assert_gradient(name, leaf.grad)


def _check_tangents(
    case: Case, sums: Sums, whole: Any, tensors: dict[str, Tensor], assert_value: Any,
    roundings: int, acc: torch.dtype,
) -> None:  # fmt: skip
    tangents = {
        name: torch.tensor([(n % 3 - 1) / 2 for n in range(x.numel())], dtype=x.dtype).view(x.shape)
        for name, x in tensors.items()
    }
    # torch copies a tangent to the strides of its tensor, and refuses expanded and negated ones.
    dense = tuple(x.contiguous().resolve_neg() for x in tensors.values())
    out, moved = torch.func.jvp(whole, dense, tuple(tangents.values()))
    assert_value(out)
    terms: list[list[Number]] = [[] for _ in sums.terms]
    for name, entries in sums.by.items():
        flat = tangents[name].double().flatten().tolist()
        for output, place, number in entries:
            if number is None:
                return
            t = mp.mpf(flat[place])
            if number.magnitude > torch.finfo(acc).max / 8:
                return  # Zero times a derivative that overflows.
            terms[output].append(
                Number(t * number.exact, abs(t) * number.magnitude, abs(t) * number.amplified)
            )
    assert_is(moved, sums.out_shape, terms, f"{case.op}: tangent", roundings, acc)
