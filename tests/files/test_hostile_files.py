"""Files from strangers: refused in one line that names the file, at no cost, and nothing runs."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import zipfile

import pytest
import torch
from hostile_files import (
    allocates_at_most,
    gzip_bomb,
    hostile_checkpoint,
    hostile_pickle,
    idx_header,
    npy,
    npy_of,
    npy_text,
    npz,
    overlapping_npz,
    safetensors,
)

import fastvi
from fastvi.app.images import load_images, read_idx
from fastvi.app.networks import build_vae, load_run
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.files.arrays import MOST_UNPACKED, MOST_UNPACKED_TIMES

np = pytest.importorskip("numpy")

MANY = 2**32 - 1
# What reading in pieces and the error itself may take.
LITTLE = 3 * 2**20


def refused(path, words, *, load=load_images, memory=LITTLE):
    with allocates_at_most(memory), pytest.raises(ValueError, match=words) as error:
        load(path)
    said = str(error.value)
    assert str(path) in said and "\n" not in said and len(said) < 1000


# ---- IDX ----------------------------------------------------------------------------------------
IDX = {
    "a trillion images": (idx_header(10**6, 1000, 1000), "cut short"),
    "the largest sizes": (idx_header(MANY, MANY, MANY) + b"\0", "got 1: the file is cut short"),
    "sizes that wrap to zero": (idx_header(2**31, 2**31, 4) + b"\0", "cut short"),
    "sizes that wrap to the truth": (idx_header(2**31, 2**31, 4, 1) + bytes(16), "cut short"),
    "a size of zero": (idx_header(0, 28, 28), r"got shape \(0, 28, 28\)"),
    "a last size of zero": (idx_header(MANY, MANY, 0), "to hold values, got shape"),
    "rank 0": (idx_header(rank=0) + b"\1", "1 to 32 dimensions, got 0"),
    "rank 255": (idx_header(*[1] * 255) + b"\1", "1 to 32 dimensions, got 255"),
    "no sizes": (idx_header(rank=3), "3 sizes .* cut short"),
    "an unknown type": (idx_header(2, 2, code=0x0A) + bytes(4), "type one of"),
    "garbage after the end": (idx_header(2, 2, 2) + bytes(9), "something follows"),
}


@pytest.mark.parametrize("load", [read_idx, load_images], ids=["read_idx", "load_images"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("content", "words"), IDX.values(), ids=IDX)
def test_an_idx_that_lies_is_refused(tmp_path, content, words, packed, load):
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(content) if packed else content)
    if packed and ("got 1:" in words or "cut short" in words) and len(content) > 8:
        words = f"{words}|to unpack to at most"
    refused(path, words, load=load)


BOMBS = {
    # The size is true, and far beyond what so small a file may ask for.
    "true": (
        lambda: gzip_bomb(2**28, idx_header(2**14, 128, 128)),
        "to unpack to at most 67108864",
    ),
    "far longer than it says": (
        lambda: gzip_bomb(2**28, idx_header(4, 4, 4)),
        "got 65 or more: something follows",
    ),
    "many members": (
        lambda: gzip_bomb(2**24, idx_header(2, 2), times=200),
        "got 5 or more: something follows",
    ),
    "no idx at all": (lambda: gzip_bomb(2**28), "type one of|1 to 32 dimensions"),
    "garbage after the last member": (
        lambda: gzip.compress(idx_header(2, 2, 2) + bytes(8)) + b"garbage",
        "whole .gz file",
    ),
    "a wrong checksum": (
        lambda: gzip.compress(idx_header(2, 2, 2) + bytes(8))[:-8] + bytes(8),
        "whole .gz file",
    ),
    "half a header": (lambda: b"\x1f\x8b", "whole .gz file"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "words"), BOMBS.values(), ids=BOMBS)
def test_a_gzip_bomb_is_refused_without_unpacking_it(tmp_path, make, words):
    path = tmp_path / "images.gz"
    path.write_bytes(make())
    refused(path, words)


@pytest.mark.slow
def test_what_a_small_file_may_unpack_to(tmp_path):
    rows = MOST_UNPACKED // 2**20
    path = tmp_path / "white.gz"
    path.write_bytes(gzip_bomb(MOST_UNPACKED, idx_header(rows, 1024, 1024)))
    assert path.stat().st_size * MOST_UNPACKED_TIMES < MOST_UNPACKED
    assert read_idx(path).shape == (rows, 1024, 1024)


# ---- .npz ---------------------------------------------------------------------------------------
def _encrypted():
    content = bytearray(npz(images=npy_of(np.zeros((4, 2, 2)))))
    content[6] |= 1  # the flag of the local header, and of the directory
    content[content.rindex(b"PK\1\2") + 8] |= 1
    return bytes(content)


def _size_in_directory(size: int):
    content = bytearray(npz(images=npy_of(np.zeros((4, 2, 2), np.uint8))))
    at = content.rindex(b"PK\1\2") + 24
    content[at : at + 4] = size.to_bytes(4, "little")
    return bytes(content)


_FLOATS = "'<f4'"
NPZ = {
    "huge shape": (lambda: npz(images=npy(_FLOATS, "(1000000000000, 28, 28)")), "got 0"),
    "huge shape, stored": (
        lambda: npz(zipfile.ZIP_STORED, images=npy(_FLOATS, "(1000000, 28, 28)", bytes(100))),
        "needs 3136000000 bytes of values, got 100",
    ),
    "shape that wraps": (lambda: npz(images=npy(_FLOATS, f"({2**32}, {2**32}, 0)")), "the shape"),
    "a shape of many digits": (lambda: npz(images=npy(_FLOATS, f"({'9' * 4000},)")), "the shape"),
    "negative": (lambda: npz(images=npy(_FLOATS, "(-1, 2, 2)", bytes(16))), "the shape"),
    "two negatives": (lambda: npz(images=npy(_FLOATS, "(-4, -2, 2)", bytes(64))), "the shape"),
    "truth as a size": (lambda: npz(images=npy(_FLOATS, "(True, 2, 2)", bytes(16))), "the shape"),
    "a size of 1.5": (lambda: npz(images=npy(_FLOATS, "(1.5, 2)", bytes(12))), "header"),
    "sizes as text": (lambda: npz(images=npy(_FLOATS, "'22'", bytes(12))), "header"),
    "rank 100": (lambda: npz(images=npy(_FLOATS, str((1,) * 100), bytes(4))), "the shape"),
    "too few values": (lambda: npz(images=npy(_FLOATS, "(4, 2, 2)", bytes(63))), "64 bytes .*63"),
    "too many values": (lambda: npz(images=npy(_FLOATS, "(4, 2, 2)", bytes(65))), "64 bytes .*65"),
    "structured": (
        lambda: npz(images=npy("[('a', '<f4'), ('b', '<i4')]", "(4, 2)", bytes(64))),
        "to be numbers",
    ),
    "an array in an array": (
        lambda: npz(images=npy("('<f4', (2, 2))", "(4,)", bytes(64))),
        "header|to be numbers",
    ),
    "values of no bytes": (lambda: npz(images=npy("'|V0'", "(1000000000, 1000)")), "to be numbers"),
    "text of no bytes": (lambda: npz(images=npy("'<U0'", "(1000000000, 1000)")), "to be numbers"),
    "dates": (lambda: npz(images=npy("'<M8[s]'", "(4, 2, 2)", bytes(128))), "to be numbers"),
    "an unknown type": (lambda: npz(images=npy("'<q9'", "(4, 2, 2)", bytes(128))), "header"),
    "a type that is code": (
        lambda: npz(images=npy("__import__('os').mkdir('x')", "(4, 2, 2)", bytes(64))),
        "header",
    ),
    "a header of 4 GB": (
        lambda: npz(images=npy_text(b" " * 2**26, version=2, length=2**32 - 1)),
        "4294967295 bytes long",
    ),
    "a header of many brackets": (lambda: npz(images=npy_text(b"(" * 9000)), "header"),
    "a header that is cut": (lambda: npz(images=b"\x93NUMPY\1\0\xff\x00{"), "header"),
    "no header": (lambda: npz(images=b""), "does not start as"),
    "version 3": (lambda: npz(images=npy(_FLOATS, "(1,)", bytes(4), version=3)), "of version 1 or"),
    "no array": (lambda: npz(images=b"text"), "does not start as"),
    "a true bomb": (
        lambda: npz(images=npy("'|u1'", "(300, 1000, 1000)", bytes(3 * 10**8))),
        "to unpack to at most 67108864",
    ),
    "overlapping members": (lambda: overlapping_npz(100, 10**6), "differ|[Oo]verlap"),
    "encrypted": (_encrypted, "encrypted"),
    "packed by LZMA": (
        lambda: npz(zipfile.ZIP_LZMA, images=npy_of(np.zeros((4, 2, 2)))),
        "packed by method 14",
    ),
    "packed by bzip2": (
        lambda: npz(zipfile.ZIP_BZIP2, images=npy_of(np.zeros((4, 2, 2)))),
        "packed by method 12",
    ),
    "a directory that says more": (lambda: _size_in_directory(2**31), "bytes of values"),
    "a directory that says less": (lambda: _size_in_directory(10), "CRC|header|bytes of values"),
    "nothing but an end": (lambda: b"PK\5\6" + bytes(18), "no arrays"),
    "no end": (lambda: b"PK\3\4" + bytes(1000), "whole .npz"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "words"), NPZ.values(), ids=NPZ)
@pytest.mark.filterwarnings("ignore:Reading `.npy` or `.npz`:UserWarning")
def test_an_npz_that_lies_is_refused(tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "images.npz"
    path.write_bytes(make())
    refused(path, words)
    assert [entry.name for entry in tmp_path.iterdir()] == ["images.npz"]


def test_several_arrays_share_one_allowance(tmp_path):
    half = npy("'|u1'", "(40, 1000, 1000)", bytes(4 * 10**7))
    path = tmp_path / "images.npz"
    path.write_bytes(npz(x_train=half, x_test=half))
    refused(path, "to unpack to at most 27108864", memory=5 * 10**7)


@pytest.mark.parametrize("asked", ["images", "other"], ids=["asked for", "beside"])
def test_an_array_of_objects_is_refused_and_not_unpickled(tmp_path, asked):
    marker = tmp_path / "marker"
    hostile = npy("'|O'", "(1,)", hostile_pickle(marker))
    members = {"images": npy_of(np.zeros((4, 2, 2))), asked: hostile}
    path = tmp_path / "images.npz"
    path.write_bytes(npz(**members))
    refused(path, "without pickled objects")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["pickle", "checkpoint", "npy"], ids=["pickle", "checkpoint", "npy of objects"]
)
def test_a_pickle_is_no_data(tmp_path, name):
    marker = tmp_path / "marker"
    content = {
        "pickle": hostile_pickle(marker),
        "checkpoint": hostile_checkpoint(marker),
        "npy": npy("'|O'", "(1,)", hostile_pickle(marker)),
    }[name]
    path = tmp_path / "images"
    path.write_bytes(content)
    refused(path, "load_images: expected")
    assert not marker.exists()


@pytest.mark.parametrize("order", ["C", "F"], ids=["rows first", "columns first"])
@pytest.mark.parametrize("dtype", [">u2", "<f4", ">f8", "?", "i1"], ids=str)
def test_honest_arrays_are_read_as_numpy_reads_them(tmp_path, order, dtype):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (9, 3, 5)), dtype, order=order)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", images=array)
        images = load_images(tmp_path / "a.npz")
        pixels = torch.cat([images.train, images.held_out])
        expected = torch.from_numpy(array.astype(np.float32)).flatten(1)
        assert sorted(pixels.tolist()) == sorted(expected.tolist())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        for load in (load_images, read_idx):
            refused(path, "to be a file, got a folder, a pipe or a device", load=load)
    refused(tmp_path, "to be a file", load=read_idx)


# ---- the folder of a run ------------------------------------------------------------------------
SMALL = Settings(epochs=1, num_samples=2, hidden=8, latent_features=2)


@pytest.fixture
def run(tmp_path):
    """A run folder without the training."""
    folder = RunFolder(tmp_path, "run")
    folder.create()
    data = {"name": "digits", "height": 8, "width": 8, "train_images": 9, "held_out_images": 3}
    settings = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    folder.write_settings({"settings": settings, "data": data})
    folder.save_weights(build_vae(64, SMALL).state_dict())
    assert load_run(folder.path).sample(3).shape == (3, 64)
    return folder.path


_WRONG = {
    "a word": ("settings", "hidden", "8", "hidden to be int"),
    "a fraction": ("settings", "held_out", 3.5, "held_out to be int"),
    "truth": ("settings", "batch_size", True, "batch_size to be int"),
    "a list": ("settings", "estimator", ["dreg"], "estimator to be str"),
    "none": ("settings", "likelihood", None, "likelihood to be str"),
    "an object": ("settings", "device", {}, "device to be str"),
    "not a number": ("settings", "learning_rate", float("nan"), "learning_rate to be positive"),
    "infinite": ("settings", "learning_rate", float("inf"), "learning_rate to be positive"),
    "many hidden": ("settings", "hidden", 10**15, "hidden to be at most"),
    "an unknown setting": ("settings", "colour", "blue", "also colour"),
    "an unknown fact": ("data", "path", "../../etc/passwd", "also path"),
    "a negative height": ("data", "height", -8, "height to be from 1"),
    "a height of 0": ("data", "height", 0, "height to be from 1"),
    "a height beyond 64 bits": ("data", "height", 2**64, "height to be from 1"),
    "a width that overflows": ("data", "width", 2**62, "settings.json"),
    "a name that is none": ("data", "name", 3, "name to be str"),
    "settings that are none": (None, "settings", [], "settings to be an object"),
    "data that are none": (None, "data", "digits", "data to be an object"),
}


@pytest.mark.parametrize(("part", "key", "value", "words"), _WRONG.values(), ids=_WRONG)
def test_settings_that_no_run_wrote_are_refused(run, part, key, value, words):
    path = run / "settings.json"
    described = json.loads(path.read_text())
    (described[part] if part else described)[key] = value
    path.write_text(json.dumps(described))
    refused(path, words, load=lambda path: load_run(path.parent))


# Of these a run that was written before there were any has none, and goes on without.
_LATER = ("backward_samples", "variance_growth")


@pytest.mark.parametrize("key", [k for k in Settings.__dataclass_fields__ if k not in _LATER])
def test_a_missing_setting_is_named(run, key):
    path = run / "settings.json"
    described = json.loads(path.read_text())
    del described["settings"][key]
    path.write_text(json.dumps(described))
    refused(path, f"got no {key}", load=lambda path: load_run(path.parent))


_TEXTS = {
    "nested": (b"[" * 10**5, "RecursionError|JSON"),
    "long": (b'{"a": "' + b"a" * 2**24 + b'"}', "at most 1048576 bytes"),
    "many digits": (b'{"settings": ' + b"9" * 10**5 + b"}", "to be JSON"),
    "a key twice": (b'{"settings": {}, "settings": {}}', "twice"),
    "no text": (b"\xff\xfe\0", "to be JSON"),
    "a pickle": (hostile_pickle("marker"), "to be JSON"),
}


@pytest.mark.parametrize(("content", "words"), _TEXTS.values(), ids=_TEXTS)
def test_settings_that_are_no_json_are_refused(run, content, words):
    path = run / "settings.json"
    path.write_bytes(content)
    refused(path, words, load=lambda path: load_run(path.parent))


def _tensor(shape, end, dtype="F32", start=0):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps({"decoder.0.weight": entry}).encode()


_WEIGHTS = {
    "a header of 2^63 bytes": safetensors(b"{}", length=2**63),
    "a header of 99 MB": safetensors(b"{}", length=99 * 10**6),
    "a huge shape": safetensors(_tensor([10**12], 4 * 10**12), bytes(100)),
    "a shape that wraps": safetensors(_tensor([2**62, 4], 0)),
    "more bytes than there are": safetensors(_tensor([8, 2], 64), bytes(60)),
    "bytes that belong to nothing": safetensors(_tensor([8, 2], 64), bytes(80)),
    "offsets that run backwards": safetensors(_tensor([8, 2], 0, start=64), bytes(64)),
    "another shape": safetensors(_tensor([2, 8], 64), bytes(64)),
    "an unknown type": safetensors(_tensor([8, 2], 64, "F31"), bytes(64)),
    "a nested header": safetensors(b"[" * 10**4),
    "nothing": b"",
    "4 bytes": b"\0\0\0\0",
    "far too long": bytes(3 * 2**20),
}


@pytest.mark.parametrize("content", _WEIGHTS.values(), ids=_WEIGHTS)
def test_weights_that_lie_are_refused(run, content):
    path = run / "weights.safetensors"
    path.write_bytes(content)
    refused(path, "weights of the model", load=lambda path: load_run(path.parent), memory=2**23)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32], ids=str)
def test_weights_of_another_type_are_refused(run, dtype):
    state = {name: x.to(dtype) for name, x in build_vae(64, SMALL).state_dict().items()}
    folder = RunFolder(run.parent, run.name, overwrite=True)
    folder.save_weights(state)
    path = run / "weights.safetensors"
    refused(path, f"of {dtype}", load=lambda path: load_run(path.parent), memory=2**23)


@pytest.mark.parametrize(
    "make", [hostile_pickle, hostile_checkpoint], ids=["pickle", "checkpoint of torch"]
)
def test_pickled_weights_are_refused_and_not_unpickled(run, tmp_path, make):
    marker = tmp_path / "marker"
    path = run / "weights.safetensors"
    path.write_bytes(make(marker))
    refused(path, "weights of the model", load=lambda path: load_run(path.parent), memory=2**23)
    assert not marker.exists()


# ---- checkpoints --------------------------------------------------------------------------------
def _fit(path):
    guide = fastvi.guides.MeanFieldGaussian({"z": (2,)})

    def model(z, x):
        z = z["z"]
        return -(z.square().sum(-1) + (x[:, 0] - z[..., :1]).square().sum(-1)) / 2

    optimizer = torch.optim.SGD(guide.parameters(), lr=0.01)
    svi = fastvi.SVI(model, guide, optimizer, fastvi.objectives.ELBO(2))
    return svi.fit(torch.ones(4, 1), epochs=1, checkpoint=path, resume=True)


@pytest.mark.parametrize(
    "make", [hostile_pickle, hostile_checkpoint], ids=["pickle", "checkpoint of torch"]
)
def test_a_hostile_checkpoint_is_refused_and_not_unpickled(tmp_path, make):
    marker = tmp_path / "marker"
    path = tmp_path / "run.pt"
    path.write_bytes(make(marker))
    with pytest.raises(ValueError, match="SVI.fit: expected .* to be a checkpoint") as error:
        _fit(path)
    assert str(path) in str(error.value)
    assert not marker.exists()


def test_a_hostile_pickle_is_hostile(tmp_path):
    # The other tests would pass by an innocent one.
    pickle.loads(hostile_pickle(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()


def test_the_command_names_a_hostile_file_in_one_line(tmp_path, command):
    marker = tmp_path / "marker"
    path = tmp_path / "images.npz"
    path.write_bytes(npz(images=npy("'|O'", "(1,)", hostile_pickle(marker))))
    status, _, error = command("train", "--data", path, "--runs", tmp_path / "runs")
    assert status == 2 and error.count("\n") == 1 and str(path) in error
    assert not marker.exists() and not (tmp_path / "runs").exists()
