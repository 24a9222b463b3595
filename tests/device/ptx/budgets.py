"""The counted tables of ``docs/cuda_budgets.md``: python -m ptx.budgets writes them anew.

What each kernel executes is counted by the machine, at the shapes of ``work.py``. ptxas says what
it takes of a multiprocessor, and nvdisasm, if there is one, which machine instruction serves what.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import sass
from .reader import read_file

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "cuda_budgets.md"
BEGIN, END = "<!-- counted -->\n", "<!-- end of what is counted -->\n"
WARP, WARPS, REGISTERS, SHARED = 32, 64, 65536, 228 * 1024  # of a multiprocessor of sm_90
THREADS = 256


@dataclass(frozen=True)
class Row:
    work: str
    way: str
    kernel: str
    blocks: int
    ptx: float  # instructions an element
    machine: float | None
    registers: int
    shared: int

    @property
    def resident(self) -> int:
        """The blocks that a multiprocessor holds at once."""
        warps = THREADS // WARP
        of_registers = REGISTERS // (-(-self.registers * WARP // 256) * 256 * warps)
        return min(WARPS // warps, of_registers, SHARED // (self.shared + 1024))


def counted(extension: Path, folder: Path) -> list[dict]:
    paths = os.pathsep.join([str(ROOT / "tests" / "device"), str(ROOT)])
    environment = os.environ | {
        "FASTVI_EXTENSION": str(extension),
        "PYTHONPATH": os.pathsep.join([paths, os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-m", "ptx.work", str(folder)], env=environment, check=True)
    return json.loads((folder / "rows.json").read_text())


def compiled(texts: list[Path], names: set[str], folder: Path, nvcc: str) -> dict[str, dict]:
    """Of each named kernel: registers, shared memory, its PTX, and its machine code."""
    disassembler = sass.nvdisasm()
    found: dict[str, dict] = {}
    for text in texts:
        kernels = {k.name: k for k in read_file(text).kernels if k.name in names}
        if not kernels:
            continue
        source, cubin = folder / text.name, folder / f"{text.stem}.cubin"
        source.write_text(sass.with_lines(text.read_text(), set(kernels)))
        ptxas = [nvcc, "-arch=sm_90", "-cubin", "--generate-line-info", "-Xptxas=-v"]
        done = subprocess.run([*ptxas, "-o", cubin, source], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        code = sass.disassemble(disassembler, cubin) if disassembler else {}
        used = re.finditer(
            r"entry function '(\w+)'.*?Used (\d+) registers(?:.*?(\d+) bytes smem)?",
            done.stderr.replace("\n", " ").replace("ptxas info    : Compiling", "\n"),
        )
        for match in used:
            found[match[1]] = {
                "registers": int(match[2]),
                "shared": int(match[3] or 0),
                "kernel": kernels[match[1]],
                "code": code.get(match[1]),
            }
    return found


def short(name: str) -> str:
    whole = subprocess.run(["c++filt", name], capture_output=True, text=True).stdout
    whole = re.sub(r"\(anonymous namespace\)::|fastvi::|isa_baseline::|^void ", "", whole.strip())
    return whole.partition("<")[0]


def rows(extension: Path, texts: list[Path], folder: Path, nvcc: str) -> list[Row]:
    all_counted = counted(extension, folder)
    known = compiled(texts, {row["kernel"] for row in all_counted}, folder, nvcc)
    result = []
    for row in all_counted:
        what, machine = known[row["kernel"]], None
        if what["code"] is not None:
            issued = sass.issued(what["code"], what["kernel"], row["visits"], row["threads"])
            machine = issued / row["elements"]
        result.append(
            Row(
                row["work"],
                row["way"],
                short(row["kernel"]),
                row["blocks"],
                row["issued"] / row["elements"],
                machine,
                what["registers"],
                what["shared"],
            )
        )
    return result


def number(x: float | None) -> str:
    return "" if x is None else f"{x:.1f}" if x < 10 else f"{x:.0f}"


def line(row: Row) -> str:
    cells = [
        row.work,
        row.way,
        f"`{row.kernel}`",
        number(row.machine),
        number(row.ptx),
        str(row.blocks),
        str(row.registers),
        str(row.shared) if row.shared else "-",
        str(row.resident),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "work, float32",
    "",
    "kernel",
    "machine instructions",
    "of PTX",
    "blocks",
    "registers",
    "shared, bytes",
    "blocks at once",
)


def table(found: list[Row]) -> str:
    head = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    return "\n".join([*head, *map(line, found)]) + "\n"


def of_page(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def with_table(text: str, new: str) -> str:
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + new + END + rest.partition(END)[2]


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from cuda_build import build
    from cuda_reports import NVCC

    assert NVCC, "nvcc is needed"
    assert sass.nvdisasm(), "nvdisasm is needed: it is on the package index as nvidia-cuda-nvdisasm"
    folder = build("_C_ptx") / "ptx"
    (extension,) = folder.glob("_C*.so")
    with tempfile.TemporaryDirectory() as there:
        found = rows(extension, sorted(folder.glob("*_cuda.ptx")), Path(there), NVCC)
    PAGE.write_text(with_table(PAGE.read_text(), table(found)))


if __name__ == "__main__":
    main()
