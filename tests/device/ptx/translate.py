"""Turn PTX into C++: for each kernel one function that runs a CUDA thread to its next wait.

python -m ptx.translate kernels.ptx kernels.cpp [--without-barrier KERNEL:NUMBER]

A thread's registers are a struct, so that a call goes on where the last one stopped. Each stretch
of instructions without a branch counts how often it was entered. A barrier may be left out, to see
that its absence is found.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from . import access  # noqa: F401  (it adds its own rules)
from .instructions import RULES, Unsupported
from .reader import Instruction, Kernel, Label, Module, read_file

TYPES = {
    "pred": "bool",
    **{f"{kind}{bits}": f"uint{bits}_t" for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": f"int{bits}_t" for bits in (8, 16, 32, 64)},
    "f32": "float",
    "f64": "double",
}
SPECIAL = {
    "%tid.x": "t.thread",
    "%ctaid.x": "t.block",
    "%ntid.x": "t.threads",
    "%nctaid.x": "t.blocks",
    "%laneid": "(t.thread % 32)",
    "%warpid": "(t.thread / 32)",
    **{f"%{name}.{axis}": "0" for name in ("tid", "ctaid") for axis in "yz"},
    **{f"%{name}.{axis}": "1" for name in ("ntid", "nctaid") for axis in "yz"},
}
ENDS = ("bra", "brx", "ret", "exit")


class Writer:
    def __init__(self, kernel: Kernel, constants: dict[str, str]):
        self.kernel, self.constants = kernel, constants
        self.waits, self.blocks = 0, 0

    def type(self, kind: str) -> str:
        return TYPES[kind]

    # ---- operands -------------------------------------------------------------------------------
    def register(self, name: str) -> tuple[str, str] | None:
        """How C++ names it, and its type."""
        bare = name[1:]
        match = re.fullmatch(r"([a-zA-Z_]+?)(\d+)", bare)
        if bare in self.kernel.registers and bare not in self.kernel.counts:
            return bare, self.kernel.registers[bare]
        if match and match[1] in self.kernel.counts:
            return f"{match[1]}[{match[2]}]", self.kernel.registers[match[1]]
        return None

    def value(self, text: str, kind: str) -> str:
        text = text.strip()
        if kind == "pred":
            if text.startswith("!"):
                return "!" + self.value(text[1:], kind)
            if text in ("true", "false", "0", "1", "-1"):
                return "false" if text in ("false", "0") else "true"
        if text in SPECIAL:
            return f"({TYPES[kind]}){SPECIAL[text]}"
        if text.startswith("-%"):
            return f"(-{self.value(text[1:], kind)})"
        if text.startswith("%"):
            found = self.register(text)
            if found is None:
                raise Unsupported(f"register {text}")
            return self.read_as(*found, kind)
        return self.constant(text, kind)

    def read_as(self, name: str, held: str, kind: str) -> str:
        if held == "pred" or kind == "pred":
            if held != kind:
                raise Unsupported(f"{name} as {kind}")
            return name
        if held in ("f32", "f64"):
            if kind == held:
                return name
            return f"({TYPES[kind]})bits_of({name})"
        if kind in ("f32", "f64"):
            return f"as_{kind}({name})"
        return name if TYPES[held] == TYPES[kind] else f"({TYPES[kind]}){name}"

    def constant(self, text: str, kind: str) -> str:
        if match := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
            return f"as_f32(0x{match[1]}u)" if kind == "f32" else f"0x{match[1]}u"
        if match := re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text):
            return f"as_f64(0x{match[1]}ull)" if kind == "f64" else f"0x{match[1]}ull"
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return f"({TYPES[kind]}){int(text.rstrip('U'), 0) % 2**64}ull"
        name, _, offset = text.partition("+")
        return f"({TYPES[kind]})({self.symbol(name)} + {int(offset or 0)})"

    def symbol(self, name: str) -> str:
        kernel = self.kernel
        if name in kernel.parameters:
            return f"t.parameter_address({kernel.parameters[name]})"
        if name in kernel.shared:
            return f"{kernel.shared[name]}ull"
        if name in kernel.local:
            return f"{kernel.local[name]}ull"
        if name == kernel.dynamic_shared:
            return "t.dynamic_shared()"
        if name in self.constants:
            return f"(uint64_t){self.constants[name]}"
        raise Unsupported(f"symbol {name}")

    def values(self, texts: list[str], kind: str) -> str:
        return ", ".join(self.value(text, kind) for text in texts)

    def address(self, text: str) -> str:
        match = re.fullmatch(r"\[\s*([^+\s]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        if not match:
            raise Unsupported(f"address {text}")
        offset = int(match[2] or 0)
        return self.value(match[1], "u64") + (f" + ({offset})" if offset else "")

    def assign(self, to: str, kind: str, expression: str) -> str:
        found = self.register(to)
        if found is None:
            raise Unsupported(f"register {to}")
        name, held = found
        if held in ("f32", "f64"):
            if kind != held:
                expression = f"as_{held}({expression})"
        elif kind in ("f32", "f64"):
            expression = f"bits_of({expression})"
        return f"{name} = {expression};"

    def label(self, name: str) -> str:
        return "L" + re.sub(r"\W", "_", name)

    def wait(self, call: str, then: str = "") -> str:
        """Leave the function; the next call goes on behind this."""
        self.waits += 1
        return f"{call}; t.place = {self.waits}; return; case {self.waits}:; {then}"

    # ---- a kernel -------------------------------------------------------------------------------
    def line(self, instruction: Instruction) -> str:
        opcode = list(instruction.opcode)
        if opcode[0] not in RULES:
            raise Unsupported(".".join(opcode))
        done = RULES[opcode[0]](self, opcode, list(instruction.operands))
        if not instruction.guard:
            return done
        if "case " in done and opcode[0] != "brx":
            raise Unsupported(f"a wait under a predicate: {instruction.text}")
        guard = self.value(instruction.guard, "pred")
        return f"if ({'!' if instruction.negated else ''}{guard}) {{ {done} }}"

    def body(self, leave_out: Callable[[Instruction], bool]) -> tuple[list[str], list[int]]:
        """The lines, and the number of instructions of each stretch without a branch."""
        lines, lengths = [], []
        open_stretch = False
        for part in self.kernel.body:
            if isinstance(part, Label):
                lines.append(f"{self.label(part.name)}:;")
                open_stretch = False
                continue
            if not open_stretch:
                lines.append(f"++n[{len(lengths)}];")
                lengths.append(0)
                open_stretch = True
            lengths[-1] += 1
            if not leave_out(part):
                try:
                    lines.append(self.line(part))
                except (Unsupported, KeyError, StopIteration) as error:
                    raise Unsupported(f"{self.kernel.name}: {part.text}: {error}") from error
            if part.opcode[0] in ENDS:
                open_stretch = False
        return lines, lengths

    def declared(self, family: str) -> str:
        count = self.kernel.counts.get(family)
        return family if count is None else f"{family}[{count}]"

    def function(self, name: str, leave_out: Callable[[Instruction], bool]) -> str:
        kernel = self.kernel
        lines, lengths = self.body(leave_out)
        fields = [
            f"{TYPES[kind]} {family}"
            + (f"[{kernel.counts[family]}]" if family in kernel.counts else "")
            for family, kind in kernel.registers.items()
        ]
        unused = f"alignas(16) char local[{kernel.local_bytes or 1}]"
        state = "".join(f"  {text};\n" for text in [*fields, unused])
        aliases = "".join(f"  auto& {family} = s.{family};\n" for family in kernel.registers)
        count = max(1, len(lengths))
        written = ", ".join(map(str, lengths)) or "0"
        return (
            f"struct {name}_State {{\n{state}}};\n"
            f"static void {name}(Thread& t) {{\n"
            f"  auto& s = *({name}_State*)t.state;\n  uint32_t* n = t.visits;\n"
            f"  t.local_memory = s.local;\n{aliases}"
            "  switch (t.place) { case 0:;\n" + "\n".join(lines) + "\n  }\n  t.leave();\n}\n"
            f"static const uint32_t {name}_lengths[{count}] = {{{written}}};\n"
            f'static const Kernel {name}_kernel("{kernel.name}", {name}, sizeof({name}_State), '
            f"{kernel.parameter_bytes}, {kernel.shared_bytes}, {kernel.local_bytes}, "
            f"{kernel.most_threads}, {name}_lengths, {len(lengths)});\n"
        )


def barriers(kernel: Kernel) -> list[Instruction]:
    return [line for line in kernel.instructions if line.opcode[0] in ("bar", "barrier")]


def translate(module: Module, without_barrier: tuple[str, int] | None = None) -> str:
    parts = ['#include "thread.h"\nusing namespace ptx;\n']
    constants = {}
    for i, (name, (alignment, values)) in enumerate(module.constants.items()):
        constants[name] = f"table_{i}"
        numbers = ", ".join(map(str, values))
        parts.append(f"alignas({alignment}) static char table_{i}[] = {{{numbers}}};\n")
        parts.append(f"static const Table table_{i}_known(table_{i}, sizeof(table_{i}));\n")
    left_out: list[Instruction] = []
    for kernel in module.kernels:
        if without_barrier and without_barrier[0] in kernel.name:
            left_out += barriers(kernel)[without_barrier[1] : without_barrier[1] + 1]
    assert left_out or not without_barrier, f"no such barrier: {without_barrier}"

    def is_left_out(line: Instruction) -> bool:
        return any(line is one for one in left_out)

    for i, kernel in enumerate(module.kernels):
        parts.append(Writer(kernel, constants).function(f"kernel_{i}", is_left_out))
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--without-barrier", metavar="KERNEL:NUMBER")
    asked = parser.parse_args()
    out = None
    if asked.without_barrier:
        kernel, _, number = asked.without_barrier.rpartition(":")
        out = kernel, int(number)
    asked.target.write_text(translate(read_file(asked.source), out))


if __name__ == "__main__":
    main()
