"""The tensors inside a distribution or a transform, and copies with other tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.distributions import Distribution, Transform
from torch.distributions.transforms import _InverseTransform

# The attributes of a distribution that hold tensors of their own.
_PARTS = (Distribution, Transform)


def tensors_of(part: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[Any, Tensor]]:
    """Yield each tensor that the part stores, with its place."""
    for name, value in _parts(part):
        here = (*place, name)
        if isinstance(value, Tensor):
            yield here, value
        else:
            yield from tensors_of(value, here)


def parts_of(part: Any) -> Iterator[Any]:
    """Yield the distribution or transform itself, and its inner ones."""
    if isinstance(part, _PARTS):
        yield part
    for _, value in _parts(part):
        if not isinstance(value, Tensor):
            yield from parts_of(value)


def broadcasts(q: Distribution) -> bool:
    """Return whether all parts are from libraries whose densities broadcast values."""
    known = ("torch", "fastvi", "pyro")
    return all(type(part).__module__.partition(".")[0] in known for part in parts_of(q))


def with_tensors(part: Any, values: dict[Any, Tensor], place: tuple[str | int, ...] = ()) -> Any:
    """Return a copy of the part with these tensors in their places."""
    new = list(part) if isinstance(part, (list, tuple)) else copy.copy(part)
    for name, value in _parts(part):
        here = (*place, name)
        if isinstance(value, Tensor) and here not in values:
            # A lazy property of the part is removed, so that the copy computes its own.
            vars(new).pop(str(name), None)
            continue
        inner = values[here] if isinstance(value, Tensor) else with_tensors(value, values, here)
        if isinstance(new, list):
            new[int(name)] = inner
        else:
            vars(new)[str(name)] = inner
    return type(part)(new) if isinstance(part, tuple) else new


def is_inverse(transform: Any) -> bool:
    """Return whether this is an inverse that torch made by ``inv``."""
    # By its class: zuko renames it.
    return isinstance(transform, _InverseTransform)


def _parts(part: Any) -> Iterator[tuple[str | int, Any]]:
    stored = enumerate(part) if isinstance(part, (list, tuple)) else vars(part).items()
    for name, value in stored:
        # An inverse holds its transform, which may hold the inverse again.
        if name == "_inv" and not is_inverse(part):
            continue
        if isinstance(value, (Tensor, *_PARTS)):
            yield name, value
        elif isinstance(value, (list, tuple)) and any(isinstance(v, _PARTS) for v in value):
            yield name, value
