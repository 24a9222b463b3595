"""The loaders, on small files that the tests write, and on the ways in which files are wrong."""

from __future__ import annotations

import gzip
import struct

import pytest
import torch

from fastvi.app.images import binarise, binarise_held_out, load_images, read_idx

np = pytest.importorskip("numpy")

IDX_CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array) -> bytes:
    code = IDX_CODES[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def grey(count: int, height: int = 3, width: int = 5):
    return np.random.default_rng(0).integers(0, 256, (count, height, width), dtype=np.uint8)


def distinct(count: int):
    """Images of which each has a grey level of its own."""
    return np.repeat(np.arange(count, dtype=np.uint8)[:, None, None], 4, 1).repeat(4, 2)


def write(path, content: bytes, compressed: bool = False):
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


# ---- IDX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("dtype", IDX_CODES, ids=str)
def test_idx_holds_what_was_written(tmp_path, dtype, compressed):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    # The name says nothing: the content decides.
    path = write(tmp_path / "images", idx_bytes(array), compressed)
    read = read_idx(path)
    assert read.shape == array.shape and read.dtype == np.dtype(dtype).newbyteorder(">")
    assert (read == array).all()


GOOD = idx_bytes(grey(4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"\x89PNG" + GOOD, "magic number .* got 89 50 4e 47"),
        (b"\0\0\x07\x03" + GOOD[4:], "type one of 08, 09, .* got 00 00 07 03"),
        (GOOD[:9], "3 sizes .* got 5 bytes: the file is cut short"),
        (GOOD[:-1], "60 bytes of values for shape \\(4, 3, 5\\), got 59: the file is cut short"),
        (GOOD + b"\0", "got 61: something follows the last value"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"\0", "cut short"),
        (gzip.compress(GOOD)[:-12], "whole .gz file"),
        (gzip.compress(GOOD)[:20] + b"damage" + gzip.compress(GOOD)[26:], "whole .gz file"),
    ],
    ids=["empty", "png", "type", "sizes", "truncated", "trailing", "huge", "gz_cut", "gz_damaged"],
)
def test_bad_idx_is_named(tmp_path, content, words):
    path = write(tmp_path / "bad.idx", content)
    with pytest.raises(ValueError, match=words) as error:
        read_idx(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("separator", ["-", "."], ids=["dash", "dot"])
def test_mnist_folder(tmp_path, separator, compressed):
    ending = ".gz" if compressed else ""
    train, test, labels = grey(10), grey(4), np.array([3, 1, 2, 1], dtype=np.uint8)
    for stem, array in (("train-images", train), ("t10k-images", test), ("t10k-labels", labels)):
        name = f"{stem}{separator}idx{array.ndim}-ubyte{ending}"
        write(tmp_path / name, idx_bytes(array), compressed)
    images = load_images(tmp_path)
    assert images.shape == (3, 5)
    torch.testing.assert_close(images.train, torch.from_numpy(train).flatten(1) / 255.0)
    torch.testing.assert_close(images.held_out, torch.from_numpy(test).flatten(1) / 255.0)
    assert images.held_out_labels.tolist() == [3, 1, 2, 1]


def test_folder_without_a_test_part_is_split(tmp_path):
    write(tmp_path / "train-images-idx3-ubyte", idx_bytes(distinct(20)))
    write(tmp_path / "train-labels-idx1-ubyte", idx_bytes(np.arange(20, dtype=np.uint8)))
    images = load_images(tmp_path)
    assert (len(images.train), len(images.held_out)) == (16, 4)
    levels = (torch.cat([images.train, images.held_out])[:, 0] * 255).round().int()
    assert sorted(levels.tolist()) == list(range(20))
    # The labels went the way of their images.
    assert images.held_out_labels.tolist() == levels[16:].tolist()


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_one_idx_file(tmp_path, compressed):
    path = write(tmp_path / "some.images", idx_bytes(distinct(20)), compressed)
    images, again = load_images(path), load_images(str(path))
    assert images.shape == (4, 4) and len(images.held_out) == 4
    assert torch.equal(images.held_out, again.held_out)


# ---- .npz ---------------------------------------------------------------------------------------


def test_npz_as_keras_has_it(tmp_path):
    train, test = grey(6), grey(3)
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, x_train=train, y_train=np.arange(6), x_test=test, y_test=np.arange(3))
    images = load_images(path)
    torch.testing.assert_close(images.train, torch.from_numpy(train).flatten(1) / 255.0)
    torch.testing.assert_close(images.held_out, torch.from_numpy(test).flatten(1) / 255.0)
    assert images.held_out_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["images", "anything"], ids=str)
def test_npz_of_one_array(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: distinct(10)})
    assert len(load_images(tmp_path / "a.npz").held_out) == 2


@pytest.mark.parametrize(
    ("array", "largest"),
    [
        (np.array([[0, 1], [1, 0]], np.uint8), 1.0),
        (np.array([[0, 51], [255, 0]], np.int64), 1.0),
        (np.array([[0, 51], [102, 0]], np.uint16), 0.4),
        (np.array([[True, False], [False, True]]), 1.0),
        (np.array([[0.25, 0.5], [0.0, 0.75]], np.float64), 0.75),
        (np.array([[0.25, 0.5], [0.0, 0.75]], np.float16), 0.75),
        (np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), 1.0),
        (np.array([[0.0, 51.0], [102.0, 0.0]], np.float32), 0.4),
        (np.array([[0.0, 51.0], [255.0, 0.0]], np.float16), 1.0),
    ],
    ids=[
        "binary", "int64", "uint16", "bool", "float64", "float16", "binary_float32",
        "whole_float32", "whole_float16",
    ],
)  # fmt: skip
def test_pixels_end_in_the_unit_interval(tmp_path, array, largest):
    np.savez(tmp_path / "a.npz", array)
    images = load_images(tmp_path / "a.npz")
    pixels = torch.cat([images.train, images.held_out])
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels.max().item(), largest)
    assert pixels.min() == 0


def test_floats_that_are_divided_are_noted(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=grey(9).astype(np.float32))
    divided = load_images(path)
    assert divided.note.startswith("the float32 pixels are whole numbers up to 249")
    np.savez(path, x_train=grey(9).astype(float), x_test=grey(9).astype(float))
    assert "float64 pixels" in load_images(path).note
    for plain in (grey(9), grey(9) / 255.0):
        np.savez(path, images=plain)
        images = load_images(path)
        assert images.note == ""
        torch.testing.assert_close(images.train, divided.train)


def test_a_last_axis_of_one_channel_is_dropped(tmp_path):
    np.savez(tmp_path / "a.npz", images=grey(9))
    np.savez(tmp_path / "b.npz", images=grey(9)[..., None])
    plain, channel = (load_images(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert channel.shape == plain.shape == (3, 5)
    assert torch.equal(channel.train, plain.train)
    assert torch.equal(channel.held_out, plain.held_out)


def test_dark_test_images_get_the_scale_of_the_rest(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=grey(5), x_test=np.ones((2, 3, 5), np.uint8))
    held_out = load_images(tmp_path / "a.npz").held_out
    torch.testing.assert_close(held_out, torch.full((2, 15), 1 / 255))


@pytest.mark.parametrize(
    ("features", "shape"), [(16, (4, 4)), (15, (1, 15))], ids=["square", "row"]
)
def test_flat_images_are_square_where_they_can_be(tmp_path, features, shape):
    np.savez(tmp_path / "a.npz", np.zeros((3, features), np.float32))
    assert load_images(tmp_path / "a.npz").shape == shape


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": grey(2), "y": grey(2)}, r"array x_train .* or images, .* got x, y"),
        ({}, "got no arrays"),
        ({"images": np.zeros(5)}, r"shape \(N, height, width\) or \(N, F\), got \(5,\)"),
        ({"images": np.zeros((2, 3, 4, 3))}, r"to be grey, .* got \(2, 3, 4, 3\)"),
        ({"images": np.zeros((0, 3, 4))}, r"hold images, got shape \(0, 3, 4\)"),
        ({"images": np.zeros((1, 3, 4))}, "at least 2 images"),
        ({"images": np.array([["a"], ["b"]])}, "to be numbers"),
        ({"images": np.zeros((2, 3), complex)}, "to be numbers, got complex128"),
        ({"images": np.full((2, 3), 1.5)}, r"\[0, 1\], got values from 1.5 to 1.5"),
        ({"images": np.full((2, 3), 254.5)}, r"whole numbers in \[0, 255\] .* from 254.5"),
        ({"images": np.full((2, 3), 256.0)}, r"whole numbers in \[0, 255\] .* from 256.0"),
        ({"images": np.full((2, 3), np.inf)}, r"\[0, 1\], got values from inf"),
        ({"images": np.full((2, 3), np.nan)}, r"\[0, 1\], got values from nan"),
        ({"images": np.full((2, 3), -1)}, r"\[0, 255\], got values from -1"),
        ({"images": np.full((2, 3), 256)}, r"\[0, 255\], got values from 256"),
        ({"x_train": grey(3), "x_test": grey(2, 4)}, r"one size, got \(3, 5\) and \(4, 5\)"),
        ({"x_train": grey(3), "x_test": grey(0)}, "at least one image in each part"),
        ({"images": grey(3), "labels": np.arange(2)}, r"to be 3 integers, .* shape \(2,\)"),
        ({"images": grey(3), "labels": np.zeros(3)}, "to be 3 integers, .* got float64"),
        ({"images": np.array([{}, {}], dtype=object)}, "without pickled objects"),
    ],
    ids=[
        "missing", "no_arrays", "rank1", "colours", "empty", "one_image", "words", "complex",
        "too_bright", "not_whole", "too_bright_whole", "infinite", "nan", "negative", "wide",
        "two_sizes", "no_test", "labels_count",
        "labels_float", "pickle",
    ],
)  # fmt: skip
def test_bad_npz_is_named(tmp_path, arrays, words):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words):
        load_images(path)


def test_truncated_npz_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=grey(100))
    content = (tmp_path / "a.npz").read_bytes()
    for size in (10, len(content) // 2, len(content) - 10):
        path = write(tmp_path / "cut.npz", content[:size])
        with pytest.raises(ValueError, match=r"whole \.npz"):
            load_images(path)


# ---- other sources ------------------------------------------------------------------------------


def test_digits():
    pytest.importorskip("sklearn")
    images = load_images("digits")
    assert images.shape == (8, 8)
    assert (len(images.train), len(images.held_out)) == (1438, 359)
    pixels = torch.cat([images.train, images.held_out])
    assert pixels.min() == 0 and pixels.max() == 1
    assert sorted(set(images.held_out_labels.tolist())) == list(range(10))
    assert torch.equal(images.held_out, load_images("digits").held_out)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"P5 8 8 255\n", "starts with 50 35 20 38")],
    ids=["empty", "pgm"],
)
def test_another_format_is_named(tmp_path, content, words):
    path = write(tmp_path / "file", content)
    with pytest.raises(ValueError, match=words):
        load_images(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'digits' or the path of IDX files .*nowhere"):
        load_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_images(tmp_path)


def test_labels_are_not_images(tmp_path):
    path = write(tmp_path / "labels", idx_bytes(np.arange(5, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"got \(5,\)"):
        load_images(path)


def test_binarise_draws_with_the_grey_level():
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    drawn = binarise(levels.expand(100_000, 4), generator)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), levels, rtol=0.0, atol=0.01)
    assert drawn[:, 0].sum() == 0 and drawn[:, 3].sum() == 100_000


def test_held_out_pixels_do_not_follow_the_seed():
    pixels = torch.rand(50, 64)
    torch.manual_seed(1)
    first, state = binarise_held_out(pixels), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, binarise_held_out(pixels))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
