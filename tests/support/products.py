"""Which library multiplies: a process that knows nothing yet, with a clock of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastvi._ext import C

Shape = tuple[str, str, int, int, int]
Timer = Callable[..., tuple[float, float]]


class Clock:
    """Says what either library takes, and which shapes it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Shape] = []
        self.times: Callable[[Shape], tuple[float, float]] = lambda shape: (1.0, 1.0)

    def __call__(self, *shape) -> tuple[float, float]:
        self.asked.append(shape)
        return self.times(shape)


class Products:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.clock = Clock()

    def restart(self, setting: str | None = None) -> None:
        """Begin anew, as another process would."""
        if setting is None:
            self.monkeypatch.delenv("FASTVI_PRODUCTS", raising=False)
        else:
            self.monkeypatch.setenv("FASTVI_PRODUCTS", setting)
        C.restart_products(self.clock)


@contextmanager
def own_products(cache: Path) -> Iterator[Products]:
    """Products by a measurement of the test's own, with an empty cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        own = Products(patch)
        own.restart()
        yield own
    C.restart_products()
