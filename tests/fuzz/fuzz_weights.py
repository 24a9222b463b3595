"""Bounds on log-weights in every mode, column by column, against 110 digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import torch
from fuzz_densities import assert_is
from fuzz_exact import Number
from fuzz_tensors import DTYPES, LOG_WEIGHT, Numbers, arranged, numbers
from hypothesis import strategies as st
from torch import Tensor

import fastvi
from fastvi import objectives, ops

ROUNDINGS = 32
MODES = ("kernel", "twin", "no_grad", "inference", "func_grad", "vmap", "vjp", "jvp")
BOUNDS = ("iwlb", "leave_one_out", "elbo", "renyi", "jackknife", "ciwae", "miwae")
_NINF = -mp.inf
Column = Sequence[Any]


@dataclass
class Bound:
    """A number of a column, and its derivative by each log-weight."""

    value: Number
    by: list[Number]


def log_mean(column: Column, alpha: float = 0.0) -> Bound:
    """The bound of order alpha; the derivatives are the normalised powers of the weights."""
    count, c = len(column), 1 - mp.mpf(alpha)
    none = [Number(mp.mpf(0), mp.mpf(0))] * count
    extreme = max(column) if c > 0 else min(column)
    if extreme == _NINF:
        return Bound(Number(_NINF, mp.mpf(0)), none)
    if c == 0:
        lost = mp.fsum(abs(x) for x in column) / count
        share = mp.mpf(1) / count
        return Bound(Number(mp.fsum(column) / count, lost), [Number(share, share)] * count)
    powers = [mp.exp(c * (x - extreme)) if x != _NINF else mp.mpf(0) for x in column]
    total = mp.fsum(powers)
    weights = [p / total for p in powers]
    rise = mp.log(total / count) / c
    # The distance from the extreme is rounded, and so is what its power adds to the sum.
    moved = [
        w * abs(x - extreme) if w else mp.mpf(0) for w, x in zip(weights, column, strict=False)
    ]
    spread = mp.fsum(moved)
    # Where all powers are near one, it is their distances from one that are added up.
    near = mp.fsum(abs(p - 1) for p in powers) / (count * abs(c))
    # One logarithm of a sum of numbers up to one is off by a rounding of one.
    lost = abs(extreme) + abs(rise) + spread + (1 if c == 1 else min(1 / abs(c), near))
    by = [
        Number(w, w * (2 + abs(c) * (abs(x - extreme) + spread)) if w else mp.mpf(0))
        for w, x in zip(weights, column, strict=False)
    ]
    return Bound(Number(extreme + rise, lost), by)


def without(column: Column, k: int) -> Bound:
    """The log-mean of the others."""
    rest = log_mean([x for j, x in enumerate(column) if j != k])
    rest.by.insert(k, Number(mp.mpf(0), mp.mpf(0)))
    return rest


def together(parts: Sequence[tuple[Any, Bound]]) -> Bound:
    """A sum of bounds with factors; minus infinity where one with a factor is."""
    parts = [(f, b) for f, b in parts if f]
    if any(b.value.exact == _NINF for _, b in parts):
        return Bound(Number(_NINF, mp.mpf(0)), [])
    value = Number(
        mp.fsum(f * b.value.exact for f, b in parts),
        mp.fsum(abs(f) * b.value.magnitude for f, b in parts),
    )
    by = [
        Number(
            mp.fsum(f * b.by[k].exact for f, b in parts),
            mp.fsum(abs(f) * b.by[k].magnitude for f, b in parts),
        )
        for k in range(len(parts[0][1].by))
    ]
    return Bound(value, by)


def jackknife(column: Column) -> Bound:
    count = len(column)
    whole = log_mean(column)
    if whole.value.exact == _NINF or count == 1:
        return whole
    others = [(-mp.mpf(count - 1) / count, without(column, k)) for k in range(count)]
    if any(b.value.exact == _NINF for _, b in others):
        return Bound(Number(mp.inf, mp.mpf(0)), [])
    return together([(mp.mpf(count), whole), *others])


# ---- calls --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Weights:
    """Log-weights of shape (*before, K, *after), and which bound is taken of them."""

    op: str
    count: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    values: Numbers
    dtype: torch.dtype
    alpha: float
    terms: bool
    mode: str

    def log_w(self) -> Tensor:
        return self.values.tensor((*self.before, self.count, *self.after), self.dtype)


@st.composite
def weight_calls(draw: Any, names: tuple[str, ...] = BOUNDS) -> Weights:
    op = draw(st.sampled_from(names))
    sizes = st.sampled_from(((), (1,), (3,), (2, 3), (0,), (17,)))
    count = draw(st.sampled_from((1, 2, 3, 5, 19)))
    if op in ("leave_one_out", "jackknife"):
        count = max(count, 2)
    before = draw(st.sampled_from(((), (2,), (1, 2)))) if op == "iwlb" else ()
    dtype = draw(st.sampled_from(DTYPES))
    # The largest of float16, 65504, is below some of the weights: as it is in a user's tensor.
    return Weights(
        op, count, before, draw(sizes), draw(numbers(LOG_WEIGHT)), dtype,
        draw(st.sampled_from((0.0, 0.5, 1.0, 2.0, -1.0, 0.9999, 1.000001, 0.25))),
        op == "iwlb" and draw(st.booleans()), draw(st.sampled_from(MODES)),
    )  # fmt: skip


def _function(case: Weights, public: Any) -> Callable[[Tensor], Tensor]:
    if case.op in ("iwlb", "leave_one_out"):
        function = public or getattr(ops, case.op)
        function = function.reference if case.mode == "twin" else function
        if case.op == "leave_one_out":
            return function
        dim = len(case.before)
        if case.terms:
            return lambda x: function(x, x.flip(dim), x, dim=dim, alpha=case.alpha)
        return lambda x: function(x, dim=dim, alpha=case.alpha)
    function = getattr(objectives, case.op)
    if case.op == "renyi":
        return lambda x: function(x, case.alpha)
    if case.op == "ciwae":
        return lambda x: function(x, abs(case.alpha) % 1)
    if case.op == "miwae":
        return lambda x: function(torch.stack([x, x.flip(0)]))
    return function


def _bounds(case: Weights, column: Column) -> list[Bound]:
    if case.op == "leave_one_out":
        return [without(column, k) for k in range(len(column))]
    if case.op in ("iwlb", "renyi"):
        return [log_mean(column, case.alpha)]
    if case.op == "elbo":
        return [log_mean(column, 1.0)]
    if case.op == "jackknife":
        return [jackknife(column)]
    if case.op == "ciwae":
        beta = mp.mpf(abs(case.alpha) % 1)
        return [together([(beta, log_mean(column, 1.0)), (1 - beta, log_mean(column))])]
    return [log_mean(column)]


def check_weights(case: Weights, public: Any = None) -> None:
    log_w = case.log_w()
    call = _function(case, public)
    acc = torch.float64 if case.dtype == torch.float64 else torch.float32
    dim = len(case.before)
    columns = log_w.double().movedim(dim, 0).reshape(case.count, -1)
    bounds = []
    for b in range(columns.shape[1]):
        column = [mp.mpf(x) for x in columns[:, b].tolist()]
        if case.terms:
            if _NINF in column:
                return  # Minus infinity less minus infinity.
            column = column[::-1]
        bounds.append(_bounds(case, column))
    shape = torch.Size((*case.before, *case.after))
    if case.op == "leave_one_out":
        shape = torch.Size((case.count, *case.after))
        flat = [bounds[b][k] for k in range(case.count) for b in range(len(bounds))]
        weight_of = {
            (b, k): k * len(bounds) + b for b in range(len(bounds)) for k in range(case.count)
        }
    else:
        flat = [one for (one,) in bounds]
        weight_of = {(b, 0): b for b in range(len(bounds))}
    weights = [((n * 5) % 7 - 3) / 2 or 1.0 for n in range(math.prod(shape))]
    upstream = torch.tensor(weights, dtype=acc).view(shape)
    out, grad = _run(case, call, log_w, upstream, acc)
    if out is not None:
        assert out.dtype == acc and out.shape == shape, (out.dtype, out.shape, shape)
        seen = out.detach().double().flatten().tolist()
        for place, (x, bound) in enumerate(zip(seen, flat, strict=False)):
            exact = bound.value.exact
            if case.terms:
                # Each log-weight is a sum of three.
                bound.value.magnitude += 3 * max(abs(v) for v in columns.flatten().tolist())
            if mp.isinf(exact):
                assert x == exact, f"{case.op}[{place}]: {x}, exact {exact}"
            else:
                what = f"{case.op} {place}"
                assert_is(torch.tensor([x], dtype=acc), torch.Size([1]), [[bound.value]], what,
                          ROUNDINGS + case.count, acc)  # fmt: skip
    if grad is None or case.terms:
        return
    limits, own = torch.finfo(acc), torch.finfo(grad.dtype).eps
    grads = grad.movedim(dim, 0).reshape(case.count, -1)
    for b, of_column in enumerate(bounds):
        for k in range(case.count):
            terms = []
            for place, bound in enumerate(of_column):
                w = mp.mpf(weights[weight_of[b, place]])
                if bound.by:
                    one = bound.by[k]
                    if case.op in ("jackknife", "ciwae", "miwae"):
                        # Two ops of one tensor: each gradient is rounded to its type.
                        one = Number(one.exact, one.magnitude * max(1, own / limits.eps))
                    terms.append(Number(w * one.exact, abs(w) * one.magnitude))
                elif bound.value.exact != _NINF:
                    terms = None
                    break
            if terms is None:
                continue
            what = f"{case.op}: gradient by log_w[{k}, {b}]"
            assert_is(grads[k, b : b + 1], torch.Size([1]), [terms], what,
                      ROUNDINGS + case.count, acc)  # fmt: skip


def _run(
    case: Weights, call: Any, log_w: Tensor, upstream: Tensor, acc: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            return call(log_w), None
    if case.mode == "func_grad":
        return None, torch.func.grad(lambda x: (call(x) * upstream).nan_to_num(0, 0, 0).sum())(
            log_w
        )
    if case.mode == "vjp":
        out, pull = torch.func.vjp(call, log_w)
        return out, pull(upstream)[0]
    if case.mode == "vmap":
        return torch.func.vmap(call)(torch.stack([log_w.roll(1), log_w]))[1], None
    if case.mode == "jvp":
        dense = log_w.contiguous().resolve_neg()
        return torch.func.jvp(call, (dense,), (torch.zeros_like(dense),))[0], None
    leaf = log_w.detach().requires_grad_()
    out = call(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, upstream)[0]


# ---- diagnostics --------------------------------------------------------------------------------
def check_diagnostics(case: Weights) -> None:
    """Invariant under a shift and under the order of the samples; NaN and its columns as said."""
    log_w = case.values.tensor((case.count, *case.after), case.dtype)
    ess = fastvi.effective_sample_size(log_w)
    columns = log_w.double().reshape(case.count, -1)
    for b, value in enumerate(ess.flatten().tolist()):
        w = [mp.exp(mp.mpf(x)) if x != -math.inf else mp.mpf(0) for x in columns[:, b].tolist()]
        total = mp.fsum(w)
        exact = total**2 / mp.fsum(x**2 for x in w) if total else mp.mpf(0)
        # The exponential of a rounded difference.
        far = max((abs(x) for x in columns[:, b].tolist() if math.isfinite(x)), default=0.0)
        assert abs(value - exact) <= (16 + case.count + 4 * far) * 2.0**-52 * exact, (value, exact)
    order = torch.arange(case.count).roll(1)
    for name in ("pareto_k", "evidence_gap", "effective_sample_size"):
        function = getattr(fastvi, name)
        first = function(log_w)
        torch.testing.assert_close(
            first, function(log_w[order]), rtol=1e-9, atol=1e-12, equal_nan=True
        )
        assert torch.equal(first.isnan(), function(arranged(log_w, "column")).isnan())
    gap = fastvi.evidence_gap(log_w).flatten().tolist()
    for b, value in enumerate(gap):
        column = [mp.mpf(x) for x in columns[:, b].tolist()]
        if case.count == 1 or max(column) == _NINF:
            assert math.isnan(value)
            continue
        exact = jackknife(column)
        second = sorted(column)[-2]
        if exact.value.exact == mp.inf or max(column) - second > 700:
            # One weight is all of the sum, or is beside others that may underflow.
            assert value == math.inf or value > 0 and max(column) - second < 746
            continue
        corrected = exact.value.exact - log_mean(column).value.exact
        top = max(column)
        near = mp.fsum(abs(x - top) for x in column if x != _NINF) + 4
        allowed = (64 + case.count) * case.count * 2.0**-52 * near
        assert abs(value - corrected) <= allowed, (value, corrected)
