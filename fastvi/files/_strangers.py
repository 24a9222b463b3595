"""Checks for all readers of untrusted files, which may hold anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LONGEST_REASON = 300
_MOST_JSON = 2**20


def check_regular(where: str, path: Path) -> None:
    """Refuse a path that is no regular file: a pipe never ends, and a device has no size.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: a folder, a pipe or a device.
    """
    if path.is_file():
        return
    if not path.exists():
        raise FileNotFoundError(f"{where}: expected {path} to be a file, it does not exist")
    raise ValueError(f"{where}: expected {path} to be a file, got a folder, a pipe or a device")


def one_line(value: object) -> str:
    """Return the text of an error or a name as one short line without control characters."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    text = words or type(value).__name__
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."


def read_json(where: str, path: Path) -> Any:
    """Read a small JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file of more than 1 MiB, of another format, or that names one key twice.
    """
    check_regular(where, path)
    with path.open("rb") as file:
        content = file.read(_MOST_JSON + 1)
    if len(content) > _MOST_JSON:
        raise ValueError(f"{where}: expected {path} to be at most {_MOST_JSON} bytes, it is longer")
    try:
        return json.loads(content.decode(), object_pairs_hook=without_doubles)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: expected {path} to be JSON, got {type(error).__name__}: {one_line(error)}"
        ) from error


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return read
