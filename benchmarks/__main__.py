"""Run the benchmark: ``python -m benchmarks --help``."""

from benchmarks.cli import main

# Worker processes import this file too.
if __name__ == "__main__":
    raise SystemExit(main())
