"""Read the PTX that nvcc writes: kernels, parameters, shared memory, registers, statements."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

BYTES = {f"{kind}{8 * n}": n for kind in "bsu" for n in (1, 2, 4, 8)} | {
    "f16": 2,
    "bf16": 2,
    "f16x2": 4,
    "bf16x2": 4,
    "f32": 4,
    "f64": 8,
}


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str  # the predicate that switches it on, or nothing
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str, ...]


@dataclass
class Kernel:
    """One ``.entry``: everything between its braces, with names made unique."""

    name: str
    parameters: dict[str, int] = field(default_factory=dict)  # where each begins, in bytes
    parameter_bytes: int = 0
    most_threads: int = 1024
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    dynamic_shared: str = ""
    local: dict[str, int] = field(default_factory=dict)
    local_bytes: int = 0
    registers: dict[str, str] = field(default_factory=dict)  # name or family, and its type
    counts: dict[str, int] = field(default_factory=dict)  # of the families
    targets: dict[str, list[str]] = field(default_factory=dict)  # of indirect branches
    body: list[Label | Instruction] = field(default_factory=list)

    @property
    def instructions(self) -> list[Instruction]:
        return [line for line in self.body if isinstance(line, Instruction)]

    def has(self, *opcode: str) -> bool:
        return any(line.opcode == opcode for line in self.instructions)


@dataclass
class Module:
    kernels: list[Kernel]
    constants: dict[str, tuple[int, list[int]]]  # alignment and bytes of tables in global memory


def split(text: str) -> list[str]:
    """The operands, which braces and brackets may hold together."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def round_up(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


VARIABLE = re.compile(
    r"(?P<extern>\.extern\s+)?\.(?P<space>shared|local|param|global|const)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)"
    r"(?:\[(?P<count>\d*)\])?(?:\s*=\s*\{(?P<values>[^}]*)\})?"
)
REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+(.*)")
GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+(.*)", re.DOTALL)


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


def statements(body: str):
    """Yield "{", "}", ("label", name) and ("statement", text) in their order."""
    at = 0
    token = re.compile(r"\s*(?:([{}])|([$\w]+):(?!:)|((?:[^;{}]|\{[^{}]*\})+);)")
    while match := token.match(body, at):
        at = match.end()
        brace, label, text = match.groups()
        if brace:
            yield brace, ""
        elif label:
            yield "label", label
        else:
            yield "statement", " ".join(text.split())
    assert not body[at:].strip(), f"PTX that cannot be read: {body[at : at + 80]!r}"


class BodyReader:
    """Reads the statements of one kernel; a scope in braces has registers of its own."""

    def __init__(self, kernel: Kernel, outer_shared: dict[str, re.Match[str]]):
        self.kernel, self.outer, self.scopes = kernel, outer_shared, [{}]

    def rename(self, text: str) -> str:
        for scope in reversed(self.scopes):
            for name, unique in scope.items():
                text = re.sub(rf"(?<![\w%$.]){re.escape(name)}(?![\w$])", unique, text)
        return text

    def declare(self, kind: str, names: str) -> None:
        for name in split(names):
            family = re.fullmatch(r"%(\w+?)<(\d+)>", name)
            if family and len(self.scopes) == 1:
                self.kernel.registers[family[1]] = kind
                self.kernel.counts[family[1]] = int(family[2])
            else:
                assert not family, f"a family of registers in an inner scope: {name}"
                unique = f"%own{len(self.kernel.registers)}"
                self.scopes[-1][name] = unique
                self.kernel.registers[unique[1:]] = kind

    def place(self, match: re.Match[str]) -> None:
        kernel, name = self.kernel, match["name"]
        size = BYTES[match["type"]]
        alignment = int(match["align"] or size)
        if match["extern"]:
            kernel.dynamic_shared = name
            return
        count = int(match["count"]) if match["count"] else 1
        if match["space"] == "shared":
            kernel.shared[name] = round_up(kernel.shared_bytes, alignment)
            kernel.shared_bytes = kernel.shared[name] + size * count
        else:
            assert match["space"] == "local", match[0]
            kernel.local[name] = round_up(kernel.local_bytes, alignment)
            kernel.local_bytes = kernel.local[name] + size * count

    def read(self, body: str) -> None:
        for name, match in self.outer.items():
            if re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", body):
                self.place(match)
        label = ""
        for kind, text in statements(body):
            if kind == "{":
                self.scopes.append({})
            elif kind == "}":
                self.scopes.pop()
            elif kind == "label":
                label = text
                self.kernel.body.append(Label(text))
            else:
                self.statement(text, label)

    def statement(self, text: str, label: str) -> None:
        if text.startswith(".branchtargets"):
            self.kernel.targets[label] = split(text.partition(" ")[2])
        elif match := REGISTER.fullmatch(text):
            self.declare(*match.groups())
        elif match := VARIABLE.fullmatch(text):
            self.place(match)
        elif not text.startswith((".pragma", ".loc")):
            self.kernel.body.append(instruction(self.rename(text) if any(self.scopes) else text))


def instruction(text: str) -> Instruction:
    guard, negated, rest = "", False, text
    if match := GUARD.fullmatch(text):
        negated, guard, rest = match[1] == "!", match[2], match[3]
    opcode, _, operands = rest.partition(" ")
    return Instruction(text, guard, negated, tuple(opcode.split(".")), tuple(split(operands)))


def matching_brace(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, opening):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise AssertionError("PTX whose braces do not match")


def read(text: str) -> Module:
    text = without_comments(text)
    entry = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
    kernels, outside, at = [], [], 0
    while match := entry.search(text, at):
        outside.append(text[at : match.start()])
        end = matching_brace(text, match.end() - 1)
        kernels.append((match, text[match.end() : end]))
        at = end + 1
    outside.append(text[at:])
    around = "".join(outside)
    assert ".func" not in around, "a function of the device that is not inlined"
    declared = {m["name"]: m for m in VARIABLE.finditer(around)}
    outer = {name: m for name, m in declared.items() if m["space"] == "shared"}
    tables = {n: table(m) for n, m in declared.items() if m["space"] in ("global", "const")}
    return Module([kernel_of(*found, outer) for found in kernels], tables)


def table(match: re.Match[str]) -> tuple[int, list[int]]:
    size = BYTES[match["type"]]
    length = size * (int(match["count"]) if match["count"] else 1)
    given = [int(x, 0) for x in split(match["values"] or "")]
    values = b"".join((x % (1 << 8 * size)).to_bytes(size, "little") for x in given)
    return int(match["align"] or size), list(values.ljust(length, b"\0"))


def kernel_of(match: re.Match[str], body: str, outer: dict[str, re.Match[str]]) -> Kernel:
    kernel = Kernel(match[1])
    for parameter in split(match[2]):
        declared = VARIABLE.fullmatch(parameter)
        assert declared, f"a parameter that cannot be read: {parameter}"
        size = BYTES[declared["type"]]
        begin = round_up(kernel.parameter_bytes, int(declared["align"] or size))
        kernel.parameters[declared["name"]] = begin
        kernel.parameter_bytes = begin + size * (int(declared["count"]) if declared["count"] else 1)
    if limit := re.search(r"\.maxntid\s+(\d+)", match[3]):
        kernel.most_threads = int(limit[1])
    BodyReader(kernel, outer).read(body)
    return kernel


def read_file(path: Path) -> Module:
    return read(path.read_text())
