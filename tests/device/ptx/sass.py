"""How often each machine instruction is issued, from what the PTX did and where it comes from.

Each PTX instruction is given a line of its own, ptxas keeps the lines, and nvdisasm shows them
beside the machine code.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from .reader import Kernel, Label, matching_brace, statements, without_comments
from .translate import ENDS

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\([^)]*\)[^{]*\{")
RARE = re.compile(r"slowpath|mediumpath|_full$")
FILE = '.file 1 "kernel"\n'


def with_lines(text: str, names: set[str]) -> str:
    """These kernels alone, where the line of an instruction is its number in them, from 1."""
    text = without_comments(text)
    parts, at = [], 0
    while match := ENTRY.search(text, at):
        end = matching_brace(text, match.end() - 1)
        head = text[at : match.start()]
        parts.append(head.replace(".address_size 64", ".address_size 64\n" + FILE, 1))
        at = end + 1
        if match[1] not in names:
            parts[-1] = re.sub(r"\.(visible|weak)\s*$", "", parts[-1])
            continue
        parts.append(match[0] + "\n")
        number = 0
        for kind, statement in statements(text[match.end() : end]):
            if kind == "label":
                parts.append(f"{statement}:\n")
            elif kind == "statement":
                if not statement.startswith("."):
                    number += 1
                    parts.append(f".loc 1 {number} 0\n")
                parts.append(f"{statement};\n")
            else:
                parts.append(f"{kind}\n")
        parts.append("}\n")
    return "".join([*parts, text[at:]])


def nvdisasm() -> str | None:
    """The one that is named, or on the path, or of the package ``nvidia-cuda-nvdisasm``."""
    found = os.environ.get("NVDISASM") or shutil.which("nvdisasm")
    package = importlib.util.find_spec("nvidia")
    places = (package and package.submodule_search_locations) or []
    own = (file for place in places for file in Path(place).glob("*/bin/nvdisasm"))
    return found or next(map(str, own), None)


@dataclass
class Line:
    """A machine instruction, and the number of the PTX instruction that it serves, or 0."""

    text: str
    origin: int
    routine: str  # of the compiler, such as a division, in which the instruction is


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, list[list[Line]]]:
    """For each kernel its blocks, at whose end a jump may be."""
    command = [nvdisasm, "--print-line-info", "--print-code", str(cubin)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[list[Line]]] = {}
    here: list[list[Line]] = []
    origin, starts, routine = 0, True, ""
    for line in out.splitlines():
        if match := re.match(r"\s*\.text\.([\w$]+):", line):
            here = found.setdefault(match[1], [])
            origin, starts, routine = 0, True, ""
        elif match := re.search(r'//## File "[^"]*", line (\d+)', line):
            origin = int(match[1])
        elif match := re.match(r"\s*(\$[\w$]+|\.L\w*):", line):
            starts = True
            routine = match[1] if match[1].startswith("$") else routine
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            if starts:
                here.append([])
            here[-1].append(Line(match[1], origin, routine))
            starts = bool(re.search(r"\b(BRA|EXIT|RET|CALL|BRX|JMP)\b", match[1]))
    return found


def stretches(kernel: Kernel) -> list[int]:
    """The stretch without a branch in which each PTX instruction is."""
    numbers, number, is_open = [], -1, False
    for part in kernel.body:
        if isinstance(part, Label):
            is_open = False
            continue
        number += not is_open
        is_open = part.opcode[0] not in ENDS
        numbers.append(number)
    return numbers


def issued(blocks: list[list[Line]], kernel: Kernel, visits: list[int], threads: int) -> int:
    """Machine instructions that all lanes together were given, switched off or not.

    All instructions of a block are issued as often as most of them were in the PTX: the compiler
    moves a few from block to block. A routine runs as often as it is called; that for the rare
    operands of a float division or root, such as subnormal ones, is not.
    """
    of = stretches(kernel)
    blocks = blocks[: len(blocks) - sum(1 for _ in takewhile(is_padding, reversed(blocks)))]

    def often(block: list[Line]) -> int:
        times = Counter(visits[of[x.origin - 1]] if x.origin else threads for x in block)
        return max(times.items(), key=lambda item: (item[1], item[0]))[0]

    total, calls = 0, Counter[str]()
    for block in blocks:
        called = re.search(r"\bCALL\S*\s.*?\((\$[\w$]+)\)", block[-1].text)
        if block[0].routine or (called and RARE.search(called[1])):
            continue
        total += often(block) * len(block)
        if called:
            calls[called[1]] += often(block)
    for block in blocks:
        if block[0].routine:
            total += calls[block[0].routine] * len(block)
    return total


def before_the_wait(blocks: list[list[Line]]) -> list[str] | None:
    """What a kernel does before it waits for the launch before it, if it waits at all."""
    texts = [line.text for block in blocks for line in block]
    waits = (i for i, text in enumerate(texts) if re.search(r"\bACQBULK\b", text))
    first = next(waits, None)
    return None if first is None else texts[:first]


def is_padding(block: list[Line]) -> bool:
    """What fills the end of a kernel: a jump, and instructions that do nothing."""
    texts = [line.text for line in block]
    return all(text.startswith("NOP") for text in texts) or (
        len(texts) == 1 and texts[0].startswith("BRA")
    )
