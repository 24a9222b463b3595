"""``docs/cuda_budgets.md`` says what the kernels do today: counted again, and compared.

What takes nvdisasm is compared where there is one; all else wherever nvcc is of the same release.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from cuda_build import build
from cuda_reports import NVCC, needs_nvcc
from ptx import budgets, sass
from ptx.reader import read


@needs_nvcc
@pytest.mark.native
@pytest.mark.slow
def test_the_page_is_what_is_counted(tmp_path: Path):
    text = budgets.PAGE.read_text()
    release = re.search(r"ptxas of nvcc (\d+\.\d+)", text)
    version = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True).stdout
    if f"release {release[1]}" not in version:
        pytest.skip(f"the page is of nvcc {release[1]}")
    folder = build("_C_ptx") / "ptx"
    (extension,) = folder.glob("_C*.so")
    found = budgets.rows(extension, sorted(folder.glob("*_cuda.ptx")), tmp_path, NVCC)
    assert len(found) > 40
    if sass.nvdisasm():
        assert budgets.table(found) == budgets.of_page(text)
    else:
        assert budgets.table(found) == without_machine_code(budgets.of_page(text))


def without_machine_code(table: str) -> str:
    lines = table.splitlines(keepends=True)
    rows = [line.split("|") for line in lines[2:]]
    return "".join(lines[:2] + ["|".join([*cells[:4], "  ", *cells[5:]]) for cells in rows])


ROW = budgets.Row("work", "forward", "kernel", 4, 30.2, 3.25, 72, 32)


def test_a_row():
    assert budgets.line(ROW) == "| work | forward | `kernel` | 3.2 | 30 | 4 | 72 | 32 | 3 |"
    bare = dataclasses.replace(ROW, machine=None)
    assert budgets.table([bare]) == without_machine_code(budgets.table([ROW]))


@pytest.mark.parametrize(
    ("registers", "shared", "blocks"),
    [(32, 0, 8), (33, 0, 6), (64, 0, 4), (72, 0, 3), (255, 0, 1), (32, 48 * 1024, 4)],
    ids=["full", "one more", "half", "packs", "most", "shared"],
)
def test_the_blocks_that_a_multiprocessor_holds(registers: int, shared: int, blocks: int):
    assert dataclasses.replace(ROW, registers=registers, shared=shared).resident == blocks


TEXT = """
.version 9.0
.target sm_90
.address_size 64
.visible .entry one(.param .u64 one_param_0) {
.reg .pred %p<2>;
mov.u32 %r1, 1;
$again:
{ .reg .u64 p; mul.wide.u32 p, %r1, %r1; }
@%p1 bra $again;
ret;
}
.visible .entry other() { ret; }
"""


def test_lines_are_the_numbers_of_instructions():
    text = sass.with_lines(TEXT, {"one"})
    lines = text.splitlines()
    after = {lines[i].split()[2]: lines[i + 1] for i in range(len(lines) - 1) if ".loc" in lines[i]}
    assert after == {
        "1": "mov.u32 %r1, 1;",
        "2": "mul.wide.u32 p, %r1, %r1;",
        "3": "@%p1 bra $again;",
        "4": "ret;",
    }
    assert [kernel.name for kernel in read(text).kernels] == ["one"]


def block(*origins: int, last: str = "FADD R1", routine: str = "") -> list[sass.Line]:
    texts = ["FADD R0"] * (len(origins) - 1) + [last]
    return [sass.Line(*pair, routine) for pair in zip(texts, origins, strict=True)]


def test_what_is_issued():
    kernel = read(TEXT).kernels[0]
    visits = [32, 320, 32]  # the first instruction, the loop, and what is behind it
    loop = block(2, 2, 3, 1)  # one was moved here from before
    call = block(1, last="CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)")
    rare = block(2, last="CALL.REL.NOINC `($__internal_1_$__cuda_sm20_rcp_rn_f32_slowpath)")
    padding = [*block(4, last="BRA `(.L_x_9)"), *block(4, last="NOP")]
    division = block(4, 4, 4, routine="$__internal_0_$__cuda_sm20_div_s64")
    slow = block(4, 4, routine="$__internal_1_$__cuda_sm20_rcp_rn_f32_slowpath")
    blocks = [block(0), loop, call, rare, block(4), division, slow, padding[:1], padding[1:]]
    assert sass.issued(blocks, kernel, visits, 32) == 32 + 4 * 320 + 32 + 32 + 3 * 32
