"""Calls of the ops at stated shapes on the machine, one line of JSON for each kernel and call.

Run with FASTVI_EXTENSION naming the extension of ``ptx.cmake``: python -m ptx.work FOLDER
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastvi import ops

Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Work:
    """What a row of the page stands for: its name, the elements that it counts, the call."""

    name: str
    elements: int
    call: Call
    backward: bool = True


def ask(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype).uniform_(0.5, 1.5).requires_grad_()


def given(*shape: int) -> Tensor:
    return torch.empty(shape).uniform_(0.5, 1.5)


def densities() -> list[Work]:
    k, b, f = 50, 20, 784
    x, logits = given(b, f), ask(k, b, f)
    short = ask(k, b, f, dtype=torch.bfloat16)
    loc, log_var = ask(k, b, f), ask(k, b, f)
    own, wide, shared = ask(b, f), ask(b, f), ask(f)
    counts = torch.randint(0, 9, (b, f)).float()
    n = k * b * f
    at = f"K {k}, B {b}, F {f}"
    return [
        Work(f"`bernoulli_log_prob`, {at}", n, lambda: ops.bernoulli_log_prob(x, logits)),
        Work(f"the same, bfloat16 logits, {at}", n, lambda: ops.bernoulli_log_prob(x, short)),
        Work(
            f"`gaussian_log_prob`, loc and log_var of K, {at}",
            n,
            lambda: ops.gaussian_log_prob(x, loc, log_var=log_var),
        ),
        Work(
            f"`gaussian_log_prob`, a value of K, loc and log_var of all K, {at}",
            n,
            lambda: ops.gaussian_log_prob(loc, own, log_var=wide),
        ),
        Work(
            f"`gaussian_log_prob`, log_var of all rows, {at}",
            n,
            lambda: ops.gaussian_log_prob(x, loc, log_var=shared),
        ),
        Work(
            f"`laplace_log_prob`, log_scale of all rows, {at}",
            n,
            lambda: ops.laplace_log_prob(x, loc, log_scale=shared),
        ),
        Work(
            f"`poisson_log_prob`, log_rate, {at}",
            n,
            lambda: ops.poisson_log_prob(counts, log_rate=loc),
        ),
        Work(
            f"`negative_binomial_log_prob`, dispersion of all rows, {at}",
            n,
            lambda: ops.negative_binomial_log_prob(counts, loc, shared),
        ),
        Work(
            f"`zero_inflated_negative_binomial_log_prob`, the same, {at}",
            n,
            lambda: ops.zero_inflated_negative_binomial_log_prob(counts, loc, shared, logits),
        ),
        Work(f"`gaussian_kl`, B {b}, D {f}", b * f, lambda: ops.gaussian_kl(own, wide)),
        Work(
            f"`categorical_log_prob`, K {k}, B {b}, C 100",
            k * b * 100,
            lambda: ops.categorical_log_prob(torch.arange(b), logits[..., :100].contiguous()),
        ),
    ]


def reductions_and_draws() -> list[Work]:
    key = torch.tensor([3, 4])
    k, b, d = 1000, 64, 50
    loc, log_var = ask(b, d), ask(b, d)
    many, few, odd = ask(50_000, 64), ask(500, 20), ask(k, b)
    classes = ask(b, 10)
    at = f"K {k}, B {b}, D {d}"

    def normal() -> Tensor:
        z, log_q, log_p = ops.gaussian_rsample(loc, log_var=log_var, num_samples=k, key=key)
        return z.sum(-1) + log_q + log_p

    def laplace() -> Tensor:
        z, log_q = ops.laplace_rsample(loc, log_scale=log_var, num_samples=k, key=key)
        return z.sum(-1) + log_q

    return [
        Work("`iwlb`, K 50 000, B 64", many.numel(), lambda: ops.iwlb(many)),
        Work("`iwlb`, K 500, B 20", few.numel(), lambda: ops.iwlb(few)),
        Work(f"`leave_one_out`, K {k}, B {b}", odd.numel(), lambda: ops.leave_one_out(odd)),
        Work(f"`gaussian_rsample`, {at}", k * b * d, normal),
        Work(f"`laplace_rsample`, {at}", k * b * d, laplace),
        Work(
            f"`bernoulli_sample`, {at}",
            k * b * d,
            lambda: ops.bernoulli_sample(loc, k, key=key)[1],
            backward=False,
        ),
        Work(
            f"`categorical_sample`, K {k}, B {b}, C 10",
            k * b,
            lambda: ops.categorical_sample(classes, k, key=key)[1],
        ),
    ]


class Machine:
    def __init__(self, extension: str, folder: Path):
        self.library, self.file = ctypes.CDLL(extension), folder / "report"

    def counted(self, run: Callable[[], object]) -> tuple[object, list[dict]]:
        self.library.ptx_forget()
        result = run()
        assert self.library.ptx_report(str(self.file).encode()) == 0
        kernels = map(json.loads, self.file.read_text().splitlines())
        return result, [kernel for kernel in kernels if kernel["launches"]]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    machine = Machine(os.environ["FASTVI_EXTENSION"], folder)
    rows = []
    for work in [*densities(), *reductions_and_draws()]:
        out, kernels = machine.counted(work.call)
        rows += [
            {"work": work.name, "way": "forward", "elements": work.elements, **kernel}
            for kernel in kernels
        ]
        if work.backward:
            grad = torch.ones_like(out)
            _, kernels = machine.counted(lambda out=out, grad=grad: out.backward(grad))
            rows += [
                {"work": work.name, "way": "backward", "elements": work.elements, **kernel}
                for kernel in kernels
            ]
    (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
