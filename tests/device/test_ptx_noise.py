"""The PTX of the kernels that draw: nothing in it may give other bits on another card.

A product or a sum without a rounding of its own may be contracted, and an approximation has the
last bits of the card. Neither may reach what is drawn; a log-density beside it may use one.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from cuda_build import ROOT, build
from cuda_reports import needs_nvcc
from ptx.reader import Instruction, Kernel, read, read_file

SOURCES = sorted(path.parent.name for path in ROOT.glob("csrc/*/*_cuda.cu"))
DRAWS = [name for name in SOURCES if name.endswith("sample")]
FLOATS = ("f16", "bf16", "f16x2", "bf16x2", "f32", "f64")
# The multipliers of Philox, as signed numbers of 32 bits or not.
PHILOX = {str(x) for word in (0xD2511F53, 0xCD9E8D57) for x in (word, word - 2**32)}


def contractible(line: Instruction) -> bool:
    name, rest, kind = line.opcode[0], line.opcode[1:-1], line.opcode[-1]
    return name in ("add", "sub", "mul", "mad") and kind in FLOATS and "rn" not in rest


def approximate(line: Instruction) -> bool:
    flushes = "ftz" in line.opcode
    return "approx" in line.opcode or "full" in line.opcode or flushes or line.opcode[0] == "tanh"


def draws(kernel: Kernel) -> bool:
    return any(PHILOX & set(line.operands) for line in kernel.instructions)


def registers(text: str) -> set[str]:
    return set(re.findall(r"%[a-z_]+\d+", text))


def written_and_read(line: Instruction) -> tuple[set[str], set[str]]:
    if line.opcode[0] in ("st", "red", "bra", "ret", "bar"):
        return set(), registers(line.text)
    first, *others = line.operands or ("",)
    # What is written under a guard, or by a shuffle, depends on it too.
    return registers(first), registers(" ".join([*others, line.guard]))


def spread(kernel: Kernel, seeds: dict[str, set], keeps) -> dict[str, set]:
    """What each register may come from, along all instructions that pass it on, in any order."""
    come_from = {name: set(marks) for name, marks in seeds.items()}
    moved = True
    while moved:
        moved = False
        for line in filter(keeps, kernel.instructions):
            written, read_ = written_and_read(line)
            marks = set().union(*(come_from.get(name, set()) for name in read_))
            for name in written:
                if not marks <= come_from.setdefault(name, set()):
                    come_from[name] |= marks
                    moved = True
    return come_from


def outputs(kernel: Kernel) -> dict[str, bool]:
    """The pointers among the parameters that are written to, and if an approximation gets there."""
    tainted = {
        name: {"approximation"}
        for line in filter(approximate, kernel.instructions)
        for name in written_and_read(line)[0]
    }
    values = spread(kernel, tainted, lambda line: True)
    # Values that meet through shared memory have all that any of them has.
    into_shared = [x for x in kernel.instructions if x.opcode[0] == "st" and "shared" in x.opcode]
    if any(values.get(name) for line in into_shared for name in registers(line.operands[1])):
        reads = [x for x in kernel.instructions if x.opcode[0] == "ld" and "shared" in x.opcode]
        tainted |= {name: {"approximation"} for x in reads for name in registers(x.operands[0])}
        values = spread(kernel, tainted, lambda line: True)
    parameters = {
        name: {line.operands[1]}
        for line in kernel.instructions
        if line.opcode == ("ld", "param", "u64")
        for name in registers(line.operands[0])
    }
    # An index is multiplied by the size of an element before it meets the pointer.
    pointers = spread(
        kernel, parameters, lambda line: line.opcode[0] in ("add", "mov", "cvta", "selp")
    )
    found: dict[str, bool] = {}
    for line in kernel.instructions:
        if line.opcode[:2] == ("st", "global"):
            dirty = any(values.get(name) for name in registers(line.operands[1]))
            for name in registers(line.operands[0]):
                for pointer in pointers.get(name, set()):
                    found[pointer] = found.get(pointer, False) or dirty
    return found


@pytest.fixture(scope="module")
def kernels() -> dict[str, list[Kernel]]:
    folder = build("ptx_texts") / "ptx"
    return {name: read_file(folder / f"{name}_cuda.ptx").kernels for name in SOURCES}


@needs_nvcc
@pytest.mark.native
@pytest.mark.slow
class TestTheKernels:
    def test_nothing_can_be_contracted(self, kernels: dict[str, list[Kernel]]):
        lines = [
            f"{kernel.name}: {line.text}"
            for kernel in itertools.chain(*kernels.values())
            for line in kernel.instructions
            if contractible(line)
        ]
        assert not lines

    @pytest.mark.parametrize("name", ["gaussian_rsample", "laplace_rsample"])
    def test_the_samplers_approximate_nothing(self, kernels: dict[str, list[Kernel]], name: str):
        assert any(draws(kernel) for kernel in kernels[name])
        for kernel in kernels[name]:
            assert not [line.text for line in kernel.instructions if approximate(line)]

    @pytest.mark.parametrize("name", DRAWS)
    def test_what_is_drawn_is_not_approximate(self, kernels: dict[str, list[Kernel]], name: str):
        drawing = [kernel for kernel in kernels[name] if draws(kernel)]
        assert len(drawing) >= 4
        for kernel in drawing:
            exact = [pointer for pointer, dirty in outputs(kernel).items() if not dirty]
            assert exact, kernel.name

    def test_the_weights_of_classes_are_not_approximate(self, kernels: dict[str, list[Kernel]]):
        prepare = [k for k in kernels["categorical_sample"] if "prepare" in k.name]
        assert len(prepare) == 4
        assert not any(approximate(line) for k in prepare for line in k.instructions)


# ---- the reading itself, on a few lines ---------------------------------------------------------
def lines(*body: str) -> Kernel:
    head = ".visible .entry one(.param .align 8 .b8 one_param_0[32]) {\n"
    return read(head + "\n".join(body) + "\nret;\n}").kernels[0]


@pytest.mark.parametrize(
    ("line", "can"),
    [
        ("mul.f32 %f1, %f2, %f3;", True),
        ("add.f64 %fd1, %fd2, %fd3;", True),
        ("mul.bf16x2 %r1, %r2, %r3;", True),
        ("mul.rn.f32 %f1, %f2, %f3;", False),
        ("fma.rn.f32 %f1, %f2, %f3, %f4;", False),
        ("add.s32 %r1, %r2, %r3;", False),
    ],
    ids=["product", "sum", "packed", "rounded", "fused", "integers"],
)
def test_what_can_be_contracted_is_seen(line: str, can: bool):
    assert [contractible(x) for x in lines(line).instructions] == [can, False]


@pytest.mark.parametrize("line", ["ex2.approx.ftz.f32", "rcp.approx.f32", "add.rn.ftz.f32"])
def test_what_is_approximate_is_seen(line: str):
    assert approximate(lines(f"{line} %f1, %f2;").instructions[0])


POINTERS = (
    "ld.param.u64 %rd1, [one_param_0];",
    "ld.param.u64 %rd2, [one_param_0+8];",
    "mul.wide.s32 %rd9, %r1, 4;",
    "add.s64 %rd3, %rd1, %rd9;",
    "cvta.to.global.u64 %rd4, %rd3;",
    "cvta.to.global.u64 %rd5, %rd2;",
)
STORE = "st.global.f32 [%rd4],"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{STORE} %f2; st.global.f32 [%rd5], %f1;", (False, True)),
        (f"mov.f32 %f3, %f1; {STORE} %f3;", (True,)),
        (f"setp.lt.f32 %p1, %f1, %f2; selp.f32 %f3, %f4, %f5, %p1; {STORE} %f3;", (True,)),
        (f"setp.lt.f32 %p1, %f1, %f2; @%p1 mov.f32 %f3, %f4; {STORE} %f3;", (True,)),
        (f"st.shared.f32 [%r1], %f1; ld.shared.f32 %f3, [%r2]; {STORE} %f3;", (True,)),
    ],
    ids=["beside", "moved", "chosen", "guarded", "through shared memory"],
)
def test_where_an_approximation_gets_to(body: str, expected: tuple[bool, ...]):
    kernel = lines(*POINTERS, "ex2.approx.ftz.f32 %f1, %f2;", body)
    found = outputs(kernel)
    places = ("[one_param_0]", "[one_param_0+8]")
    assert tuple(found[place] for place in places if place in found) == expected


def test_the_texts_are_where_the_kernels_are():
    assert {"gaussian_rsample", "laplace_rsample", "bernoulli_sample"} <= set(DRAWS)
    assert all((ROOT / f"csrc/{name}/{name}_cuda.cu").exists() for name in SOURCES)
    assert Path(ROOT / "tests/device/ptx/ptx.cmake").exists()
