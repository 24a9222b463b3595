"""The number of samples in a chunk, from a memory budget and trials of a few samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

log = logging.getLogger("fastvi")

# The number of samples in a trial of the likelihood.
_TRIED = 8
_SHARE_OF_FREE = 0.25
# On a CPU a larger chunk is not faster, and does not fit in the caches.
_MOST_ON_CPU = 256 * 2**20
# A factor for the memory inside an operator, and for the allocator's rounding.
_MARGIN = 1.5
# The settings and numbers that were logged, each once.
_said: set[tuple[Any, ...]] = set()


class Auto(str):
    """``"auto"`` of a loss, which keeps its results, so that a training loop tries once."""

    def __init__(self, _: str) -> None:
        # For each setting: the samples at a time, and the shapes on which the likelihood depended.
        # A new likelihood has other shapes.
        self.picked: dict[tuple[Any, ...], tuple[int, list[torch.Size]]] = {}


def remembering(chunk_size: Any) -> Any:
    """Return a loss's ``chunk_size``; ``"auto"`` becomes one that keeps its results."""
    return Auto(chunk_size) if isinstance(chunk_size, str) else chunk_size


def chunk_size_for(
    where: str,
    num_samples: int,
    trial: Callable[[int], int | None],
    device: torch.device,
    budget: int | None,
    setting: tuple[Any, ...],
) -> int:
    """Return the most samples of a share that fit the budget in bytes, by trials of a few.

    A trial runs a few samples as a chunk runs, and may return how many chunks are in memory at a
    time, if that is more than one.
    Memory that does not grow with the samples, such as gradients of parameters, is not counted.
    """
    if num_samples < 2:
        return 1
    most = min(_TRIED, num_samples)
    fewer = most // 2
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        (few, _), (many, at_a_time) = (
            _in_use_during(trial, samples, device) for samples in (fewer, most)
        )
    per_sample = max(1.0, _MARGIN * at_a_time * _growth(few, many) / (most - fewer))
    if budget is None:
        budget = default_budget(device)
    size = int(min(num_samples, max(1, budget // per_sample)))
    if (setting, size) not in _said:
        _said.add((setting, size))
        log.info(
            "%s: chunk_size='auto' took %d of %d samples at a time: about %.1f MiB of a budget of "
            "%.1f", where, size, num_samples, size * per_sample / 2**20, budget / 2**20,
        )  # fmt: skip
    return size


def _in_use_during(
    trial: Callable[[int], int | None], samples: int, device: torch.device
) -> tuple[list[int], int]:
    """Return the bytes in use after each operator of a trial and of its backward pass."""
    with _MemoryInUse(device) as measured:
        at_a_time = trial(samples)
    return measured.amounts, at_a_time or 1


def _growth(few: list[int], many: list[int]) -> int:
    """Return the largest growth of memory by more samples, over all moments of a run.

    The peaks cannot be compared: with few samples the peak may be at gradients of parameters, and
    with many at activations.
    """
    if len(few) != len(many):
        return max(many, default=0)
    return max((b - a for a, b in zip(few, many, strict=True)), default=0)


class _MemoryInUse(TorchDispatchMode):
    """Measure the memory in use after each operator: on a CPU that of results in use."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.amounts: list[int] = []
        # For each address: a reference that tells whether the memory is in use, and its size.
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if self.device.type == "cuda":
            self.amounts.append(torch.cuda.memory_allocated(self.device))
            return results
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        self._storages = {
            at: storage for at, storage in self._storages.items() if not storage[0].expired()
        }
        for result in tree_leaves(results):
            # A view has no memory of its own.
            if isinstance(result, Tensor) and _address(result) not in given:
                storage = result.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.amounts.append(sum(size for _, size in self._storages.values()))
        return results


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def default_budget(device: torch.device) -> int:
    """Return a quarter of the free memory, in bytes; on a CPU at most 256 MiB."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # The memory in torch's cache is free too.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_SHARE_OF_FREE * free)
    return int(min(_SHARE_OF_FREE * _free_on_host(), _MOST_ON_CPU))


def _free_on_host() -> int:
    free = 2**32
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
        # A container's own limit, if there is one.
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass
    return max(free, 2**20)
