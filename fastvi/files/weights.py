"""Weights with settings in one safetensors file, which is not trusted.

A safetensors file is a JSON header of names, types, shapes and places, and the bytes of the values.
The header is read and compared with the expected one before any value is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvi._optional import need
from fastvi.files import saved
from fastvi.files._strangers import check_regular, one_line, without_doubles

_SETTINGS = "fastvi"
# This is more than the names of any model here need.
_LONGEST_HEADER = 16 * 2**20
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


def save_weights(path: str | Path, tensors: Mapping[str, Tensor], settings: Any = None) -> None:
    """Write tensors and plain settings to a file, as :func:`saved.replace` writes.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be written; the old file does not change.
    """
    safetensors = need("safetensors.torch", "saving weights")
    # Tensors that share memory are copied, because the format needs this.
    own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
           for name, value in tensors.items()}  # fmt: skip
    metadata = None if settings is None else {_SETTINGS: json.dumps(settings)}
    saved.replace(path, safetensors.save(own, metadata))


class WeightsFile:
    """A safetensors file whose header is read, and whose values are not yet read.

    Args:
        where: the first word of an error.
        path: of the file.
        what: the expected kind of file, such as "a model that VAE.save has written".

    Attributes:
        settings: the settings that :func:`save_weights` got, or None.
        shapes: the type and shape of each tensor by its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of another kind, that is cut off, or whose sizes are not those of its
            values, each in one line.
    """

    def __init__(self, where: str, path: str | Path, what: str) -> None:
        self._path = Path(path)
        self._expected = f"{where}: expected {path} to be {what}"
        check_regular(where, self._path)
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise self._refused(
                    "a file of another kind, or one that is cut off: it says that its header takes "
                    f"{length} of its {size} bytes"
                )
            text = file.read(length)
        try:
            header = json.loads(text.decode(), object_pairs_hook=without_doubles)
            self.settings, self.shapes, used = _read_header(header)
        except (ValueError, RecursionError, TypeError, KeyError) as error:
            raise self._refused(f"a file with another header: {one_line(error)}") from error
        if used != size - 8 - length:
            raise self._refused(
                f"a file that is cut off or goes on: its header tells of {used} bytes of values, "
                f"and it holds {size - 8 - length}"
            )

    def check(self, expected: Mapping[str, Tensor]) -> None:
        """Refuse a file whose tensors have other names, shapes or types than these."""
        missing = sorted(expected.keys() - self.shapes.keys())
        extra = sorted(self.shapes.keys() - expected.keys())
        if missing or extra:
            of = f"no {', '.join(missing[:3])}" if missing else f"also {', '.join(extra[:3])}"
            raise self._refused(f"one with {one_line(of)}")
        for name, value in expected.items():
            dtype, shape = self.shapes[name]
            if torch.nn.parameter.is_lazy(value):
                continue
            if shape != list(value.shape) or dtype != value.dtype:
                raise self._refused(
                    f"{name} of {dtype} and shape {shape}, where the model has {value.dtype} and "
                    f"shape {list(value.shape)}"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Read the values, on the CPU."""
        safetensors = need("safetensors.torch", "loading weights")
        try:
            return safetensors.load(self._path.read_bytes())
        except Exception as error:  # safetensors has an error type of its own
            raise self._refused(f"one that cannot be read: {one_line(error)}") from error

    def _refused(self, got: str) -> ValueError:
        return ValueError(f"{self._expected}, got {got}")


def _read_header(header: Any) -> tuple[Any, dict[str, tuple[torch.dtype, list[int]]], int]:
    """Return the settings, the tensors' types and shapes, and their bytes together."""
    if not isinstance(header, dict):
        raise ValueError("it is no JSON object")
    metadata = header.pop("__metadata__", {})
    settings = metadata.get(_SETTINGS) if isinstance(metadata, dict) else None
    shapes: dict[str, tuple[torch.dtype, list[int]]] = {}
    places = []
    for name, entry in header.items():
        dtype, shape, (begin, end) = _TYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, begin, end)):
            raise ValueError(f"{name!r} has the shape {shape} at {begin} to {end}")
        count = 1
        for n in shape:
            count *= n
        if end - begin != count * dtype.itemsize:
            raise ValueError(
                f"{name!r} of shape {shape} needs {count * dtype.itemsize} bytes, got {end - begin}"
            )
        shapes[name] = dtype, shape
        places.append((begin, end))
    used = 0
    for begin, end in sorted(places):
        if begin != used:
            raise ValueError(f"a tensor begins at {begin}, where {used} bytes are before it")
        used = end
    if isinstance(settings, str):
        settings = json.loads(settings, object_pairs_hook=without_doubles)
    return settings, shapes, used
