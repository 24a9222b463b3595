"""The table of bounds: by name, the weigher of each. A row is all that a new bound needs."""

from __future__ import annotations

from fastvi.bounds.thermodynamic import Thermodynamic
from fastvi.bounds.weighers import Weigher

BOUNDS: dict[str, type[Weigher]] = {
    "thermodynamic": Thermodynamic,
}


def check_bound(where: str, name: object) -> type[Weigher]:
    """Return the weigher of a name, or refuse the name."""
    if not isinstance(name, str):
        raise TypeError(f"{where}: expected bound to be a str, got {type(name).__name__}")
    if name not in BOUNDS:
        names = ", ".join(map(repr, BOUNDS))
        raise ValueError(f"{where}: expected bound to be one of {names}, got {name!r}")
    return BOUNDS[name]
