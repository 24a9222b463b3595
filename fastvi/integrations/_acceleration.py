"""The base of the accelerations of packages: they nest, and the last one swaps back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType


class Swaps:
    """The names of a package that can be swapped, and how many accelerations use each."""

    def __init__(self, names: Iterable[str], swap: Callable[[str, bool], None]) -> None:
        self.names = tuple(names)
        self.swap = swap
        self._lock = threading.RLock()
        self._users = dict.fromkeys(self.names, 0)

    def chosen(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return these names, or all names for None; unknown names are refused."""
        for name in names:
            if name not in self.names:
                raise ValueError(
                    f"accelerate: expected names to be of {', '.join(self.names)}, got {name!r}"
                )
        return tuple(dict.fromkeys(names)) or self.names

    def take(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self._users[name] += 1
                if self._users[name] == 1:
                    self.swap(name, True)

    def give(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self._users[name] -= 1
                if self._users[name] == 0:
                    self.swap(name, False)


class Acceleration:
    """Keep an acceleration on until :meth:`close`, or until the end of the ``with`` block."""

    def __init__(self, swaps: Swaps, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._swaps = swaps
        self._open = True
        swaps.take(self.names)

    def close(self) -> None:
        """Swap back, unless another acceleration is still on. Closing twice does nothing."""
        if self._open:
            self._open = False
            self._swaps.give(self.names)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Acceleration of {', '.join(self.names)}, {'on' if self._open else 'closed'}>"
