"""Arrays in IDX files and in .npz archives that are not trusted.

A file names the sizes of its arrays, but no memory is allocated by them: a size is compared with
the bytes in the file, and compressed data are read in pieces, so that memory grows with the bytes
that really come out. A small file may unpack to many bytes, so their number is bounded too.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from fastvi._optional import need
from fastvi.files._strangers import check_regular, one_line

if TYPE_CHECKING:
    import numpy as np

# A compressed file may unpack to this many bytes, or to this many for each of its own.
MOST_UNPACKED = 64 * 2**20
MOST_UNPACKED_TIMES = 100
_PIECE = 2**20
_MOST_RANK = 32
# NumPy's own limit for a header that it evaluates.
_LONGEST_NPY_HEADER = 10_000
_NPY_MAGIC = b"\x93NUMPY"
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DAMAGE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    # zipfile's words for a password, and NotImplementedError for a method that it lacks.
    RuntimeError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file, plain or gzip-compressed, as MNIST's are.

    The values of a compressed file may take at most 64 MiB, or 100 times its size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a wrong magic number, an unknown type of values, a size of 0, sizes that are not
            those of the values, a file that is cut short or goes on after its end, a damaged .gz.

    References:
        | The MNIST database (LeCun, Cortes & Burges), "the IDX file format"
    """
    np = need("numpy", "reading IDX files")
    where, path = "read_idx", Path(path)
    check_regular(where, path)
    with path.open("rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if compressed else raw
            dtype, shape, content = _idx(where, path, file, size, compressed)
        except (EOFError, OSError, zlib.error) as error:
            if not compressed:
                raise
            raise ValueError(
                f"{where}: expected {path} to be a whole .gz file: {one_line(error)}"
            ) from error
    return np.frombuffer(content, dtype).reshape(shape)


def _idx(
    where: str, path: Path, file: IO[bytes], size: int, compressed: bool
) -> tuple[Any, tuple[int, ...], bytearray]:
    np = need("numpy", "reading IDX files")
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
        types = ", ".join(f"{code:02x}" for code in _IDX_TYPES)
        raise ValueError(
            f"{where}: expected {path} to start with the magic number 00 00 <type> <rank> "
            f"(type one of {types}), got {magic.hex(' ') or 'an empty file'}"
        )
    dtype, rank = np.dtype(_IDX_TYPES[magic[2]]), magic[3]
    if not 1 <= rank <= _MOST_RANK:
        raise ValueError(
            f"{where}: expected the array of {path} to have 1 to {_MOST_RANK} dimensions, "
            f"got {rank}"
        )
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(
            f"{where}: expected {path} to hold {rank} sizes of 4 bytes after its magic number, "
            f"got {len(sizes)} bytes: the file is cut short"
        )
    shape = struct.unpack(f">{rank}I", sizes)
    if 0 in shape:
        raise ValueError(f"{where}: expected {path} to hold values, got shape {shape}")
    expected = math.prod(shape) * dtype.itemsize
    if compressed:
        _check_unpacked(where, path, expected, size)
        content = _read(file, expected)
        # The end of a .gz is checked by reading on to it.
        got = len(content) + len(file.read(1))
    else:
        got = size - 4 - 4 * rank
        content = _read(file, expected) if got == expected else bytearray()
    if got != expected or len(content) != expected:
        ends = "the file is cut short" if got < expected else "something follows the last value"
        more = " or more" if compressed and got > expected else ""
        raise ValueError(
            f"{where}: expected {path} to hold {expected} bytes of values for shape "
            f"{shape}, got {got}{more}: {ends}"
        )
    return dtype, shape, content


@dataclass(frozen=True)
class _Member:
    """An array of an archive: its place, and the content of its header."""

    info: zipfile.ZipInfo
    start: int
    dtype: Any
    shape: tuple[int, ...]
    fortran: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """The arrays of numbers in an .npz, each of which is read on request.

    All headers are read at once, so that an archive with pickled objects is refused in any case.
    Together the arrays that are read may take at most 64 MiB, or 100 times the file's size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an archive that is damaged, encrypted or packed by another method than NumPy's,
            an array of objects, a header that does not fit its values.
    """

    def __init__(self, where: str, path: Path) -> None:
        check_regular(where, path)
        self._where, self._path = where, path
        self._size = path.stat().st_size
        self._left_unpacked = _most_unpacked(self._size)
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = self._all_headers(archive)
        except _DAMAGE as error:
            raise self._refused(error) from error

    def names(self) -> list[str]:
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str) -> np.ndarray:
        """Return one array; refuse it if it has more or fewer values than its header says."""
        np = need("numpy", "reading .npz files")
        member = self._members[name]
        if member.dtype.kind not in "biuf":
            raise ValueError(
                f"{self._where}: expected the array {one_line(name)!r} of {self._path} "
                f"to be numbers, got {member.dtype}"
            )
        _check_unpacked(self._where, self._path, member.bytes, self._size, most=self._left_unpacked)
        self._left_unpacked -= member.bytes
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(member.info) as file:
                file.read(member.start)
                content = _read(file, member.bytes)
                # The checksum is compared at the end of the member.
                if len(content) < member.bytes or file.read(1):
                    raise ValueError(f"the values of {name!r} do not fill shape {member.shape}")
            array = np.frombuffer(content, member.dtype)
            return array.reshape(member.shape, order="F" if member.fortran else "C")
        except _DAMAGE as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ValueError:
        return ValueError(
            f"{self._where}: expected {self._path} to be a whole .npz without pickled objects: "
            f"{one_line(error)}"
        )

    def _all_headers(self, archive: zipfile.ZipFile) -> Mapping[str, _Member]:
        members: dict[str, _Member] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise ValueError(f"{name!r} in it is no .npy array")
            if name in members:
                raise ValueError(f"the array {name!r} stands there twice")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"the array {name!r} is packed by method {info.compress_type}")
            with archive.open(info) as file:
                members[name] = _npy_header(name, info, file)
        return members


def _npy_header(name: str, info: zipfile.ZipInfo, file: IO[bytes]) -> _Member:
    np = need("numpy", "reading .npz files")
    start = file.read(8)
    # Version 3 exists for the names of structured arrays alone.
    readers = {
        (1, 0): ("<H", np.lib.format.read_array_header_1_0),
        (2, 0): ("<I", np.lib.format.read_array_header_2_0),
    }
    if start[:6] != _NPY_MAGIC or tuple(start[6:]) not in readers:
        raise ValueError(f"{name!r} does not start as a .npy array of numbers, of version 1 or 2")
    width, read_header = readers[start[6], start[7]]
    size = file.read(struct.calcsize(width))
    (length,) = struct.unpack(width, size)
    if length > _LONGEST_NPY_HEADER:
        raise ValueError(f"the header of {name!r} is {length} bytes long")
    text = file.read(length)
    try:
        shape, fortran, dtype = read_header(io.BytesIO(size + text))
    except Exception as error:  # any error of Python's parser
        raise ValueError(f"the header of {name!r} is none: {one_line(error)}") from error
    if dtype.hasobject:
        raise ValueError(f"{name!r} is an array of objects, which only a pickle can hold")
    if len(shape) > _MOST_RANK or any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"{name!r} has the shape {shape}"[:200])
    if math.prod(n for n in shape if n) * max(dtype.itemsize, 1) >= 2**63:
        raise ValueError(f"{name!r} has the shape {shape}"[:200])
    begins = len(start) + len(size) + length
    member = _Member(info, begins, dtype, tuple(shape), fortran)
    if info.file_size != begins + member.bytes:
        raise ValueError(
            f"{name!r} of shape {shape} needs {member.bytes} bytes of values, got "
            f"{info.file_size - begins}"
        )
    return member


def _most_unpacked(size: int) -> int:
    return max(MOST_UNPACKED, MOST_UNPACKED_TIMES * size)


def _check_unpacked(
    where: str, path: Path, expected: int, size: int, *, most: int | None = None
) -> None:
    most = _most_unpacked(size) if most is None else most
    if expected > most:
        raise ValueError(
            f"{where}: expected {path}, of {size} bytes, to unpack to at most {most} bytes "
            f"({MOST_UNPACKED_TIMES} times its size, or {MOST_UNPACKED}), "
            f"got an array of {expected}; unpack it if it is to be trusted"
        )


def _read(file: IO[bytes], size: int) -> bytearray:
    """Read this many bytes in pieces, or fewer if the file ends."""
    content = bytearray()
    while len(content) < size:
        piece = file.read(min(_PIECE, size - len(content)))
        if not piece:
            break
        content += piece
    return content
