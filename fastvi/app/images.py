"""Images to train on: scikit-learn's digits, IDX files as MNIST's, and .npz archives."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvi._optional import need
from fastvi.files._strangers import check_regular, one_line
from fastvi.files.arrays import NpzFile, read_idx

__all__ = ["Images", "binarise", "binarise_held_out", "load_images", "read_idx"]

HELD_OUT_SHARE = 0.2
# The split and the held-out pixels do not depend on the run's seed, so runs are comparable.
_SPLIT_SEED = 0
_IDX_ENDINGS = ("", ".gz")


@dataclass(frozen=True)
class Images:
    """Hold grey images in [0, 1], flattened, in two parts that share no image."""

    name: str
    train: Tensor  # [N, F]
    held_out: Tensor  # [M, F]
    shape: tuple[int, int]  # height, width
    held_out_labels: Tensor | None = None  # [M]
    note: str = ""  # the change of the pixels, if there was an unusual one
    source: str = "digits"  # the absolute path or the name that loads them again

    @functools.cached_property
    def sha256(self) -> str:
        """Return a hash of all pixels in the two parts, the same for every format of the file."""
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            digest.update(f"{tuple(part.shape)} {self.shape} {part.dtype}".encode())
            digest.update(part.contiguous().numpy().data.cast("B"))
        return digest.hexdigest()


def load_images(source: str | Path) -> Images:
    """Load images by name or path.

    Args:
        source: ``"digits"`` (scikit-learn's 1797 digits of 8 x 8 pixels); a folder with MNIST's
            files, ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte``, plain or .gz, labels
            optional; one IDX file of images; or an .npz with ``x_train`` and ``x_test``, or
            ``images``, or one array. Without a test part a fifth is held out.

    Returns:
        Pixels in [0, 1]: whole numbers above 1 are divided by 255, and ``note`` says so if they
        were floats; other floats must be in [0, 1]. A last axis of one channel is dropped.

    Raises:
        FileNotFoundError: no such file, or a folder without the images.
        ValueError: a file that is cut short, of another format, rank or range of values, that
            holds pickled objects or wrong sizes; see ``fastvi.files.arrays``.
        ImportError: scikit-learn (for the digits) or NumPy is not installed.
    """
    if str(source) == "digits":
        return _digits()
    images = _from_path(source)
    return replace(images, source=str(Path(source).expanduser().resolve()))


def _from_path(source: str | Path) -> Images:
    path = Path(source).expanduser()
    if path.is_dir():
        return _idx_folder(path)
    if not path.exists():
        raise FileNotFoundError(
            f"load_images: expected data to be 'digits' or the path of IDX files or an .npz, "
            f"got {str(source)!r}, which does not exist"
        )
    check_regular("load_images", path)
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return _npz(path)
    if start[:2] in (b"\x1f\x8b", b"\0\0"):
        return _parts(path, [read_idx(path)], None)
    raise ValueError(
        f"load_images: expected {path} to be an IDX file (plain or .gz) or an .npz, "
        f"got a file that starts with {start.hex(' ') or 'nothing: it is empty'}"
    )


def binarise(pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw each pixel as 0 or 1, with its grey level in [0, 1] as the probability of 1."""
    return torch.bernoulli(pixels, generator=generator)


def binarise_held_out(pixels: Tensor) -> Tensor:
    """Draw the pixels once, the same for every run, so that bounds are comparable."""
    return binarise(pixels.cpu(), torch.Generator().manual_seed(_SPLIT_SEED)).to(pixels.device)


def _digits() -> Images:
    datasets = need("sklearn.datasets", "the digits data set")
    digits = datasets.load_digits()
    pixels = torch.tensor(digits.images / 16.0, dtype=torch.float32)
    return _split("digits", pixels.flatten(1), (8, 8), torch.tensor(digits.target))


def _idx_folder(folder: Path) -> Images:
    def find(*stems: str) -> Path | None:
        names = [
            stem.replace("-idx", separator + "idx") + ending
            for stem in stems
            for separator in "-."
            for ending in _IDX_ENDINGS
        ]
        return next((folder / name for name in names if (folder / name).is_file()), None)

    images = find("train-images-idx3-ubyte")
    if images is None:
        raise FileNotFoundError(
            f"load_images: expected {folder} to hold train-images-idx3-ubyte (plain or .gz), "
            "got a folder without it"
        )
    test = find("t10k-images-idx3-ubyte", "test-images-idx3-ubyte")
    stems = ("t10k-labels-idx1-ubyte", "test-labels-idx1-ubyte")
    labels = find(*stems) if test else find("train-labels-idx1-ubyte")
    arrays = [read_idx(images)] + ([read_idx(test)] if test else [])
    return _parts(folder, arrays, read_idx(labels) if labels else None)


def _npz(path: Path) -> Images:
    need("numpy", "reading .npz files")
    archive = NpzFile("load_images", path)
    names = ["x_train", "x_test"]
    if "x_train" in archive:
        labels = "y_test"
        if "x_test" not in archive:
            names, labels = names[:1], "y_train"
    elif "images" in archive or len(archive.names()) == 1:
        names = ["images"] if "images" in archive else archive.names()
        labels = "labels"
    else:
        raise ValueError(
            f"load_images: expected {path} to hold the array x_train (and x_test), or images, "
            f"or one array alone, got {one_line(', '.join(archive.names()) or 'no arrays')}"
        )
    arrays = [archive.read(name) for name in names]
    return _parts(path, arrays, archive.read(labels) if labels in archive else None)


def _parts(path: Path, arrays: list[Any], labels: Any) -> Images:
    """Return images of a train part, of a test part if there is one, and the last part's labels."""
    np = need("numpy", "reading images")
    where, name = "load_images", path.name
    shapes = [array.shape[1:] for array in arrays]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"{where}: expected both parts of {path} to hold images of one size, "
            f"got {' and '.join(map(str, shapes))}"
        )
    # Both parts get one scale: a part of a few dark images must not get another.
    pixels, shape, note = _unit(where, path, np.concatenate(arrays))
    train, held_out = pixels[: len(arrays[0])], pixels[len(arrays[0]) :]
    target = None
    if labels is not None:
        images = len(arrays[-1])
        if labels.shape != (images,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{where}: expected the labels of {path} to be {images} integers, one for each "
                f"image, got {labels.dtype} of shape {labels.shape}"
            )
        target = torch.from_numpy(labels.astype(np.int64))
    if len(arrays) == 1:
        return replace(_split(name, train, shape, target), note=note)
    if not len(train) or not len(held_out):
        raise ValueError(
            f"{where}: expected at least one image in each part of {path}, "
            f"got {len(train)} and {len(held_out)}"
        )
    return Images(name, train, held_out, shape, target, note)


def _unit(where: str, path: Path, array: Any) -> tuple[Tensor, tuple[int, int], str]:
    """Return pixels in [0, 1], shape [N, F], the height and width of an image, and a note."""
    np = need("numpy", "reading images")
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{where}: expected the images of {path} to be grey, of shape (N, height, width) or "
            f"(N, F), got {array.shape}"
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: expected the images of {path} to be numbers, got {array.dtype}")
    if not array.size:
        raise ValueError(f"{where}: expected {path} to hold images, got shape {array.shape}")
    low, high = array.min(), array.max()
    whole = array.dtype.kind in "biu" or bool((array == np.trunc(array)).all())
    # A NaN compares false.
    if not (low >= 0 and high <= (255 if whole else 1)):
        allowed = {"f": "be whole numbers in [0, 255] or to lie in [0, 1]"}
        raise ValueError(
            f"{where}: expected the {array.dtype} pixels of {path} to "
            f"{allowed.get(array.dtype.kind, 'lie in [0, 255]')}, got values from {low} to {high}"
        )
    pixels, note = torch.from_numpy(array.astype(np.float32)).flatten(1), ""
    if high > 1:
        pixels /= 255.0
        if array.dtype.kind == "f":
            note = f"the {array.dtype} pixels are whole numbers up to {high:g}: divided by 255"
    side = math.isqrt(pixels.shape[1])
    flat = (side, side) if side * side == pixels.shape[1] else (1, pixels.shape[1])
    return pixels, array.shape[1:] if array.ndim == 3 else flat, note


def _split(
    name: str, pixels: Tensor, shape: tuple[int, int], labels: Tensor | None = None
) -> Images:
    """Hold out a fifth, chosen at random, the same in every run."""
    count = len(pixels)
    if count < 2:
        raise ValueError(
            f"load_images: expected {name} to hold at least 2 images, one to hold out, got {count}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SPLIT_SEED))
    held_out = max(1, round(HELD_OUT_SHARE * count))
    train, test = order[held_out:], order[:held_out]
    return Images(
        name, pixels[train], pixels[test], shape, None if labels is None else labels[test]
    )
