"""The command ``fastvi``: outside the package, so that importing it can fail in one line, too."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # what a shell gives for Ctrl-C


def main() -> None:
    """Import the command line, which takes seconds, and run it."""
    try:
        from fastvi.app.cli import main as run
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except ImportError as error:
        sys.stderr.write(f"fastvi: {error}\n")
        raise SystemExit(2) from None
    run()
