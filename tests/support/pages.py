"""Pages of docs/ that are made from the code: run this file to write them anew."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import families  # noqa: E402
from faces import FACES, Cell, cells, refusal  # noqa: E402

# Where a name is imported from; what stands in an earlier place is not listed in a later one.
PLACES = {
    "fastvi": "Losses, models, inference and diagnosis",
    "fastvi.callbacks": "Callbacks of a run, in `SVI.fit` and `fastvi train`",
    "fastvi.objectives": "Bounds of any latents, and functions of log-weights",
    "fastvi.guides": "Families of posteriors",
    "fastvi.distributions": "torch's distributions, evaluated by the ops",
    "fastvi.ops": "The fused ops",
    "fastvi.integrations.pyro": "Pyro (extra `pyro`)",
    "fastvi.integrations.lightning": "Lightning (extra `lightning`)",
}


def names() -> str:
    """Every public name once, with the first line of its docstring."""
    lines = [
        "# Names",
        "",
        "Every public name, and what it does in one line. `help(name)` says more: the formula, the",
        "shapes, the errors and an example.",
    ]
    seen: set[int] = set()
    for place, title in PLACES.items():
        module = importlib.import_module(place)
        rows = []
        for name in sorted(public(module), key=str.lower):
            value = getattr(module, name)
            if isinstance(value, ModuleType | str) or id(value) in seen:
                continue
            seen.add(id(value))
            rows.append(f"| `{name}` | {first_line(value)} |")
        lines += ["", f"## `{place}`", "", f"{title}.", "", "| name | |", "|---|---|", *rows]
    return "\n".join(lines) + "\n"


def faces() -> str:
    """Which bound and estimator each face takes, whole, in chunks and shared by a group."""
    table: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in cells():
        row = table.setdefault((cell.bound, cell.estimator or ""), {})
        row.setdefault(cell.face, []).append(cell)
    notes: list[str] = []
    lines = [
        "# Faces, bounds, estimators",
        "",
        "Every way to train takes every bound. A cell says what of it is there: all samples at",
        "once (whole), `chunk_size` samples at a time (chunks), samples shared by the processes",
        "of a `group` (group); `all` stands for the three. In each, value and gradient are those",
        "of all samples at once. A number stands for the words below, with which it is refused.",
        "",
        f"| bound | estimator | {' | '.join(f'`{face}`' for face in FACES)} |",
        "|---|---|" + "---|" * len(FACES),
    ]
    for (bound, estimator), row in table.items():
        entries = [_entry(row[face], notes) for face in FACES]
        shown = f"`{estimator}`" if estimator else ""
        lines.append(f"| {bound} | {shown} | {' | '.join(entries)} |")
    lines += ["", *(f"{number}. {words}" for number, words in enumerate(notes, 1))]
    # What a regular expression leaves open.
    lines = [line.replace(".*", " ... ") for line in lines]
    return "\n".join(lines) + "\n"


def _entry(cells: list[Cell], notes: list[str]) -> str:
    works = [cell.option for cell in cells if refusal(cell) is None]
    if len(works) == len(cells):
        return "all"
    refused = {refusal(cell) for cell in cells} - {None}
    for words in sorted(map(str, refused)):
        if words not in notes:
            notes.append(words)
    numbers = ", ".join(str(notes.index(words) + 1) for words in sorted(map(str, refused)))
    return ", ".join([*works, numbers])


def public(module: ModuleType) -> list[str]:
    """What a module hands out: its ``__all__``, or the classes and functions that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def first_line(value: object) -> str:
    line = (inspect.getdoc(value) or "").strip().splitlines()[0]
    line = re.sub(r":math:`([^`]*)`", r"$\1$", line)
    line = re.sub(r":\w+:`~?(?:fastvi\.)?([^`]*)`", r"`\1`", line)
    return line.replace("``", "`").replace("|", r"\|")


PAGES = {"names.md": names, "faces.md": faces, "families.md": families.page}


if __name__ == "__main__":
    for page, text in PAGES.items():
        (ROOT / "docs" / page).write_text(text())
        sys.stdout.write(f"docs/{page}\n")
