"""What PTX instructions compute, as C++: a table of opcodes. What is not in it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .reader import BYTES, split

if TYPE_CHECKING:
    from .translate import Writer

Rule = Callable[["Writer", list[str], list[str]], str]
RULES: dict[str, Rule] = {}
REAL = ("f32", "f64")
HALF = ("f16", "bf16")
ROUNDINGS = ("rn", "rz", "rm", "rp")


class Unsupported(Exception):
    pass


def rule(*names: str) -> Callable[[Rule], Rule]:
    def add(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return add


def only(opcode: list[str], *allowed: str) -> None:
    """Refuse what would change the meaning without being asked about."""
    extra = [part for part in opcode[1:-1] if part not in allowed]
    if extra:
        raise Unsupported(f"{'.'.join(opcode)}: {extra[0]}")


def signed(kind: str) -> str:
    return "s" + kind[1:]


def unsigned(kind: str) -> str:
    return "u" + kind[1:]


# ---- arithmetic ---------------------------------------------------------------------------------
SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


@rule("add", "sub", "mul", "div", "fma", "sqrt", "rcp")
def rounded(w: Writer, op: list[str], a: list[str]) -> str:
    name, kind = op[0], op[-1]
    if kind in (*HALF, "f16x2", "bf16x2"):
        return halves(w, op, a)
    if kind not in REAL:
        return integer(w, op, a)
    if "approx" in op or "full" in op:
        return approximate(w, op, a)
    only(op, *ROUNDINGS, "ftz", "sat")
    how = next((part for part in op if part in ROUNDINGS), "rn")
    x = [w.value(part, kind) for part in a[1:]]
    if how != "rn":
        numbers = ", ".join(x)
        result = f"{name}_{kind}_{how}({numbers})"
    elif name in SIGNS:
        result = f"{x[0]} {SIGNS[name]} {x[1]}"
    elif name == "rcp":
        result = f"1 / {x[0]}"
    else:
        result = f"{name}_{kind}({', '.join(x)})"
    return w.assign(a[0], kind, outcome(op, result))


def outcome(op: list[str], result: str) -> str:
    if "ftz" in op and op[-1] == "f32":
        raise Unsupported(f"{'.'.join(op)}: subnormal numbers are to be kept")
    return f"saturated({result})" if "sat" in op else result


def approximate(w: Writer, op: list[str], a: list[str]) -> str:
    kind = op[-1]
    only(op, "approx", "ftz")
    x = ", ".join(w.value(part, kind) for part in a[1:])
    flush = "flushed" if "ftz" in op and kind == "f32" else ""
    return w.assign(a[0], kind, f"{flush}({op[0]}_approx_{kind}({x}))")


RULES |= dict.fromkeys(["ex2", "lg2", "sin", "cos", "tanh", "rsqrt"], approximate)


def halves(w: Writer, op: list[str], a: list[str]) -> str:
    """Two-byte numbers, one or a pair: computed in float32 and rounded once, or fused."""
    name, kind = op[0], op[-1]
    only(op, "rn", "NaN", "sat" if name == "no" else "rn")
    if name not in ("add", "sub", "mul", "fma", "min", "max", "neg", "abs"):
        raise Unsupported(".".join(op))
    name += "_nan" if "NaN" in op else ""
    words = "b32" if kind.endswith("x2") else "b16"
    x = ", ".join(w.value(part, words) for part in a[1:])
    return w.assign(a[0], words, f"{name}_{kind}({x})")


def integer(w: Writer, op: list[str], a: list[str]) -> str:
    name, kind = op[0], op[-1]
    only(op, "lo", "hi", "wide", "sat" if name == "no" else "lo")
    x = [w.value(part, kind) for part in a[1:]]
    if "wide" in op:
        wide = f"{kind[0]}{2 * int(kind[1:])}"
        return w.assign(a[0], wide, f"({w.type(wide)}){x[0]} * ({w.type(wide)}){x[1]}")
    if "hi" in op:
        return w.assign(a[0], kind, f"high_{kind}({x[0]}, {x[1]})")
    if name == "div":
        return w.assign(a[0], kind, f"quotient_{kind}({x[0]}, {x[1]})")
    if name not in SIGNS:
        raise Unsupported(".".join(op))
    word = w.type(unsigned(kind))
    return w.assign(a[0], kind, f"({word})(({word}){x[0]} {SIGNS[name]} ({word}){x[1]})")


@rule("mad")
def multiply_add(w: Writer, op: list[str], a: list[str]) -> str:
    kind = op[-1]
    if kind in REAL:
        raise Unsupported(".".join(op))
    only(op, "lo", "wide")
    to = f"{kind[0]}{2 * int(kind[1:])}" if "wide" in op else kind
    word = w.type(unsigned(to))
    x = f"({word})({w.type(to)}){w.value(a[1], kind)} * ({word})({w.type(to)}){w.value(a[2], kind)}"
    return w.assign(a[0], to, f"({word})({x} + ({word}){w.value(a[3], to)})")


@rule("rem")
def remainder(w: Writer, op: list[str], a: list[str]) -> str:
    only(op)
    return w.assign(a[0], op[-1], f"remainder_{op[-1]}({w.values(a[1:], op[-1])})")


@rule("min", "max")
def extreme(w: Writer, op: list[str], a: list[str]) -> str:
    name, kind = op[0], op[-1]
    if kind in (*HALF, "f16x2", "bf16x2"):
        return halves(w, op, a)
    if kind in REAL:
        only(op, "NaN")
        name += "_nan" if "NaN" in op else ""
        return w.assign(a[0], kind, f"{name}_{kind}({w.values(a[1:], kind)})")
    only(op)
    x, y = (w.value(part, kind) for part in a[1:])
    return w.assign(a[0], kind, f"{x} {'<' if name == 'min' else '>'} {y} ? {x} : {y}")


@rule("neg", "abs")
def sign(w: Writer, op: list[str], a: list[str]) -> str:
    name, kind = op[0], op[-1]
    if kind in (*HALF, "f16x2", "bf16x2"):
        return halves(w, op, a)
    only(op)
    x = w.value(a[1], kind)
    if kind in REAL:
        return w.assign(a[0], kind, f"-{x}" if name == "neg" else f"abs_{kind}({x})")
    negative = f"({w.type(kind)})(0 - ({w.type(unsigned(kind))}){x})"
    return w.assign(a[0], kind, negative if name == "neg" else f"{x} < 0 ? {negative} : {x}")


@rule("and", "or", "xor")
def bitwise(w: Writer, op: list[str], a: list[str]) -> str:
    mark = {"and": "&", "or": "|", "xor": "^"}[op[0]]
    x, y = (w.value(part, op[-1]) for part in a[1:])
    return w.assign(a[0], op[-1], f"{x} {mark} {y}")


@rule("not")
def inverted(w: Writer, op: list[str], a: list[str]) -> str:
    return w.assign(a[0], op[-1], ("!" if op[-1] == "pred" else "~") + w.value(a[1], op[-1]))


@rule("shl", "shr")
def shift(w: Writer, op: list[str], a: list[str]) -> str:
    kind = op[-1]
    x, n = w.value(a[1], kind), w.value(a[2], "u32")
    bits = 8 * BYTES[kind]
    word = w.type(kind)
    if op[0] == "shl":
        return w.assign(a[0], kind, f"{n} < {bits} ? ({word})({x} << {n}) : ({word})0")
    if kind[0] == "s":
        return w.assign(a[0], kind, f"({word})({x} >> ({n} < {bits} ? {n} : {bits - 1}))")
    return w.assign(a[0], kind, f"{n} < {bits} ? ({word})({x} >> {n}) : ({word})0")


@rule("shf")
def funnel(w: Writer, op: list[str], a: list[str]) -> str:
    only(op, "l", "r", "wrap", "clamp")
    limit = "31 &" if "wrap" in op else "at_most_32"
    n = f"({limit} ({w.value(a[3], 'u32')}))"
    both = f"((uint64_t){w.value(a[2], 'u32')} << 32 | {w.value(a[1], 'u32')})"
    shifted = f"({both} << {n}) >> 32" if "l" in op else f"{both} >> {n}"
    return w.assign(a[0], "b32", f"(uint32_t)({shifted})")


@rule("bfi", "bfe", "prmt", "lop3")
def bit_field(w: Writer, op: list[str], a: list[str]) -> str:
    kind = op[-1]
    only(op)
    if op[0] in ("bfi", "bfe"):
        fields = 2 if op[0] == "bfi" else 1
        x = w.values(a[1 : 1 + fields], kind) + ", " + w.values(a[1 + fields :], "u32")
    else:
        x = w.values(a[1:], "u32")
    return w.assign(a[0], kind, f"{op[0]}_{kind}({x})")


@rule("popc", "clz", "brev")
def count_bits(w: Writer, op: list[str], a: list[str]) -> str:
    to = op[-1] if op[0] == "brev" else "u32"
    return w.assign(a[0], to, f"{op[0]}_{op[-1]}({w.value(a[1], op[-1])})")


# ---- comparison and choice ----------------------------------------------------------------------
ORDERED = {"eq": "==", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
UNORDERED = {"ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
INTEGERS = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">=", "ne": "!="}


def comparison(how: str, x: str, y: str, real: bool) -> str:
    if how in ORDERED:
        return f"{x} {ORDERED[how]} {y}"
    if not real:
        return f"{x} {INTEGERS[how]} {y}"
    if how in UNORDERED:
        return f"!({x} {UNORDERED[how]} {y})"
    return {
        "ne": f"{x} < {y} || {x} > {y}",
        "neu": f"{x} != {y}",
        "equ": f"!({x} < {y} || {x} > {y})",
        "num": f"{x} == {x} && {y} == {y}",
        "nan": f"{x} != {x} || {y} != {y}",
    }[how]


@rule("setp")
def compare(w: Writer, op: list[str], a: list[str]) -> str:
    kind, how = op[-1], op[1]
    only(op, how, "and", "or", "xor")
    if kind in HALF:
        x, y = (f"{kind}_to_f32({w.value(part, 'b16')})" for part in a[1:3])
    else:
        x, y = (w.value(part, kind) for part in a[1:3])
    answer = comparison(how, x, y, kind in REAL or kind in HALF)
    joined = {"and": "&&", "or": "||", "xor": "!="}
    join = next((part for part in op[2:-1] if part in joined), None)
    if "|" in a[0]:
        raise Unsupported(f"{'.'.join(op)} with two results")
    if join:
        answer = f"({answer}) {joined[join]} {w.value(a[3], 'pred')}"
    return w.assign(a[0], "pred", answer)


@rule("selp")
def choose(w: Writer, op: list[str], a: list[str]) -> str:
    x, y = (w.value(part, op[-1]) for part in a[1:3])
    return w.assign(a[0], op[-1], f"{w.value(a[3], 'pred')} ? {x} : {y}")


# ---- moves and conversions ----------------------------------------------------------------------
@rule("mov")
def move(w: Writer, op: list[str], a: list[str]) -> str:
    kind = op[-1]
    if a[0].startswith("{"):
        parts = split(a[0][1:-1])
        bits = 8 * BYTES[kind] // len(parts)
        whole = f"uint64_t x = {w.value(a[1], f'b{8 * BYTES[kind]}')};"
        taken = (
            w.assign(part, f"b{bits}", f"({w.type(f'b{bits}')})(x >> {i * bits})")
            for i, part in enumerate(parts)
            if part != "_"
        )
        return f"{{ {whole} {' '.join(taken)} }}"
    if a[1].startswith("{"):
        parts = split(a[1][1:-1])
        bits, word = 8 * BYTES[kind] // len(parts), w.type(f"b{8 * BYTES[kind]}")
        joined = " | ".join(
            f"({word})(({word}){w.value(part, f'b{bits}')} << {i * bits})"
            for i, part in enumerate(parts)
        )
        return w.assign(a[0], f"b{8 * BYTES[kind]}", joined)
    return w.assign(a[0], kind, w.value(a[1], kind))


@rule("cvta")
def to_generic(w: Writer, op: list[str], a: list[str]) -> str:
    space = next(part for part in op if part in ("global", "shared", "local", "param", "const"))
    way = "to" if "to" in op else "from"
    x = w.value(a[1], "u64")
    if space in ("shared", "local"):
        x = f"t.{way}_generic_{space}({x})" if way == "to" else f"t.generic_{space}({x})"
    return w.assign(a[0], "u64", x)


@rule("cvt")
def convert(w: Writer, op: list[str], a: list[str]) -> str:
    to, source = op[-2], op[-1]
    flags = [part for part in op[1:-2] if part not in (to, source)]
    word = "b32" if to.endswith("x2") else "b16" if to in HALF else to
    if to.endswith("x2"):
        low, high = w.value(a[2], source), w.value(a[1], source)
        one = to.removesuffix("x2")
        if flags != ["rn"] or source != "f32":
            raise Unsupported(".".join(op))
        return w.assign(a[0], word, f"pair(f32_to_{one}({low}), f32_to_{one}({high}))")
    x = w.value(a[1], "b16" if source in HALF else source)
    if source in HALF or to in HALF:
        if (source in HALF) == (to in HALF) or flags not in ([], ["rn"]) or "f64" in op:
            raise Unsupported(".".join(op))
        if source in HALF and to != "f32" or to in HALF and source != "f32":
            raise Unsupported(".".join(op))
        return w.assign(a[0], word, f"{source}_to_{to}({x})")
    if to in REAL:
        if source in REAL and BYTES[to] >= BYTES[source]:
            integral = [part for part in flags if part in ("rni", "rzi", "rmi", "rpi")]
            if set(flags) - {"sat", *integral}:
                raise Unsupported(".".join(op))
            x = f"whole_{to}_{integral[0]}({x})" if integral else x
            return w.assign(a[0], to, f"saturated({x})" if "sat" in flags else f"({w.type(to)}){x}")
        if flags != ["rn"]:
            raise Unsupported(".".join(op))
        return w.assign(a[0], to, f"({w.type(to)}){x}")
    if source in REAL:
        if len(flags) != 1 or flags[0] not in ("rni", "rzi", "rmi", "rpi"):
            raise Unsupported(".".join(op))
        return w.assign(a[0], to, f"{source}_to_{to}(whole_{source}_{flags[0]}({x}))")
    if flags:
        raise Unsupported(".".join(op))
    return w.assign(a[0], to, f"({w.type(to)}){x}")
