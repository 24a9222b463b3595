"""The state of generators and autocast, for an equal second run of a function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch


class Replay:
    """Keep the present state of torch's global generators, of others, and of autocast."""

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self.others = [(each, each.get_state()) for each in generators]
        self.cpu_state = torch.get_rng_state()
        self.cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.index = device.index
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in dict.fromkeys(("cpu", device.type))
        ]
        self.cache = torch.is_autocast_cache_enabled()

    @contextlib.contextmanager
    def repeat(self) -> Iterator[None]:
        devices = [] if self.cuda_state is None else [torch.cuda.current_device()]
        if self.index is not None and devices:
            devices = [self.index]
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            torch.set_rng_state(self.cpu_state)
            stack.enter_context(_restored(self.others))
            if self.cuda_state is not None:
                torch.cuda.set_rng_state(self.cuda_state, devices[0])
            for kind, enabled, dtype in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, self.cache))
            yield


@contextlib.contextmanager
def _restored(states: list[tuple[torch.Generator, torch.Tensor]]) -> Iterator[None]:
    """Set generators to these states in this context, and restore them afterwards."""
    now = [(generator, generator.get_state()) for generator, _ in states]
    for generator, state in states:
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in now:
            generator.set_state(state)
