"""The device that a command is told."""

from __future__ import annotations

import torch


def check_device(name: str) -> None:
    """Raise a ValueError that names --device, unless this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected --device to be cpu or cuda, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"expected --device to be cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"expected --device to be one of {count} CUDA devices, got {name!r}")
