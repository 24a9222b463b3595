"""A launch behind another waits for it before all else: in the machine code too.

What the PTX asks for in an order ptxas may put in another.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from cuda_build import build
from cuda_reports import NVCC, needs_nvcc
from ptx import sass
from ptx.reader import read_file

# Accesses of global memory, and what may lead elsewhere. Parameters are constants (LDC, ULDC).
EARLY = re.compile(
    r"\b(LD|LDG|LDGSTS|ST|STG|ATOM|ATOMG|RED|REDG|BRA|BRX|BRXU|JMP|JMX|JMXU|CALL|RET|EXIT)\b"
)


@needs_nvcc
@pytest.mark.native
@pytest.mark.slow
@pytest.mark.skipif(sass.nvdisasm() is None, reason="no nvdisasm: pip install nvidia-cuda-nvdisasm")
@pytest.mark.parametrize("architecture", [90, 100, 120])
def test_nothing_is_done_before_the_wait(architecture: int, tmp_path: Path):
    texts = sorted((build("ptx_texts") / "ptx").glob("*_cuda.ptx"))
    waiting, early = set(), {}
    for text in texts:
        if "griddepcontrol.wait" not in text.read_text():
            continue
        cubin = tmp_path / f"{text.stem}.cubin"
        command = [str(NVCC), f"-arch=sm_{architecture}", "-cubin", "-o", str(cubin), str(text)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        for name, blocks in sass.disassemble(str(sass.nvdisasm()), cubin).items():
            done_before = sass.before_the_wait(blocks)
            if done_before is not None:
                early[name] = [line for line in done_before if EARLY.search(line)]
        kernels = read_file(text).kernels
        waiting |= {k.name for k in kernels if k.has("griddepcontrol", "wait")}
    assert len(waiting) > 50
    assert set(early) == waiting
    assert not any(early.values())


@pytest.mark.parametrize(
    "line",
    ["LDG.E.CONSTANT R2, desc[UR4][R2.64]", "@!P0 STG.E desc[UR4][R2.64], R5", "@P0 EXIT"],
)
def test_what_would_be_early(line: str):
    assert EARLY.search(line)


def test_what_is_before_the_wait():
    def lines(*texts: str) -> list[sass.Line]:
        return [sass.Line(text, 0, "") for text in texts]

    blocks = [lines("LDC R1, c[0x0][0x37c]", "LDG.E R2"), lines("ACQBULK", "STG.E R2", "EXIT")]
    assert sass.before_the_wait(blocks) == ["LDC R1, c[0x0][0x37c]", "LDG.E R2"]
    assert sass.before_the_wait([lines("LDC R1, c[0x0][0x37c]", "EXIT")]) is None
    assert not EARLY.search("LDC R1, c[0x0][0x37c]") and not EARLY.search("ULDC.64 UR4")
