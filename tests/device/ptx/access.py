"""What PTX instructions of memory and control do, as C++: accesses, fences, branches, meetings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .instructions import Unsupported, rule
from .reader import BYTES, split

if TYPE_CHECKING:
    from .translate import Writer

CACHE = ("nc", "L1", "L2", "ca", "cg", "cs", "lu", "cv", "wb", "wt")
ORDER = ("weak", "relaxed", "acquire", "release", "acq_rel", "volatile", "sc")
SCOPE = ("cta", "cluster", "gpu", "sys", "gl")


def space_of(op: list[str]) -> str:
    allowed = ("global", "shared", "local", "param", "const")
    return next((part for part in op if part in allowed), "generic")


def checked(op: list[str], *allowed: str) -> None:
    for part in op[1:-1]:
        base = part.partition("::")[0]
        if part not in allowed and base not in (*CACHE, *ORDER, *SCOPE, space_of(op)):
            raise Unsupported(f"{'.'.join(op)}: {part}")


def pointer(w: Writer, op: list[str], place: str, how: str, count: int = 1) -> str:
    size = BYTES[op[-1]] * count
    strong = any(part in ("volatile", "acquire", "relaxed") for part in op)
    how = "Access::strong_read" if how == "read" and strong else f"Access::{how}"
    return f"char* q = t.{space_of(op)}({w.address(place)}, {size}, {how});"


def elements(op: list[str], text: str) -> list[str]:
    return split(text[1:-1]) if any(part in ("v2", "v4", "v8") for part in op) else [text]


def order_before(op: list[str]) -> str:
    return "t.fence(); " if {"release", "acq_rel", "sc"} & set(op) else ""


def order_after(op: list[str]) -> str:
    return " t.fence();" if {"acquire", "acq_rel", "sc"} & set(op) else ""


@rule("ld", "ldu")
def load(w: Writer, op: list[str], a: list[str]) -> str:
    checked(op, "v2", "v4", "v8")
    kind, parts = op[-1], elements(op, a[0])
    size = BYTES[kind]
    reads = (
        w.assign(part, kind, f"*({w.type(kind)}*)(q + {i * size})")
        for i, part in enumerate(parts)
        if part != "_"
    )
    if len(parts) == 1:
        where = pointer(w, op, a[1], "read").removeprefix("char* q = ").removesuffix(";")
        return w.assign(a[0], kind, f"*({w.type(kind)}*){where}") + order_after(op)
    return f"{{ {pointer(w, op, a[1], 'read', len(parts))} {' '.join(reads)} }}" + order_after(op)


@rule("st")
def store(w: Writer, op: list[str], a: list[str]) -> str:
    checked(op, "v2", "v4", "v8")
    kind, parts = op[-1], elements(op, a[1])
    size = BYTES[kind]
    writes = (
        f"*({w.type(kind)}*)(q + {i * size}) = {w.value(part, kind)};"
        for i, part in enumerate(parts)
    )
    where = pointer(w, op, a[0], "write", len(parts))
    return f"{order_before(op)}{{ {where} {' '.join(writes)} }}"


@rule("atom", "red")
def atomic(w: Writer, op: list[str], a: list[str]) -> str:
    doings = ("add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas")
    checked(op, *doings)
    doing, kind = next(part for part in op if part in doings), op[-1]
    place, given = (a[1], a[2:]) if op[0] == "atom" else (a[0], a[1:])
    x = ", ".join(w.value(part, kind) for part in given)
    done = f"{w.type(kind)} old = *({w.type(kind)}*)q; *({w.type(kind)}*)q = {doing}_at(old, {x});"
    kept = w.assign(a[0], kind, "old") if op[0] == "atom" and a[0] != "_" else ""
    inside = f"{pointer(w, op, place, 'atomic')} {done} {kept}"
    return f"{order_before(op)}{{ {inside} }}{order_after(op)}"


@rule("membar", "fence")
def fence(w: Writer, op: list[str], a: list[str]) -> str:
    return "" if "cta" in op else "t.fence();"


# ---- control and what threads do together -------------------------------------------------------
@rule("bra")
def branch(w: Writer, op: list[str], a: list[str]) -> str:
    return f"goto {w.label(a[0])};"


@rule("brx")
def indirect(w: Writer, op: list[str], a: list[str]) -> str:
    targets = w.kernel.targets[a[1]]
    cases = " ".join(f"case {i}: goto {w.label(name)};" for i, name in enumerate(targets))
    return f"switch ({w.value(a[0], 'u32')}) {{ {cases} default: t.fail(t.no_target); }}"


@rule("ret", "exit")
def leave(w: Writer, op: list[str], a: list[str]) -> str:
    return "return t.leave();"


@rule("trap")
def trap(w: Writer, op: list[str], a: list[str]) -> str:
    return "t.fail(t.trapped);"


@rule("bar", "barrier")
def barrier(w: Writer, op: list[str], a: list[str]) -> str:
    if "warp" in op:
        return w.wait(f"t.together(Meeting::sync, 0, 0, 0, {w.value(a[0], 'b32')})")
    if "sync" not in op or a != ["0"]:
        raise Unsupported(f"{'.'.join(op)} {', '.join(a)}")
    return w.wait("t.at_barrier()")


@rule("shfl")
def shuffle(w: Writer, op: list[str], a: list[str]) -> str:
    if op[1] != "sync":
        raise Unsupported(".".join(op))
    to, _, flag = a[0].partition("|")
    numbers = ", ".join(w.value(part, "b32") for part in a[1:])
    then = w.assign(to, "b32", "t.result") if to != "_" else ""
    then += " " + w.assign(flag, "pred", "t.flag") if flag else ""
    return w.wait(f"t.together(Meeting::{op[2]}, {numbers})", then)


@rule("vote")
def vote(w: Writer, op: list[str], a: list[str]) -> str:
    if op[1] != "sync":
        raise Unsupported(".".join(op))
    kind = "b32" if op[2] == "ballot" else "pred"
    then = w.assign(a[0], kind, "t.result" if kind == "b32" else "t.flag")
    mine, mask = w.value(a[1], "pred"), w.value(a[2], "b32")
    return w.wait(f"t.together(Meeting::{op[2]}_of, {mine}, 0, 0, {mask})", then)


@rule("griddepcontrol")
def launches(w: Writer, op: list[str], a: list[str]) -> str:
    """Launches run one after another here; what is asked is whether a thread would have waited."""
    if op[1] not in ("wait", "launch_dependents"):
        raise Unsupported(".".join(op))
    return "t.wait_for_launch_before();" if op[1] == "wait" else ""


@rule("nanosleep", "prefetch", "discard", "applypriority")
def nothing(w: Writer, op: list[str], a: list[str]) -> str:
    return ""
