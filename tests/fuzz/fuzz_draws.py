"""Draws by a key: the laws of the noise, and what is computed from it, against 110 digits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import mpmath as mp
import torch
from fuzz_densities import assert_is
from fuzz_exact import LOG_2PI, Number, _spread
from fuzz_tensors import DTYPES, LOGARITHM, MILD, POSITIVE, REAL, Numbers, numbers, parts, shapes
from hypothesis import strategies as st
from op_samples_draws import taken
from torch import Tensor

from fastvi import ops

ROUNDINGS = 32
MODES = ("kernel", "twin", "no_grad", "inference", "vjp", "vmap")
_SPREADS = {"scale": POSITIVE, "log_scale": LOGARITHM, "log_var": LOGARITHM}
_MILD_SPREADS = {
    "scale": st.integers(1, 80).map(lambda n: n / 16),
    "log_scale": st.integers(-32, 32).map(lambda n: n / 16),
    "log_var": st.integers(-32, 32).map(lambda n: n / 16),
}


@dataclass(frozen=True)
class Draw:
    op: str
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Numbers]
    dtype: torch.dtype
    num_samples: int
    key: tuple[int, int]
    offset: int
    options: dict[str, Any]
    mode: str

    def tensors(self) -> dict[str, Tensor]:
        return {
            name: self.values[name].tensor(shape, self.dtype, positive=name == "scale")
            for name, shape in self.shapes.items()
        }

    def call(
        self, tensors: dict[str, Tensor], count: int | None = None, skip: int = 0, **more: Any
    ) -> Any:
        named = dict(tensors)
        if "prior_loc" in named:
            named["prior"] = (named.pop("prior_loc"), named.pop("prior_log_var"))
        function = getattr(ops, self.op)
        function = function.reference if self.mode == "twin" else function
        return function(
            **named, num_samples=count or self.num_samples, key=torch.tensor(self.key),
            sample_offset=self.offset + skip, **self.options, **more,
        )  # fmt: skip


@st.composite
def draw_calls(draw: Any) -> Draw:
    op = draw(
        st.sampled_from(
            ("gaussian_rsample", "laplace_rsample", "bernoulli_sample", "categorical_sample")
        )
    )
    wild = draw(st.booleans())
    options: dict[str, Any] = {}
    full = draw(shapes(least=1, most=3, largest=16))
    if op.endswith("rsample"):
        kinds = ("scale", "log_scale", "log_var")[: 3 if op == "gaussian_rsample" else 2]
        kind = draw(st.sampled_from(kinds))
        spreads = _SPREADS if wild else _MILD_SPREADS
        values = {"loc": REAL if wild else MILD, kind: spreads[kind]}
        shaped = {name: draw(parts(full)) or (1,) for name in values}
        shaped["loc"] = full
        if op == "gaussian_rsample":
            options["path_only"] = draw(st.booleans())
            if draw(st.booleans()):
                values |= {"prior_loc": MILD, "prior_log_var": _MILD_SPREADS["log_var"]}
                shaped |= {name: draw(parts(full)) for name in ("prior_loc", "prior_log_var")}
    else:
        values, shaped = {"logits": REAL if wild else MILD}, {"logits": full}
        if op == "categorical_sample" and full[-1] == 0:
            shaped = {"logits": (*full[:-1], 3)}
    if op in ("laplace_rsample", "bernoulli_sample"):
        options["event_dims"] = draw(st.integers(0, 1))
    word = st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1), st.integers(-(2**63), -1))
    mode = draw(st.sampled_from(MODES))
    if op == "categorical_sample" and mode == "vjp":
        mode = "twin"  # Classes are integers, of which torch.func.vjp takes none.
    return Draw(
        op, shaped, {n: draw(numbers(v)) for n, v in values.items()}, draw(st.sampled_from(DTYPES)),
        draw(st.integers(1, 5)), (draw(word), draw(word)),
        draw(st.sampled_from((0, 1, 3, 2**32 - 2, 2**33 + 1))), options, mode,
    )  # fmt: skip


def check_draw(case: Draw) -> None:
    tensors = case.tensors()
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            outputs = case.call(tensors)
        outputs = tuple(out.clone() for out in outputs)
    elif case.mode == "vmap":
        stacked = {name: torch.stack([x.roll(1), x]) for name, x in tensors.items()}
        names = list(stacked)
        mapped = torch.func.vmap(lambda *xs: case.call(dict(zip(names, xs, strict=False))))
        outputs = tuple(out[1] for out in mapped(*stacked.values()))
    elif case.mode == "vjp":
        names = list(tensors)
        outputs, pull = torch.func.vjp(
            lambda *xs: case.call(dict(zip(names, xs, strict=False))), *tensors.values()
        )
    else:
        outputs = case.call(tensors)
    _assert_laws(case, tensors, outputs)
    if case.op == "gaussian_rsample":
        _check_gaussian(case, tensors, outputs)
    elif case.op == "laplace_rsample":
        _check_laplace(case, tensors, outputs)
    else:
        _check_discrete(case, tensors, outputs)


def _twin_or_kernel(case: Draw) -> str:
    return "twin" if case.mode in ("twin", "vjp", "vmap") else "kernel"


def _assert_laws(case: Draw, tensors: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
    """The noise is a function of the key and the place: of no split, no stride and no mode."""
    plain = replace(case, mode=_twin_or_kernel(case))
    dense = {name: x.contiguous() for name, x in tensors.items()}
    whole = plain.call(dense)
    for a, b in zip(outputs, whole, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
        if case.mode in ("vjp", "vmap"):
            eps = torch.finfo(a.dtype).eps if a.is_floating_point() else 0.0
            torch.testing.assert_close(a, b, rtol=64 * eps, atol=0 if eps == 0 else 1e-30)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    first = max(1, case.num_samples // 2)
    if first < case.num_samples:
        halves = [
            plain.call(dense, first),
            plain.call(dense, case.num_samples - first, first),
        ]
        for joined, b in zip(zip(*halves, strict=True), whole, strict=True):
            torch.testing.assert_close(torch.cat(joined), b, rtol=0, atol=0, equal_nan=True)
    batch = torch.broadcast_shapes(*(x.shape for x in tensors.values()))[:-1]
    index = (
        torch.arange(case.num_samples * math.prod(batch)).reshape(case.num_samples, *batch).flip(0)
    )
    index = index % case.num_samples
    numbered = plain.call(dense, sample_index=index)
    for got, b in zip(numbered, taken(whole, index), strict=True):
        torch.testing.assert_close(got, b, rtol=0, atol=0, equal_nan=True)


def _noise(case: Draw, loc: Tensor) -> Tensor:
    """The standard normals of the call, as the op itself draws them."""
    acc = torch.float64 if case.dtype == torch.float64 else torch.float32
    zero = torch.zeros(loc.shape, dtype=acc)
    function = ops.gaussian_rsample
    if case.mode in ("twin", "vjp", "vmap"):
        function = function.reference
    return function(
        zero, scale=torch.ones_like(zero), num_samples=case.num_samples,
        key=torch.tensor(case.key), sample_offset=case.offset,
    )[0]  # fmt: skip


def _check_gaussian(case: Draw, tensors: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
    """z, log q and log p, and all derivatives, from the noise."""
    acc = torch.float64 if case.dtype == torch.float64 else torch.float32
    names = list(tensors)
    loc = tensors["loc"]
    eps = _noise(case, loc).double().flatten().tolist()
    full = (case.num_samples, *loc.shape)
    place = {
        n: torch.arange(x.numel()).view(x.shape).expand(full).flatten().tolist()
        for n, x in tensors.items()
    }
    flat = {n: x.double().flatten().tolist() for n, x in tensors.items()}
    kind = next(n for n in names if n in _SPREADS)
    size = loc.shape[-1]
    rows = math.prod(full[:-1])
    z: list[list[Number]] = []
    log_q: list[list[Number]] = [[] for _ in range(rows)]
    log_p: list[list[Number]] = [[] for _ in range(rows)]
    by: dict[str, list[list[Number]]] = {
        n: [[] for _ in range(x.numel())] for n, x in tensors.items()
    }
    w = [mp.mpf(n % 5 - 2) / 2 for n in range(math.prod(full))]
    wq, wp = ([mp.mpf(n * k % 7 - 3) / 2 for n in range(rows)] for k in (3, 5))
    path = case.options["path_only"]
    for n, e in enumerate(eps):
        row = n // size
        at = {name: mp.mpf(flat[name][place[name][n]]) for name in names}
        e = mp.mpf(e)
        _, sigma, log_sigma, factor = _spread({kind: at[kind]})
        mean = at["loc"]
        value = mean + sigma * e
        moved = abs(mean) + sigma * abs(e)
        z.append([Number(value, moved)])
        log_q[row].append(
            Number(-e * e / 2 - log_sigma - LOG_2PI / 2, e * e / 2 + abs(log_sigma) + 1)
        )
        m = at.get("prior_loc", mp.mpf(0))
        v = at.get("prior_log_var", mp.mpf(0))
        precision = mp.exp(-v)
        slope = (value - m) * precision
        # The sample is rounded before its density is taken.
        off = (moved + abs(m)) * precision
        log_p[row].append(
            Number(
                -slope * (value - m) / 2 - v / 2 - LOG_2PI / 2,
                abs(slope) * (moved + abs(m)) + abs(v) / 2 + 1,
            )
        )
        u = w[n] - wp[row] * slope
        lost = abs(w[n]) + abs(wp[row]) * off
        dq = -wq[row]
        if path:
            # log q sees the parameters through z alone.
            score = wq[row] * (-e / sigma)
            u, lost, dq = u + score, lost + abs(score), mp.mpf(0)
        by["loc"][place["loc"][n]].append(Number(u, lost, 1 + 1 / sigma))
        log_sigma_grad = u * sigma * e + dq
        scale = factor if kind != "scale" else 1 / sigma
        by[kind][place[kind][n]].append(
            Number(
                log_sigma_grad * scale,
                (lost * sigma * abs(e) + abs(dq)) * scale,
                (1 + 1 / sigma) * (1 + scale),
            )
        )
        if "prior_loc" in at:
            by["prior_loc"][place["prior_loc"][n]].append(
                Number(wp[row] * slope, abs(wp[row]) * off)
            )
            quadratic = slope * (value - m)
            by["prior_log_var"][place["prior_log_var"][n]].append(
                Number(
                    wp[row] * (quadratic - 1) / 2,
                    abs(wp[row]) * (off * (moved + abs(m)) + 1),
                )
            )
    for got, terms, what in zip(outputs, (z, log_q, log_p), ("z", "log q", "log p"), strict=True):
        assert_is(got, torch.Size(full if what == "z" else full[:-1]), terms, what, ROUNDINGS, acc)
    if case.mode in ("no_grad", "inference", "vmap"):
        return
    gz = torch.tensor([float(x) for x in w], dtype=case.dtype).view(full)
    gq, gp = (torch.tensor([float(x) for x in g], dtype=acc).view(full[:-1]) for g in (wq, wp))
    if case.mode == "vjp":
        _, pull = torch.func.vjp(
            lambda *xs: case.call(dict(zip(names, xs, strict=False))), *tensors.values()
        )
        grads = dict(zip(names, pull((gz, gq, gp)), strict=False))
    else:
        leaves = {n: x.detach().requires_grad_() for n, x in tensors.items()}
        out = case.call(leaves)
        found = torch.autograd.grad(out, list(leaves.values()), (gz, gq, gp))
        grads = dict(zip(names, found, strict=False))
    for name, grad in grads.items():
        what = f"gradient by {name}"
        assert_is(grad, tensors[name].shape, by[name], what, ROUNDINGS, acc)


def _check_laplace(case: Draw, tensors: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
    acc = torch.float64 if case.dtype == torch.float64 else torch.float32
    loc = tensors["loc"]
    zero = torch.zeros(loc.shape, dtype=acc)
    unit = {"loc": zero, "scale": torch.ones_like(zero)}
    noise = replace(case, mode=_twin_or_kernel(case)).call(unit)[0].double()
    (kind,) = (name for name in tensors if name != "loc")
    spread = tensors[kind].double()
    log_b = spread.log() if kind == "scale" else spread
    b, wide = log_b.exp(), loc.double()
    exact, moved = wide + b * noise, wide.abs() + b * noise.abs()
    log_q = -noise.abs() - log_b - math.log(2)
    lost = noise.abs() + log_b.abs() + 1
    if case.options["event_dims"]:
        log_q, lost = log_q.sum(-1), lost.expand_as(noise).sum(-1)
    roundings = (ROUNDINGS + loc.shape[-1]) * torch.finfo(acc).eps
    own = torch.finfo(case.dtype)
    off = roundings * moved + own.eps * exact.abs() + own.smallest_normal
    fits = moved < min(own.max, torch.finfo(acc).max) / 8
    z, got = outputs
    assert z.shape == exact.shape and got.shape == log_q.shape
    assert ((z.double() - exact).abs() <= off)[fits].all(), (z, exact)
    assert ((got.double() - log_q).abs() <= roundings * lost).all(), (got, log_q)


def _check_discrete(case: Draw, tensors: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> None:
    """The log-probability is that of the sample, and so is its gradient."""
    logits = tensors["logits"]
    z, log_q = outputs
    acc = torch.float64 if case.dtype == torch.float64 else torch.float32
    assert z.shape[0] == case.num_samples
    leaf = logits.detach().double().requires_grad_()
    if case.op == "bernoulli_sample":
        assert ((z == 0) | (z == 1)).all()
        wide, one = torch.broadcast_tensors(leaf, z.double())
        terms = -torch.nn.functional.binary_cross_entropy_with_logits(wide, one, reduction="none")
        events = case.options["event_dims"]
        lost = terms.detach().abs() + 1
        for _ in range(events):
            terms, lost = terms.sum(-1), lost.sum(-1)
    else:
        classes = logits.shape[-1]
        assert ((z >= 0) & (z < classes)).all() and z.dtype == torch.int64
        table = leaf.log_softmax(-1).expand(*z.shape, classes)
        terms = table.gather(-1, z[..., None])[..., 0]
        spread = leaf.detach().abs().amax(-1)
        lost = terms.detach().abs() + 1 + 2 * spread.expand(z.shape)
    allowed = (ROUNDINGS + logits.shape[-1]) * torch.finfo(acc).eps * lost
    assert log_q.dtype == acc and log_q.shape == terms.shape
    assert ((log_q.double() - terms.detach()).abs() <= allowed).all(), (log_q, terms)
    if case.mode in ("no_grad", "inference", "vjp", "vmap"):
        return
    ours = logits.detach().requires_grad_()
    (grad,) = torch.autograd.grad(case.call({"logits": ours})[1].sum(), ours)
    (exact,) = torch.autograd.grad(terms.sum(), leaf)
    # Each of K samples adds a difference of two numbers of at most 1.
    steps = (ROUNDINGS + 2 * case.num_samples) * case.num_samples
    allowed = steps * torch.finfo(acc).eps + torch.finfo(case.dtype).eps * exact.abs()
    spread = 1 + logits.detach().double().abs()
    if case.op == "categorical_sample":
        spread = 1 + logits.detach().double().abs().amax(-1, keepdim=True)
    assert ((grad.double() - exact).abs() <= allowed * spread).all(), (grad, exact)
