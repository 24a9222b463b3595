"""Files of every kind, damaged at random: read as they are, or refused in one line."""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hostile_files import allocates_at_most, idx_header, npy_of, npz
from hypothesis import strategies as st

from fastvi.app.images import load_images

_IMAGES = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
_IDX = idx_header(6, 4, 4) + _IMAGES.tobytes()
FILES = {
    "idx": _IDX,
    "gz": gzip.compress(_IDX, mtime=0),
    "npz": npz(x_train=npy_of(_IMAGES), x_test=npy_of(_IMAGES[:2])),
    "stored": npz(0, images=npy_of(_IMAGES)),
}


@dataclass(frozen=True)
class Damage:
    kind: str
    # (place as a part of the file, byte) and how much is cut off or comes after the end
    bytes: tuple[tuple[int, int], ...]
    cut: int
    more: bytes


damages = st.builds(
    Damage,
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4).map(tuple),
    st.one_of(st.just(0), st.integers(0, 200)),
    st.binary(max_size=4),
)


def check_file(case: Damage) -> None:
    content = bytearray(FILES[case.kind])
    for place, byte in case.bytes:
        content[place % len(content)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images")
        path.write_bytes(bytes(content[: len(content) - case.cut]) + case.more)
        with allocates_at_most(3 * 2**20):
            try:
                images = load_images(path)
            except ValueError as error:
                said = str(error)
                assert str(path) in said or "to hold at least 2 images" in said, said
                assert "\n" not in said and len(said) < 1000, said
            else:
                assert images.train.isfinite().all() and len(images.held_out) >= 1
