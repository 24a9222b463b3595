"""How the fuzz runs: the same examples each time in a minute, or new ones as long as asked.

``FASTVI_FUZZ_SECONDS=3600 pytest tests -k fuzz`` draws new examples for an hour, which the tests of
the process share evenly. A failure prints the example, and what ``@reproduce_failure`` needs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, given

SECONDS = float(os.environ.get("FASTVI_FUZZ_SECONDS", "0"))
SEED = int(os.environ.get("FASTVI_FUZZ_SEED", "0")) or time.time_ns() % 2**32
# The tests of all files that share the time.
TESTS = 16
_A_ROUND = 200


def options(examples: int, **change: Any) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        # A slow machine is no fault of the example's.
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.normal,
        **change,
    )


def fuzz(examples: int, **drawn: Any) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Run a check on so many drawn examples, or on new ones until its time is over."""

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        def one(**values: Any) -> None:
            check(**values)

        one.__name__ = one.__qualname__ = check.__name__
        fixed = options(examples, derandomize=True)(given(**drawn)(one))

        def run() -> None:
            if not SECONDS:
                fixed()
                return
            end = time.monotonic() + SECONDS / TESTS
            number = 0
            while number == 0 or time.monotonic() < end:
                print(f"FASTVI_FUZZ_SEED={SEED + number}")
                seeded = hypothesis.seed(SEED + number)(given(**drawn)(one))
                options(_A_ROUND)(seeded)()
                number += 1

        run.is_fuzz = True  # type: ignore[attr-defined]
        run.__name__, run.__doc__, run.__module__ = check.__name__, check.__doc__, check.__module__
        return run

    return decorate


def finds(check: Callable[..., None], examples: int, **drawn: Any) -> bool:
    """Whether the check fails on one of the examples that CI draws."""

    def one(**values: Any) -> None:
        check(**values)

    # The examples are drawn by the name of what they are drawn for.
    one.__name__ = one.__qualname__ = "planted"
    fixed = options(examples, derandomize=True, phases=[Phase.generate], report_multiple_bugs=False)
    try:
        fixed(given(**drawn)(one))()
    except AssertionError:
        return True
    return False
