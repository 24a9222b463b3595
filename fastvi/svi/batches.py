"""Data in batches, whose order can be repeated from the state of the generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from fastvi.files.saved import description_of
from fastvi.svi import checkpoint as files


class Batches:
    """Cut tensors into batches, or pass on the batches of an iterable."""

    def __init__(self, name: str, data: Any, batch_size: int | None, shuffle: bool) -> None:
        self.name = name
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.tensors: tuple[Tensor, ...] | None = None
        self.single = isinstance(data, Tensor)
        self.stream: Iterable | None = None
        self._num_data: int | None = None
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

    def num_data(self) -> int | None:
        """Return N, or None without data. It is counted in an extra pass if nothing gives it."""
        if self.tensors is not None:
            return len(self.tensors[0])
        if self.stream is None:
            return None
        if self._num_data is None:
            given = _size_given_by(self.stream) if isinstance(self.stream, DataLoader) else None
            self._num_data = self._count() if given is None else given
        return self._num_data

    def _count(self) -> int:
        # The count must not use up random numbers of the first epoch.
        own = self.generators()
        state = files.random_state(own)
        try:
            sizes = [length(parts(batch)) for batch in self]
        finally:
            files.set_random_state(state, own)
        if None in sizes:
            raise ValueError(
                f"SVI.fit: expected num_data, the number of data, where the batches of "
                f"{self.name} hold no tensor to count them by, got None"
            )
        return sum(size for size in sizes if size is not None)

    def __iter__(self) -> Iterator[Any]:
        if self.tensors is None:
            yield from [None] if self.stream is None else self.stream
            return
        size = len(self.tensors[0])
        step = self.batch_size or size
        order = torch.randperm(size) if self.shuffle else torch.arange(size)
        for rows in order.to(self.tensors[0].device).split(step):
            batch = tuple(part[rows] for part in self.tensors)
            yield batch[0] if self.single else batch

    def generators(self) -> list[torch.Generator]:
        """Return the loader's own generators, which decide its order."""
        holders = (self.stream, getattr(self.stream, "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return [generator for generator in found if isinstance(generator, torch.Generator)]

    def description(self) -> list[Any] | None:
        """Return a description of the data: the shape and the first rows of each tensor."""
        if self.tensors is None:
            return None
        return [description_of(part) for part in self.tensors]


def parts(batch: Any) -> tuple[Any, ...]:
    """Return a batch as arguments of model and guide."""
    if batch is None:
        return ()
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def length(data: tuple[Any, ...]) -> int | None:
    """Return B, from the first tensor of a batch or of a mapping in it, or None without one."""
    for part in data:
        inner = part.values() if isinstance(part, Mapping) else (part,)
        for value in inner:
            if isinstance(value, Tensor) and value.ndim:
                return len(value)
    return None


def _size_given_by(loader: DataLoader) -> int | None:
    """Return the number of data that the loader draws from, or None if it must be counted."""
    batches: Any = loader.batch_sampler
    sampler = getattr(batches, "sampler", None)
    # With batch_size=None the loader passes on the items of the data set as batches.
    if isinstance(loader.dataset, IterableDataset) or batches is None or sampler is None:
        return None
    if isinstance(sampler, RandomSampler):
        # A sampler may give fewer or more numbers in an epoch, but draws from all the data.
        return len(sampler.data_source)
    if isinstance(sampler, DistributedSampler):
        # The number counts the data of all ranks, whose gradients are averaged.
        return len(sampler.dataset)  # type: ignore[arg-type]
    if not hasattr(sampler, "__len__"):
        return None
    size = len(sampler)
    if isinstance(sampler, SequentialSampler) and batches.drop_last:
        # The same last data are dropped in every epoch.
        return size - size % batches.batch_size
    return size


def _same_length(name: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    lengths = [len(part) if part.ndim else 0 for part in tensors]
    if not lengths or lengths[0] < 1 or len(set(lengths)) > 1:
        raise ValueError(
            f"SVI.fit: expected {name} to be tensors of one length, at least 1, got {lengths}"
        )
    return tensors
