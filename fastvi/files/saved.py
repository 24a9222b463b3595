"""Complete files: the one place that writes and reads a saved state."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
_ROWS = 16
# The first bytes of a zip file.
_ZIP = b"PK\x03\x04"


def replace(path: str | Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file beside the path, and move it to the path when it is on the disk.

    A reader of the path gets the old file or the new one, complete, even after a kill or with a
    full disk at any moment. A kill leaves ``.NAME.part``, which is never read, and which the next
    write or :func:`clean` removes.

    Args:
        path: of the file. A link stays a link, and the file that it leads to is replaced.
        content: bytes, or a function that writes to a given file.

    Raises:
        OSError: the error of the system, with the path in it.

    Example:
        >>> import pathlib, tempfile
        >>> from fastvi.files import saved
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "letter.txt"
        >>> saved.replace(path, b"all of it")
        >>> path.read_text()
        'all of it'
    """
    path = Path(path)
    part = _part(path)
    try:
        try:
            part.unlink(missing_ok=True)
            with part.open("xb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, _end_of_links(path))
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    except OSError as error:
        raise _named(error, f"could not write {path}: {error.strerror or error}") from error
    _sync_folder(part.parent)


def append(path: str | Path, content: bytes) -> None:
    """Append to a file in one write; an incomplete write is removed again.

    Raises:
        OSError: the error of the system, with the path in it.
    """
    try:
        with Path(path).open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise _named(error, f"could not write {path}: {error.strerror or error}") from error


def save(path: str | Path, content: Mapping[str, Any]) -> None:
    """Save tensors and plain values so that :func:`load` reads them, as :func:`replace` writes.

    Raises:
        OSError: the file cannot be written; the old file does not change.
        TypeError: a value that is no tensor and no plain value, with its place.
    """
    checked = plain("the content", content)

    def write(file: BinaryIO) -> None:
        noting = _Noting(file)
        sums = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(True)
        try:
            torch.save(checked, cast(BinaryIO, noting))
        except RuntimeError:
            # torch hides the system's error about the disk.
            if noting.error is not None:
                raise noting.error from None
            raise
        finally:
            torch.serialization.set_crc32_options(sums)

    replace(path, write)


def load(where: str, path: str | Path, what: str) -> Any:
    """Read what :func:`save` has written: tensors on the CPU and plain values; it runs no code.

    Args:
        where: the first word of an error.
        path: of the file.
        what: the expected kind of file, such as "a checkpoint of SVI.fit".

    Raises:
        FileNotFoundError: no file.
        OSError: it cannot be read.
        ValueError: empty, cut off, damaged, or of another kind, each in one line.
    """
    path = Path(path)
    expected = f"{where}: expected {path} to be {what}, got"
    try:
        if path.is_dir():
            raise ValueError(f"{expected} a folder")
        with path.open("rb") as file:
            begins = file.read(len(_ZIP))
            if not begins:
                raise ValueError(f"{expected} an empty file")
            if not _ZIP.startswith(begins):
                raise ValueError(f"{expected} a file of another kind, which cannot be read as one")
            if len(begins) < len(_ZIP) or not zipfile.is_zipfile(file):
                raise ValueError(f"{expected} a file that is cut off, which cannot be read as one")
            file.seek(0)
            _check_parts(expected, file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _named(error, f"{where}: could not read {path}: {error.strerror or error}") from error
    except ValueError:
        raise
    except Exception as error:  # any error of a damaged pickle
        # torch's own error advises to trust the file.
        raise ValueError(
            f"{expected} a file that cannot be read as one: it holds something else than tensors "
            f"and plain values"
        ) from error


def clean(path: str | Path) -> None:
    """Remove the rest of an interrupted write to the path."""
    with contextlib.suppress(OSError):
        _part(Path(path)).unlink(missing_ok=True)


def check_place(where: str, name: str, path: str | Path) -> None:
    """Refuse a path that cannot be written, before there are results to lose.

    Raises:
        FileNotFoundError: no folder.
        IsADirectoryError: a folder in the file's place.
        OSError: the error of the system.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{where}: expected {name} to be in a folder that is there, got {path}"
        )
    if path.is_dir():
        raise IsADirectoryError(f"{where}: expected {name} to be a file, got the folder {path}")
    part = _part(path)
    try:
        part.unlink(missing_ok=True)
        with part.open("xb"):
            pass
        part.unlink()
    except OSError as error:
        message = (
            f"{where}: expected {name} to be in a folder that can be written to, got {path}: "
            f"{error.strerror or error}"
        )
        raise _named(error, message) from error


def plain(name: str, value: Any) -> Any:
    """Return a copy of plain containers, with NumPy's numbers as Python's, for :func:`load`.

    Raises:
        TypeError: a value that a file without code cannot hold.
    """
    if isinstance(value, Tensor):
        return value.detach()
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if type(value) is collections.Counter:
        return collections.Counter({plain(name, key): count for key, count in value.items()})
    if isinstance(value, Mapping):
        return {plain(name, key): plain(f"{name}[{key!r}]", part) for key, part in value.items()}
    if type(value) is set:
        return {plain(name, part) for part in value}
    if isinstance(value, (list, tuple)):
        kind: type = tuple if isinstance(value, tuple) else list
        return kind(plain(f"{name}[{number}]", part) for number, part in enumerate(value))
    if type(value) in _PLAIN:
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, _PLAIN):
        return value
    raise TypeError(
        f"expected {name} to be of tensors and plain values, to be saved in a file that runs no "
        f"code, got {type(value).__name__}"
    )


def description_of(tensor: Tensor) -> list[Any]:
    """Return a description of a tensor: its shape, and a sum over the first rows."""
    rows = tensor[:_ROWS].detach().cpu().contiguous()
    return [list(tensor.shape), zlib.crc32(rows.reshape(-1).view(torch.uint8).numpy().tobytes())]


class _Noting:
    """A file that keeps the system's error if it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _check_parts(expected: str, file: BinaryIO) -> None:
    """Refuse a file that was changed after writing, or that is compressed."""
    try:
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError(f"{expected} a file of another kind: it is compressed")
            damaged = parts.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"{expected} a damaged file, which cannot be read as one") from error
    if damaged is not None:
        raise ValueError(f"{expected} a damaged file, which cannot be read as one")


def _end_of_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _part(path: Path) -> Path:
    # It is in the folder of the file itself, because a rename cannot change the disk.
    end = _end_of_links(path)
    return end.with_name(f".{end.name}.part")


def _named(error: OSError, message: str) -> OSError:
    """Return the same kind of error with the path in its text."""
    named = type(error)(message)
    named.errno = error.errno
    return named


def _sync_folder(folder: Path) -> None:
    """Write the new name to the disk too, if the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
