"""How many samples at a time: from a budget of memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("fastvi")

# Samples that the likelihood is tried on.
_TRIED = 8
_SHARE_OF_FREE = 0.25
# On a CPU a chunk gains nothing beyond this, and loses the caches.
_MOST_ON_CPU = 256 * 2**20
# Saved activations, their gradients, and what layers hold for a moment.
_OVER_SAVED = 3.0
# What was logged: a setting and its number, each once.
_said: set[tuple[Any, ...]] = set()


def chunk_size_for(
    where: str,
    num_samples: int,
    trial: Callable[[int], None],
    device: torch.device,
    budget: int | None,
    setting: tuple[Any, ...],
) -> int:
    """The most samples whose activations, gradients and temporaries fit the budget in bytes."""
    tried = min(_TRIED, num_samples)
    if tried < 1:
        return 1
    per_sample = max(1.0, _OVER_SAVED * _bytes_saved(trial, tried, device) / tried)
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


def default_budget(device: torch.device) -> int:
    """A quarter of the memory that is free, in bytes; on a CPU no more than 256 MiB."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # What torch holds in its cache is free too.
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
        # A container's own limit, where there is one.
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, KeyError, ValueError):
        pass
    return max(free, 2**20)


def _bytes_saved(trial: Callable[[int], None], samples: int, device: torch.device) -> int:
    """What autograd keeps of a few samples, parameters left out."""
    storages: dict[int, int] = {}
    parameters: set[int] = set()

    def pack(x: Tensor) -> Tensor:
        if not (x.is_leaf and x.requires_grad):
            storage = x.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        else:
            parameters.add(x.untyped_storage().data_ptr())
        return x

    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        trial(samples)
    return sum(size for where, size in storages.items() if where not in parameters)
