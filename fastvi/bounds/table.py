"""The table of bounds: the weigher of each, by its name. A new bound needs only a row."""

from __future__ import annotations

from fastvi._checks import check_choice
from fastvi.bounds.thermodynamic import Thermodynamic
from fastvi.bounds.weighers import Weigher

BOUNDS: dict[str, type[Weigher]] = {
    "thermodynamic": Thermodynamic,
}


def check_bound(where: str, name: object) -> type[Weigher]:
    """Return the class of the weigher with this name, or refuse the name."""
    check_choice(where, "bound", name, BOUNDS)
    return BOUNDS[str(name)]
