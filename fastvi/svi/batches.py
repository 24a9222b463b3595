"""Data in batches, whose order can be gone through again from the state it began with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class Batches:
    """Tensors cut into batches, or batches as they come."""

    def __init__(self, name: str, data: Any, batch_size: int | None, shuffle: bool) -> None:
        self.name = name
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.tensors: tuple[Tensor, ...] | None = None
        self.single = isinstance(data, Tensor)
        self.stream: Iterable | None = None
        if data is None:
            return
        if isinstance(data, Tensor):
            data = (data,)
        if isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data):
            self.tensors = _same_length(name, data)
            return
        if batch_size is not None:
            raise ValueError(
                f"SVI.fit: expected batch_size to be None where {name} comes in batches, "
                f"got {batch_size}"
            )
        if not hasattr(data, "__iter__") or hasattr(data, "__next__"):
            raise TypeError(
                f"SVI.fit: expected {name} to be a tensor, a tuple of tensors, or an iterable of "
                f"batches that starts anew in each epoch, got {type(data).__name__}"
            )
        self.stream = data

    def __len__(self) -> int:
        """N, or 0 where it is not known."""
        if self.tensors is not None:
            return len(self.tensors[0])
        dataset: Any = getattr(self.stream, "dataset", None)
        return len(dataset) if hasattr(dataset, "__len__") else 0

    def __iter__(self) -> Iterator[Any]:
        if self.tensors is None:
            yield from [None] if self.stream is None else self.stream
            return
        size = len(self)
        step = self.batch_size or size
        order = torch.randperm(size) if self.shuffle else torch.arange(size)
        for rows in order.to(self.tensors[0].device).split(step):
            batch = tuple(part[rows] for part in self.tensors)
            yield batch[0] if self.single else batch

    def generators(self) -> list[torch.Generator]:
        """The loader's own generators, which give its order."""
        holders = (self.stream, getattr(self.stream, "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return [generator for generator in found if isinstance(generator, torch.Generator)]


def _same_length(name: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    lengths = [len(part) if part.ndim else 0 for part in tensors]
    if not lengths or lengths[0] < 1 or len(set(lengths)) > 1:
        raise ValueError(
            f"SVI.fit: expected {name} to be tensors of one length, at least 1, got {lengths}"
        )
    return tensors
