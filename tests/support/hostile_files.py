"""Files that lie about their sizes or would run code, and what they cost whoever reads them."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np

MARK = "code of a stranger ran"


class RunsCode:
    """What a hostile pickle holds: unpickling it makes a folder at ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile_pickle(marker: Path) -> bytes:
    return pickle.dumps(RunsCode(marker), protocol=2)


def hostile_checkpoint(marker: Path) -> bytes:
    """As ``torch.save`` writes it, with the hostile pickle in the place of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", hostile_pickle(marker))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def idx_header(*sizes: int, code: int = 0x08, rank: int | None = None) -> bytes:
    rank = len(sizes) if rank is None else rank
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, code, rank, *sizes)


def gzip_bomb(size: int, head: bytes = b"", times: int = 1) -> bytes:
    """A .gz of ``head`` and zeros, of 1 / 1000 of their size."""
    member = gzip.compress(head + bytes(size))
    return member + gzip.compress(bytes(size)) * (times - 1)


def npy(
    descr: str, shape: str, data: bytes = b"", *, version: int = 1, fortran: str = "False"
) -> bytes:
    """A .npy whose header is text that need not be true."""
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()
    return npy_text(text, data, version=version)


def npy_text(text: bytes, data: bytes = b"", *, version: int = 1, length: int | None = None):
    said = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + said + text + data


def npz(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy_of(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def overlapping_npz(count: int, size: int) -> bytes:
    """Many names for the same packed bytes, so that the archive unpacks to count times size."""
    one = npz(images=npy_of(np.zeros(size, np.uint8)))
    with zipfile.ZipFile(io.BytesIO(one)) as archive:
        start = archive.start_dir
    directory, end = one[start:-22], one[-22:]
    entries = b"".join(
        directory.replace(b"images.npy", f"im{n:04d}.npy".encode()) for n in range(count)
    )
    end = end[:8] + struct.pack("<HHI", count, count, len(entries)) + end[16:]
    return one[:start] + entries + end


def safetensors(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@contextlib.contextmanager
def allocates_at_most(size: int):
    """Python's and NumPy's memory at its highest, above what was there before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak} bytes were allocated, at most {size} are justified"
