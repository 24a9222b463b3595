"""Who imports whom: no circles, and rooms that know only those on the floors below."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastvi"

# From the ground up. Rooms of one floor do not know each other; the package's own small files are
# below all of them, and `fastvi` itself, which hands out the public names, is above but for `app`.
FLOORS = (
    ("ops",),
    ("distributions",),
    ("bounds",),
    ("chunks",),
    ("losses", "objectives"),
    ("guides",),
    ("models",),
    ("callbacks",),
    ("svi",),
    ("diagnostics",),
    ("integrations",),
    ("app",),
)
# What knows no room but these few: the checks of arguments know the ops' checks.
BESIDE = "files"
HEIGHT = {room: number for number, floor in enumerate(FLOORS) for room in floor}

Imports = dict[str, dict[str, int]]


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read(root: Path, package: str) -> Imports:
    """By module: the modules of the package that it imports anywhere in the file, with the line."""
    files = {module_of(path, root): path for path in sorted((root / package).rglob("*.py"))}
    found: Imports = {}
    for module, path in files.items():
        found[module] = {}
        is_package = path.name == "__init__.py"
        for name, line in _named(ast.parse(path.read_text()), module, is_package, package):
            # A name may be that of a module, or of something in it; importing any of a room's
            # modules runs the room's __init__ too, and so do all that are above it.
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target != module:
                found[module].setdefault(target, line)
    return found


def _named(tree: ast.AST, module: str, is_package: bool, package: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")
                above = above[: len(above) - node.level + is_package]
                base = ".".join([*above, *([base] if base else [])])
            if base.partition(".")[0] == package:
                yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def circles(imports: Imports) -> list[list[str]]:
    """Modules that import each other, directly or not: what is strongly connected."""
    reach = {module: _reachable(module, imports) for module in imports}
    rings = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in imports
        if module in reach[module]
    }
    return sorted(map(list, rings))


def _reachable(start: str, imports: Imports) -> set[str]:
    seen: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports[module]
    return seen


def room_of(module: str) -> str | None:
    """The room; None for the package itself, and for its small files without a room."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and not parts[1].startswith("_") else None


def wrong_floors(imports: Imports) -> list[str]:
    wrong = []
    for module, targets in imports.items():
        room = room_of(module)
        for target, line in targets.items():
            other = room_of(target)
            if other is None or other == room or module == "fastvi":
                continue
            place = f"{module.replace('.', '/')}.py:{line} imports {target}"
            if room is None:
                # Below all rooms, but for the checks of arguments, which ask the two lowest.
                if HEIGHT.get(other, 99) > HEIGHT["bounds"]:
                    wrong.append(f"{place}: a file below all rooms")
            elif other == BESIDE:
                continue
            elif room == BESIDE:
                wrong.append(f"{place}: {BESIDE} knows no room")
            elif HEIGHT[other] >= HEIGHT[room]:
                wrong.append(f"{place}: {other} is not below {room}")
    return wrong


IMPORTS = read(ROOT, "fastvi")


def test_every_room_has_a_floor():
    rooms = {room for module in IMPORTS if (room := room_of(module)) is not None}
    assert rooms - {BESIDE} == set(HEIGHT)


def test_no_module_imports_itself_by_way_of_others():
    assert circles(IMPORTS) == []


def test_rooms_know_only_those_below():
    assert wrong_floors(IMPORTS) == []


def test_nothing_but_the_command_knows_the_app():
    assert [m for m, to in IMPORTS.items() for t in to if room_of(t) == "app" != room_of(m)] == []


# ---- the test itself ----------------------------------------------------------------------------
PLANTED = {
    "circle": ({"ops/a.py": "from fastvi.ops import b", "ops/b.py": "import fastvi.ops.a"}, 1, 0),
    "circle in a function": (
        {"ops/a.py": "def f():\n    from fastvi.ops.b import x", "ops/b.py": "from .a import f"},
        1, 0,
    ),
    "circle for types": (
        {
            "svi/a.py": "if TYPE_CHECKING:\n    from fastvi.svi.b import B",
            "svi/b.py": "from fastvi.svi.a import A",
        },
        1, 0,
    ),
    "circle of a package": (
        {"svi/__init__.py": "from .a import A", "svi/a.py": "from fastvi import svi"}, 1, 0,
    ),
    "upwards": ({"ops/a.py": "from fastvi.svi import b", "svi/b.py": ""}, 0, 1),
    "sideways": ({"losses/a.py": "import fastvi.objectives.b", "objectives/b.py": ""}, 0, 1),
    "app": ({"svi/a.py": "from fastvi.app import b", "app/b.py": ""}, 0, 1),
    "downwards": ({"svi/a.py": "from fastvi.ops import b", "ops/b.py": ""}, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted(tmp_path: Path, name: str):
    files, rings, floors = PLANTED[name]
    for place, text in {"__init__.py": "", **files}.items():
        path = tmp_path / "fastvi" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    imports = read(tmp_path, "fastvi")
    assert (len(circles(imports)), len(wrong_floors(imports))) == (rings, floors)
