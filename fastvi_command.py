"""The command ``fastvi``: outside the package, so that importing it can fail in one line, too."""

from __future__ import annotations

import sys
from collections.abc import Callable

INTERRUPTED = 130  # what a shell gives for Ctrl-C


def main() -> None:
    """Import the command line, which takes seconds, and run it.

    ``fastvi info`` takes no package but torch: it is asked where others are missing.
    """
    run: Callable[[], object]
    try:
        if sys.argv[1:] == ["info"]:
            from fastvi.app.info import main as run
        else:
            from fastvi.app.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except ImportError as error:
        sys.stderr.write(f"fastvi: {error}\n")
        raise SystemExit(2) from None
    run()
