"""The table of bounds: by name, the weigher of each. A row is all that a new bound needs."""

from __future__ import annotations

from fastvi._checks import check_choice
from fastvi.bounds.thermodynamic import Thermodynamic
from fastvi.bounds.weighers import Weigher

BOUNDS: dict[str, type[Weigher]] = {
    "thermodynamic": Thermodynamic,
}


def check_bound(where: str, name: object) -> type[Weigher]:
    """Return the weigher of a name, or refuse the name."""
    check_choice(where, "bound", name, BOUNDS)
    return BOUNDS[str(name)]
