"""The processes of torchrun, each of which trains on its own rows of every batch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastvi._devices import check_device
from fastvi.chunks import sum_gradients
from fastvi.ops import new_key

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Hold the number of this process and of all processes; by default there is one.

    All of them draw the same numbers from torch's generators: the order of the images, the pixels,
    the keys. So the state of the first rank's generator is enough to resume.
    """

    number: int = 0
    size: int = 1
    local: int = 0  # the number on this machine

    @property
    def is_first(self) -> bool:
        return self.number == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's rows, which may be none."""
        return rows.tensor_split(self.size)[self.number]

    def key(self, device: torch.device) -> Tensor:
        """Draw a key with the same seed on each rank, and with a stream of its own."""
        key = new_key(device)
        return key if self.is_first else torch.stack((key[0], key[1] + self.number))

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, with the same bits on each."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        if self.size > 1:
            sum_gradients(parameters)

    def join(self, x: Tensor) -> Tensor:
        """Return the rows of all ranks, in their order, on the CPU."""
        if self.size == 1:
            return x
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, x.cpu())
        return torch.cat(parts)

    def from_first(self, function: Callable[[], T]) -> T:
        """Run a function on the first rank, and return its result on every rank.

        The first rank reports its error, and the others end silently.
        """
        if self.size == 1:
            return function()
        results: list[Any] = [None]
        if self.is_first:
            try:
                results = [(function(),)]
            except BaseException:
                dist.broadcast_object_list(results, src=0)
                raise
        dist.broadcast_object_list(results, src=0)
        if results[0] is None:
            raise SystemExit(2)
        return results[0][0]

    def check_alike(self, name: str, value: object) -> None:
        """Refuse a value that is not the same on every rank.

        Raises:
            ValueError: it names the values of the first rank and of this one.
        """
        others = [value]
        if self.size > 1:
            others = [None] * self.size
            dist.all_gather_object(others, value)
        for number, other in enumerate(others):
            if other != others[0]:
                raise ValueError(
                    f"expected {name} to be the same on every rank, got {others[0]} on rank 0 and "
                    f"{other} on rank {number}"
                )

    def take_device(self, device: str) -> None:
        """Check the device of the run, and make this rank's own the current one.

        Raises:
            ValueError: a device that does not exist; or, with several ranks, one with a number.
        """
        if self.size == 1 or torch.device(device).type != "cuda":
            check_device(device)
            return
        if torch.device(device).index is not None:
            raise ValueError(
                f"expected --device to be cuda under torchrun, which gives each process one of "
                f"its own, got {device!r}"
            )
        check_device(f"cuda:{self.local}")
        torch.cuda.set_device(self.local)


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes of torchrun, if it started this one; else there is only one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
