"""Of many like values of a parameter the quick tests take some, and the slow ones the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def quick_in(values: Mapping[str, Any] | Iterable[str], *quick: str) -> list[Any]:
    """Test parameters with ids. A mapping gives its values, the names of ``quick`` are its keys.

    A tuple is the values of several arguments.
    """
    named = dict(values) if isinstance(values, Mapping) else {name: name for name in values}
    assert quick and named.keys() >= set(quick), f"expected {quick} among {list(named)}"
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            id=name,
            marks=() if name in quick else pytest.mark.slow,
        )
        for name, value in named.items()
    ]
