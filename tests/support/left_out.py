"""What the summary says about tests that need a device or a compiler."""

from __future__ import annotations

NO_DEVICE = "needs a CUDA device"
NO_COMPILER = "no nvcc on this machine"


def left_out(skipped: list[str]) -> list[str]:
    """A line for each of the two that was missing, from the reasons of the skipped tests."""
    return [
        f"{count} CUDA tests skipped: {said}"
        for reason, said in (
            (NO_DEVICE, "no CUDA device on this machine"),
            (NO_COMPILER, f"{NO_COMPILER} to compile and link them"),
        )
        if (count := sum(reason in text for text in skipped))
    ]
