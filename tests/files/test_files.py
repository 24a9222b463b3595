"""Files that are whole or not there: full disks, read-only folders, broken files."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from quick import quick_in
from torch import nn
from torch.distributions import Normal

import fastvi
from fastvi.files import saved as files
from fastvi.objectives import ELBO

pytest.importorskip("safetensors")
from fastvi.app.images import Images
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.app.training import train

pytestmark = pytest.mark.native
X = torch.linspace(-2, 2, 20)
WHAT = "a saved state"


def svi(features: int = 1, **options) -> fastvi.SVI:
    torch.manual_seed(0)
    slope = nn.Linear(1, features).to(options.pop("dtype", torch.float32))
    optimizer = options.pop("optimizer", torch.optim.Adam)(slope.parameters(), 0.01)

    def guide(x):
        return Normal(slope(x[:, None].to(slope.weight)).sum(-1), 0.5)

    return fastvi.SVI(lambda z, x: -((z - x) ** 2), guide, optimizer, ELBO(2))


def fit(path: Path, epochs: int, **options) -> list:
    return svi(**options).fit(X, epochs, batch_size=5, checkpoint=path, resume=True)


def images() -> Images:
    pixels = torch.rand(30, 16, generator=torch.Generator().manual_seed(0))
    return Images("noise", pixels[:20], pixels[20:], (4, 4))


def train_in(folder: Path, epochs: int, resume: bool = True) -> None:
    settings = Settings(epochs, num_samples=2, hidden=8, latent_features=2, batch_size=10)
    run = RunFolder(folder.parent, folder.name, resume=resume)
    run.create()
    train(images(), settings, run)


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def in_a_child(work) -> str:
    """What a function says, in a process of its own: it sets limits that stay."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # The threads of the parent are not there.
            torch.set_num_threads(1)
            said = str(work())
        except BaseException as error:  # whatever it is, it is told
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


# ---- writing -------------------------------------------------------------------------------------
def test_a_file_is_replaced_and_links_stay(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link.pt"
    link.symlink_to(tmp_path / "disk" / "state.pt")
    for number in range(2):
        files.save(link, {"number": number, "tensor": torch.full((3,), number)})
    assert link.is_symlink()
    assert files.load("here", link, WHAT)["number"] == 1
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["state.pt"]


@pytest.mark.parametrize("at", ["open", "write", "fsync", "replace"], ids=str)
def test_a_full_disk_leaves_the_file_before(tmp_path: Path, monkeypatch, at: str):
    path = tmp_path / "run.pt"
    fit(path, 1)
    before = content_of(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if at == "open":
            opened = Path.open
            patched.setattr(Path, "open", lambda self, mode="r", *rest, **named: (
                full() if "x" in mode else opened(self, mode, *rest, **named)))  # fmt: skip
            # The look at the folder before the first step would see it too.
            patched.setattr("fastvi.svi.fitting.check_place", lambda *_: None)
        elif at == "write":
            patched.setattr(torch, "save", lambda content, file: (file.write(b"half"), full()))
        else:
            patched.setattr(os, at, full)
        with pytest.raises(OSError, match="run.pt.*No space left on device") as caught:
            fit(path, 2)
    assert caught.value.errno == errno.ENOSPC
    assert content_of(tmp_path) == before
    assert len(fit(path, 2)) == 2


@pytest.mark.parametrize(
    "room", quick_in({f"{n} bytes": n for n in (0, 1, 600, 3000)}, "0 bytes", "600 bytes")
)
@pytest.mark.parametrize("what", ["SVI.fit", "train"], ids=str)
def test_a_file_that_may_not_grow(tmp_path: Path, what: str, room: int):
    """The system's own refusal, in the middle of torch's writing."""
    path = tmp_path / "run.pt" if what == "SVI.fit" else tmp_path / "run"
    run = fit if what == "SVI.fit" else train_in
    run(path, 3)
    folder = tmp_path if what == "SVI.fit" else path
    before = content_of(folder)
    if what == "train":
        # As if it had stopped after two epochs of three.
        state = files.load("here", path / "checkpoint.pt", WHAT)
        assert len(state["epochs"]) == 3

    def limited() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        run(path, 4) if what == "SVI.fit" else files.save(path / "checkpoint.pt", state)
        return "it was written"

    said = in_a_child(limited)
    name = "run.pt" if what == "SVI.fit" else "checkpoint.pt"
    assert said.startswith("OSError: could not write") and name in said and "too large" in said
    assert "\n" not in said
    assert content_of(folder) == before


def test_metrics_of_a_full_disk_have_no_half_line(tmp_path: Path):
    path = tmp_path / "metrics.csv"
    files.append(path, b"epoch,bound\n1,-3.5\n")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25, 25))
        files.append(path, b"2,-3.25\n3,-3.125\n")

    assert "could not write" in in_a_child(limited)
    assert path.read_bytes() == b"epoch,bound\n1,-3.5\n"


def nobody() -> None:
    """Root may write anywhere."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


@pytest.mark.parametrize("what", ["SVI.fit", "train"], ids=str)
def test_a_read_only_folder_is_noticed_before_the_first_step(what: str):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run").mkdir()
        (folder / "run").chmod(0o555)

        def work() -> None:
            nobody()
            if what == "SVI.fit":
                checked = svi()
                checked.step = lambda batch: pytest.fail("a step was taken")
                checked.fit(X, checkpoint=folder / "run" / "run.pt")
            else:
                train_in(folder / "run", 1)

        said = in_a_child(work)
        assert said.startswith("PermissionError") and "in a folder that can be written to" in said
        assert str(folder / "run") in said and "Permission denied" in said


def test_other_things_in_the_way(tmp_path: Path):
    (tmp_path / "file").write_text("a letter")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="SVI.fit: expected checkpoint to be in a folder"):
        fit(tmp_path / "file" / "run.pt", 1)
    with pytest.raises(IsADirectoryError, match="expected checkpoint to be a file, got the folder"):
        fit(tmp_path / "folder", 1)


def test_what_a_kill_leaves_is_not_mistaken_and_is_removed(tmp_path: Path):
    """Between the write and the rename, and in the middle of the write."""
    path = tmp_path / "run.pt"
    for at in ("os.fsync", "os.replace", "torch.save"):
        fit(path, 1) if not path.exists() else None
        before = path.read_bytes()

        def killed(at=at) -> None:
            torch.set_num_threads(1)
            module, name = at.split(".")
            genuine = getattr(sys.modules[module], name)

            def die(*arguments):
                if at == "torch.save":
                    arguments[1].write(b"half of it")
                    arguments[1].flush()
                os.kill(os.getpid(), signal.SIGKILL)
                genuine(*arguments)

            setattr(sys.modules[module], name, die)
            fit(path, 3)

        child = os.fork()
        if child == 0:
            killed()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert sorted(file.name for file in tmp_path.iterdir()) == [".run.pt.part", "run.pt"]
        assert path.read_bytes() == before
        assert len(fit(path, 1)) == 1
        assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_only_what_can_be_read_again_is_written(tmp_path: Path):
    with pytest.raises(TypeError, match=r"the content\['rule'\] to be of tensors.*got function"):
        files.save(tmp_path / "state.pt", {"rule": lambda: None})
    assert not list(tmp_path.iterdir())


# ---- reading -------------------------------------------------------------------------------------
class Runs:
    def __reduce__(self):
        return (os.system, ("false",))


def cut(path: Path, at: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * at)])


def flip(path: Path) -> None:
    """One bit of a number."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as parts:
        part = next(info for info in parts.infolist() if info.filename.endswith("data/1"))
        name = len(part.filename)
    start = int.from_bytes(content[part.header_offset + 28 : part.header_offset + 30], "little")
    content[part.header_offset + 30 + name + start] ^= 1
    path.write_bytes(content)


def compress(path: Path) -> None:
    with zipfile.ZipFile(path) as parts:
        content = {name: parts.read(name) for name in parts.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as parts:
        for name, part in content.items():
            parts.writestr(name, part)


def change(path: Path, **parts) -> None:
    content = torch.load(path, weights_only=True)
    for name, part in parts.items():
        if part is None:
            del content[name]
        else:
            content[name] = part
    torch.save(content, path)


BROKEN = {
    "empty": (lambda path: path.write_bytes(b""), "got an empty file"),
    "a byte": (lambda path: path.write_bytes(b"P"), "got a file that is cut off"),
    "cut in the middle": (lambda path: cut(path, 0.5), "got a file that is cut off"),
    "cut at the end": (lambda path: cut(path, 0.999), "got a file that is cut off"),
    "one bit": (flip, "got a damaged file"),
    "a letter": (lambda path: path.write_text("a letter"), "got a file of another kind"),
    "compressed": (compress, "another kind: it is compressed"),
    "runs code": (lambda path: torch.save({"format": 3, "a": Runs()}, path),
                  "something else than tensors and plain values"),
    "other content": (lambda path: torch.save([1, 2], path), "it holds something else"),
    "another version": (lambda path: change(path, format=2), "of format 3, got format 2"),
    "a part less": (lambda path: change(path, state=None), "got one without state"),
    "a part of another kind": (lambda path: change(path, parameters=3), "as SVI.fit writes it"),
    "another optimizer's state": (lambda path: change(path, optimizers=[{"kind": "Adam"}]),
                                  "as SVI.fit writes it, got KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN, ids=str)
def test_a_broken_checkpoint_is_named_in_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "run.pt"
    fit(path, 1)
    spoil, says = BROKEN[kind]
    spoil(path)
    before = content_of(tmp_path)
    with pytest.raises(ValueError, match=says) as caught:
        fit(path, 2)
    said = str(caught.value)
    assert said.startswith("SVI.fit: expected ") and str(path) in said and "\n" not in said
    assert "weights_only" not in said
    assert content_of(tmp_path) == before


OTHERS = {
    "shapes": ({"features": 2}, r"svi.guide.network.slope.weight with shape \[2, 1\], got \[1, 1"),
    "type": ({"dtype": torch.float64}, r"slope.weight with dtype torch.float64, got torch.float32"),
    "optimizer": ({"optimizer": torch.optim.SGD}, "with optimizer = SGD, got Adam"),
}


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_a_checkpoint_of_another_model_is_named_and_changes_nothing(tmp_path: Path, kind: str):
    path = tmp_path / "run.pt"
    fit(path, 1)
    before = content_of(tmp_path)
    options, says = OTHERS[kind]
    other = svi(**options)
    parameters = [p.detach().clone() for p in other.optimized()]
    with pytest.raises(ValueError, match=says):
        other.fit(X, 2, batch_size=5, checkpoint=path, resume=True)
    for a, b in zip(parameters, other.optimized(), strict=True):
        assert torch.equal(a, b)
    assert content_of(tmp_path) == before


def test_a_checkpoint_of_other_modules_is_named(tmp_path: Path):
    path = tmp_path / "run.pt"
    fit(path, 1)
    other = svi()
    scale = nn.Linear(1, 1)
    model = other.model
    other.model = lambda z, x: model(z, x) + scale(x[:, None])[:, 0]
    with pytest.raises(ValueError, match=r"to hold the modules .*'svi.model.scale'"):
        other.fit(X, 2, batch_size=5, checkpoint=path, resume=True)


# ---- fastvi train --------------------------------------------------------------------------------
def test_train_names_what_it_cannot_go_on_from(tmp_path: Path):
    folder = tmp_path / "run"
    train_in(folder, 2, resume=False)
    with pytest.raises(ValueError, match="go on with the epochs of the run in .*, 2, got 3"):
        train_in(folder, 3)
    for kind in ("empty", "cut in the middle", "one bit", "runs code"):
        train_in(tmp_path / kind, 2, resume=False)
        BROKEN[kind][0](tmp_path / kind / "checkpoint.pt")
        before = content_of(tmp_path / kind)
        with pytest.raises(ValueError, match=f"train: expected .*{BROKEN[kind][1]}"):
            train_in(tmp_path / kind, 2)
        assert content_of(tmp_path / kind) == before
    (folder / "checkpoint.pt").unlink()
    with pytest.raises(FileExistsError, match=r"nothing to resume from: no checkpoint.pt"):
        train_in(folder, 2)
    with pytest.raises(ValueError, match="overwrite or resume, got both"):
        RunFolder(tmp_path, "run", overwrite=True, resume=True)
