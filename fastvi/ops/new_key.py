"""Keys of the noise: the only place where randomness enters."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi._ext import C


@torch.library.register_fake("fastvi::new_key")
def _fake(
    *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=device)


def new_key(
    device: torch.device | str | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a key for the noise of the other ops from torch's own generator.

    ``torch.manual_seed`` governs it. Every other op is pure: same key, same numbers, whatever the
    chunk size, the number of threads or processes, and the device.

    Args:
        device: where the key is used; the default is torch's default device.
        generator: a generator on that device; the default is the device's global one.

    Returns:
        The key: an int64 tensor of shape (2,), seed and stream.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> fastvi.ops.new_key().shape
        torch.Size([2])
    """
    if device is None:
        device = generator.device if generator is not None else torch.get_default_device()
    elif not isinstance(device, torch.device):
        device = torch.device(device)
    if torch.compiler.is_compiling():
        return torch.ops.fastvi.new_key(device=device, generator=generator)
    return C.new_key(device, generator)
