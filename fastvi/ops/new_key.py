"""Keys of the noise, the only source of randomness."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvi._ext import C
from fastvi.ops._call import transforms_active

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


@torch.library.register_fake("fastvi::new_key")
def _fake(
    *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    return torch.empty(2, dtype=torch.int64, device=device)


def new_key(
    device: torch.device | str | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a key for the noise of the other ops from torch's own generator.

    ``torch.manual_seed`` determines it. Every other op is a pure function: a key gives the same
    numbers for every chunk size, number of threads or processes, and device.

    Args:
        device: the device of the key; the default is torch's default device.
        generator: a generator on that device; the default is the device's global one.

    Returns:
        The key: an int64 tensor of shape (2,), seed and stream. Under :func:`torch.func.vmap` the
        ``randomness`` that it was given says whether there is one key for each element.

    Raises:
        TypeError: not a device, or not a generator.
        ValueError: a device that does not exist here, a generator on another device.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> fastvi.ops.new_key().shape
        torch.Size([2])
    """
    place = _place(device, generator)
    if transforms_active():
        # torch draws it, so that the randomness mode of vmap is honoured.
        return torch.randint(_LOWEST, _HIGHEST, (2,), device=place, generator=generator)
    if torch.compiler.is_compiling():
        return torch.ops.fastvi.new_key(device=place, generator=generator)
    try:
        return C.new_key(place, generator)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(
            f"new_key: expected device to be one that draws here, got {place}: {reason}"
        ) from error


def _place(device: object, generator: object) -> torch.device:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"new_key: expected generator to be a torch.Generator or None, "
            f"got {type(generator).__name__}"
        )
    if device is None:
        if generator is not None:
            return generator.device
        # The compiler can trace the first; the second is faster.
        compiling = torch.compiler.is_compiling()
        return torch.empty(0).device if compiling else torch.get_default_device()
    place = device if isinstance(device, torch.device) else _parse(device)
    if generator is not None and generator.device.type != place.type:
        raise ValueError(
            f"new_key: expected generator to be on the device of the key, {place}, "
            f"got one on {generator.device}"
        )
    return place


def _parse(device: object) -> torch.device:
    if isinstance(device, bool) or not isinstance(device, (str, int)):
        raise TypeError(
            f"new_key: expected device to be a torch.device, its name or None, "
            f"got {type(device).__name__}"
        )
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"new_key: expected device to be the name of a device, got {device!r}"
        ) from error
