"""The checks of options that several commands have."""

from __future__ import annotations

import torch


def check_device(name: str) -> None:
    """Raise a ValueError that names --device, unless this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected --device to be cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"expected --device to be one of {count} CUDA devices, got {name!r}")


def check_count(option: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"expected {option} to be at least 1, got {value}")
