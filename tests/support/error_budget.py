"""The error budget: the one tolerance of the kernels.

Exact is the reference in float64. A kernel may be as far from it as a few roundings of its own
arithmetic can take it, and that is a number of the function, not of a machine: what plain PyTorch
makes of the same numbers does not enter, because on one machine it is exact by luck and on another
it is not.

With u the rounding unit of the type that the kernel computes in (2^-24 for float32, which also
bfloat16 and float16 are accumulated in), the budget of every single number y of an output or a
gradient is

    roundings u (s + |y| + size) + (the rounding of y to its own type)

where s says how far y moves if each argument of each term moves by one unit: by its own size, and
by 1 where it is a logarithm, because what enters a density is its exponential. Terms are moved
independently of each other, as roundings are, so s is the root of a sum of squares over all terms
of all sums: the magnitude of what is added up, not that of the result. An argument that serves many
terms is also moved as one number, as its rounded exponential is one number, and all numbers of an
argument are moved in one direction, as the error of a function may have one sign. s is measured:
the reference in float64 runs ``PROBES`` times at arguments, and with incoming gradients, that are
moved by random signs. ``size``, where an op states one, is that of numbers on the way which
cancel: the logarithm of a sum of weights is as large as that of their number.

``roundings`` counts the roundings that a term passes on its way, ROUNDINGS where an op does not say
otherwise. The order of the sums needs no more, because they are sums of at most 64 terms that meet
in float64 or with compensation.

Nothing is more exact than float64 here. There the reference, whose formulas lose as little as the
kernels' do, is granted the same budget once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

ROUNDINGS = 6.0
PROBES = 8

Leaves = dict[str, Tensor]
# From leaves to named outputs, or to outputs and gradients where no incoming gradients are given.
Run = Callable[[Leaves], dict[str, Tensor]]
# From the name and the numbers of an argument to the units that it is moved by.
Units = Callable[[str, Tensor], Tensor]


def as_leaves(tensors: Leaves, dtype: torch.dtype | None = None) -> Leaves:
    """New contiguous leaves with the same numbers."""
    return {
        name: torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
        .copy_(x.detach())
        .requires_grad_(x.requires_grad)
        for name, x in tensors.items()
    }


def units_by_name(name: str, x: Tensor) -> Tensor:
    """The size of a number, and 1 more where it is a logarithm."""
    return x.abs() + 1.0 if "log" in name else x.abs()


def with_gradients(run: Run, leaves: Leaves, upstream: Mapping[str, Tensor] | None) -> Leaves:
    """The outputs, and the gradients of the leaves where incoming gradients are given."""
    found = run(leaves)
    if upstream is None:
        return {name: x.detach() for name, x in found.items()}
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    outputs = [name for name in upstream if found[name].requires_grad]
    gradients = torch.autograd.grad(
        [found[name] for name in outputs],
        list(wanted.values()),
        [upstream[name].to(found[name]) for name in outputs],
        allow_unused=True,
        materialize_grads=True,
    )
    named = {f"gradient of {name}": x for name, x in zip(wanted, gradients, strict=True)}
    return {name: x.detach() for name, x in found.items()} | named


class _Probe:
    """How far each number of a run moves if its arguments move by a unit, as a root mean square."""

    def __init__(
        self, reference: Run, leaves: Leaves, upstream: Mapping[str, Tensor] | None, units: Units
    ) -> None:
        self.reference = reference
        self.leaves = leaves
        self.upstream = upstream
        self.units = units
        self.generator = torch.Generator().manual_seed(0)
        self.step = 2.0**-24

    def _moved(self, x: Tensor, unit: Tensor) -> Tensor:
        unit = torch.where(torch.isfinite(x), unit, 0.0).nan_to_num(0.0)
        signs = torch.randint(2, x.shape, generator=self.generator).to(x) * 2.0 - 1.0
        return x.detach() + torch.where(unit == 0, 0.0, self.step * unit * signs)

    def _run(
        self, shape: torch.Size | None, move: bool, in_one_direction: str | None = None
    ) -> Leaves:
        leaves, upstream = {}, self.upstream
        for name, x in self.leaves.items():
            at = x.detach()
            unit = self.units(name, at)
            if shape is not None:
                at, unit = at.expand(shape), unit.expand(shape)
            if name == in_one_direction:
                at = at + self.step * torch.where(torch.isfinite(at), unit, 0.0)
            else:
                at = self._moved(at, unit) if move else at.clone()
            leaves[name] = at.requires_grad_(x.requires_grad)
        if upstream is not None and move:
            upstream = {name: self._moved(x, x.abs()) for name, x in upstream.items()}
        found = with_gradients(self.reference, leaves, upstream)
        for name, x in self.leaves.items():
            if (of := f"gradient of {name}") in found:
                found[of] = found[of].sum_to_size(x.shape)
        return found

    def measure(self, terms_apart: bool) -> Leaves:
        """``terms_apart``: every argument may be broadcast to the shape of all of them."""
        shapes: list[torch.Size | None] = [None]
        if terms_apart:
            shapes.append(torch.broadcast_shapes(*(x.shape for x in self.leaves.values())))
        at = self._run(None, move=False)
        squares = {name: torch.zeros_like(x) for name, x in at.items()}

        def add(moved: Leaves, share: float) -> None:
            for name, x in moved.items():
                gap = ((x - at[name]) / self.step).nan_to_num(0.0, 0.0, 0.0)
                squares[name] += share * gap.square()

        for shape in shapes:
            for _ in range(PROBES):
                add(self._run(shape, move=True), 1.0 / PROBES)
        for name in self.leaves:
            add(self._run(None, move=False, in_one_direction=name), 1.0)
        return {name: x.sqrt() for name, x in squares.items()}


def _unit_of(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def budgets(
    reference: Run,
    tensors: Leaves,
    dtype: torch.dtype,
    upstream: Mapping[str, Tensor] | None = None,
    *,
    terms_apart: bool = False,
    units: Units = units_by_name,
    computes_in: torch.dtype | None = None,
    roundings: float = ROUNDINGS,
    sizes: Mapping[str, Tensor | float] | None = None,
) -> tuple[Leaves, Leaves]:
    """What is exact, and how far from it each number may be before it is rounded to its type."""
    leaves = as_leaves(tensors, torch.float64)
    if upstream is not None:
        upstream = {name: x.double() for name, x in upstream.items()}
    exact = with_gradients(reference, leaves, upstream)
    moves = _Probe(reference, leaves, upstream, units).measure(terms_apart)
    if computes_in is None:
        computes_in = torch.float64 if dtype == torch.float64 else torch.float32
    unit = _unit_of(computes_in) * (2.0 if dtype == torch.float64 else 1.0)
    tiny = torch.finfo(computes_in).tiny
    sizes = sizes or {}
    allowed = {
        name: roundings * (unit * (moves[name] + x.abs() + sizes.get(name, 0.0)) + tiny)
        for name, x in exact.items()
    }
    return exact, allowed


def assert_within_budget(
    ours: Run,
    reference: Run,
    tensors: Leaves,
    dtype: torch.dtype,
    upstream: Mapping[str, Tensor] | None = None,
    *,
    terms_apart: bool = False,
    units: Units = units_by_name,
    computes_in: torch.dtype | None = None,
    roundings: float = ROUNDINGS,
    sizes: Mapping[str, Tensor | float] | None = None,
) -> None:
    """Compare every output and gradient of ``ours`` with the reference's, number by number."""
    found = with_gradients(ours, tensors, upstream)
    plain = with_gradients(reference, as_leaves(tensors), upstream)
    exact, allowed = budgets(
        reference,
        tensors,
        dtype,
        upstream,
        terms_apart=terms_apart,
        units=units,
        computes_in=computes_in,
        roundings=roundings,
        sizes=sizes,
    )
    assert found.keys() == exact.keys()
    for name, x in found.items():
        true = exact[name]
        assert x.shape == true.shape, f"{name}: shape {x.shape}, reference {true.shape}"
        if dtype != torch.float64:
            assert x.dtype == plain[name].dtype, f"{name}: dtype {x.dtype}"
        rounded = true.to(x.dtype)
        finite = torch.isfinite(rounded)
        torch.testing.assert_close(
            x[~finite],
            rounded[~finite],
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: infinities and NaN differ\n{text}",
        )
        if not bool(finite.any()):
            continue
        own = _unit_of(x.dtype) * true.abs() + torch.finfo(x.dtype).smallest_normal * _unit_of(
            x.dtype
        )
        budget = (allowed[name] + own)[finite]
        error = (x.double() - true)[finite].abs()
        share = torch.where(error == 0, 0.0, error / budget)
        at = int(share.argmax())
        assert bool(share[at] <= 1.0), (
            f"{name}: error {error[at]:.3e}, budget {budget[at]:.3e} "
            f"({share[at]:.2f} times), at the number {true[finite][at]:.3e}, which a rounding of "
            f"all arguments moves by {allowed[name][finite][at] / roundings:.3e}"
        )
