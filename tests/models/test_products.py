"""The choice of the library that multiplies for a Linear on the CPU."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastvi._ext import C
from fastvi.app.info import info_rows

pytestmark = pytest.mark.native
ROWS, IN, OUT = 1000, 64, 48  # of one class: 512 to 1023, 64 to 127, 32 to 63
LAYER = ("none", True, True)


def choose(rows=ROWS, width=IN, out=OUT, layer=LAYER) -> bool:
    return C.layer_by_onednn(rows, width, out, *layer)


def chosen() -> dict[tuple, bool]:
    return {
        (*shape, rows, width, out): onednn
        for *shape, rows, width, out, onednn, _, _ in C.product_choices()
    }


# ---- by measurement ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("times", "onednn"),
    [
        ((1.0, 0.5), True),
        ((1.0, 0.9), True),
        ((1.0, 0.95), False),
        ((1.0, 1.0), False),
        ((1.0, 3.0), False),
    ],
    ids=["twice as fast", "a ninth faster", "noise", "alike", "slower"],
)
def test_the_choice_follows_the_measurement(times, onednn: bool, products):
    products.clock.times = lambda shape: times
    assert choose() is onednn
    assert list(chosen().values()) == [onednn] * 3


@pytest.mark.parametrize("product", ["forward", "grad_input", "grad_weight"])
def test_each_product_has_a_choice_of_its_own(product: str, products):
    products.clock.times = lambda shape: (1.0, 0.5 if shape[0] == product else 2.0)
    assert choose()
    assert {name: onednn for (name, *_), onednn in chosen().items()} == {
        name: name == product for name in ("forward", "grad_input", "grad_weight")
    }
    assert choose(layer=("none", False, False)) is (product == "forward")
    assert choose(layer=("none", True, False)) is (product != "grad_weight")


def test_a_class_is_measured_once_and_keeps_its_choice(products):
    products.clock.times = lambda shape: (1.0, 0.5)
    assert choose()
    assert [shape[2:] for shape in products.clock.asked] == [(ROWS, IN, OUT)] * 3
    products.clock.times = lambda shape: (0.5, 1.0)
    assert choose() and choose(513) and choose(1023) and choose(ROWS, 127, 63)
    assert len(products.clock.asked) == 3
    assert not choose(1024) and not choose(ROWS, 128) and not choose(ROWS, IN, 64)
    assert not choose(layer=("tanh", False, False))
    assert choose()


def test_many_rows_are_one_class(products):
    choose(4096)
    asked = len(products.clock.asked)
    for rows in (5000, 10_000, 10**9):
        choose(rows)
    assert len(products.clock.asked) == asked


@pytest.mark.parametrize("setting", [None, "onednn"], ids=["auto", "onednn"])
def test_small_products_are_torchs(setting, products):
    products.restart(setting)
    products.clock.times = lambda shape: (1.0, 0.1)
    assert not choose(127, 128, 64) and choose(128, 128, 64)
    assert not choose(0, 10**6, 10**6)


def test_deterministic_algorithms_are_not_chosen_by_a_clock(products):
    products.clock.times = lambda shape: (1.0, 0.1)
    torch.use_deterministic_algorithms(True)
    try:
        assert not choose() and not products.clock.asked
        products.restart("onednn")
        assert choose()
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_onednn_all_is_torchs(products):
    products.restart("onednn")
    with torch.backends.mkldnn.flags(enabled=False):
        assert not choose()
    assert choose()


# ---- the real clock ------------------------------------------------------------------------------
class Watching(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_measurement_is_seen_by_nobody(products):
    C.restart_products()
    state = torch.get_rng_state()
    with Watching() as watching, torch.autocast("cpu", torch.bfloat16):
        choose(layer=("tanh", True, True))
    assert not watching.seen
    assert torch.equal(torch.get_rng_state(), state)
    choices = C.product_choices()
    assert len(choices) == 3
    for *_, onednn, by_torch, by_onednn in choices:
        # On a busy machine it may be left open.
        assert math.isnan(by_torch) or (0 < by_torch < 60 and 0 < by_onednn < 60)
        assert onednn is (by_onednn * 1.1 < by_torch)


# ---- the file ------------------------------------------------------------------------------------
def test_the_next_process_chooses_alike(products, tmp_path):
    products.clock.times = lambda shape: (1.0, 0.5)
    choose()
    (file,) = (tmp_path / "fastvi").iterdir()
    products.restart()
    products.clock.times = lambda shape: (0.5, 1.0)
    asked = len(products.clock.asked)
    assert choose() and list(chosen().values()) == [True] * 3
    assert len(products.clock.asked) == asked
    assert file.read_text().count("onednn") == 3


def test_of_two_processes_at_once_the_first_one_chooses(products, tmp_path):
    choose(2048)
    (file,) = (tmp_path / "fastvi").iterdir()

    def other_process_was_faster(shape) -> tuple[float, float]:
        with file.open("a") as out:
            out.write(f"\n{shape[0]} none 512 64 32 onednn 2e-3 1e-3 ;\n")
        return 1.0, 2.0

    products.clock.times = other_process_was_faster
    assert choose()
    assert [onednn for shape, onednn in chosen().items() if shape[2] == 512] == [True] * 3


DAMAGE = {
    "empty": b"",
    "binary": bytes(range(256)) * 64,
    "cut off": b"\nforward none 512 64 32 onednn 1e-3",
    "no end": b"\nforward none 512 64 32 onednn 1e-3 5e-4",
    "words": b"forward none many 64 32 onednn 1e-3 5e-4 ;\n",
    "a product": b"backward none 512 64 32 onednn 1e-3 5e-4 ;\n",
    "an activation": b"forward elu 512 64 32 onednn 1e-3 5e-4 ;\n",
    "a library": b"forward none 512 64 32 blis 1e-3 5e-4 ;\n",
    "no class": b"forward none 513 64 32 onednn 1e-3 5e-4 ;\n",
    "negative": b"forward none 512 64 32 onednn -1e-3 5e-4 ;\n",
    "not a number": b"forward none 512 64 32 onednn nan 5e-4 ;\n",
    "huge": b"forward none 99999999999999999999999 64 32 onednn 1e-3 5e-4 ;\n",
    "more": b"forward none 512 64 32 onednn 1e-3 5e-4 ; rm\n",
    "a long line": b"x" * (1 << 22),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_counts_for_nothing(damage: bytes, products, tmp_path):
    choose(2048)
    (file,) = (tmp_path / "fastvi").iterdir()
    file.write_bytes(damage)
    products.restart()
    products.clock.asked.clear()
    assert not choose() and len(products.clock.asked) == 3
    assert list(chosen().values()) == [False] * 3


def test_what_is_whole_in_a_damaged_file_counts(products, tmp_path):
    products.clock.times = lambda shape: (1.0, 0.5)
    choose()
    (file,) = (tmp_path / "fastvi").iterdir()
    file.write_bytes(b"\0\xff\nforward none 51" + file.read_bytes() + b"forward no")
    products.restart()
    products.clock.asked.clear()
    assert choose() and not products.clock.asked
    assert choose(2048)
    products.restart()
    assert choose(2048) and len(products.clock.asked) == 3


def test_what_was_left_open_is_torchs_until_the_next_process(products, tmp_path):
    products.clock.times = lambda shape: (math.nan, math.nan)
    assert not choose() and not choose() and not (tmp_path / "fastvi").exists()
    assert len(products.clock.asked) == 3
    products.restart()
    products.clock.times = lambda shape: (1.0, 0.5)
    assert choose()


def test_a_cache_that_cannot_be_written_is_done_without(products, tmp_path):
    (tmp_path / "fastvi").write_text("a file in the way")
    products.clock.times = lambda shape: (1.0, 0.5)
    assert choose() and choose()
    assert len(products.clock.asked) == 3


# ---- the variable --------------------------------------------------------------------------------
@pytest.mark.parametrize(("setting", "onednn"), [("torch", False), ("onednn", True)])
def test_a_setting_forces_the_library(setting: str, onednn: bool, products, tmp_path):
    products.restart(setting)
    assert choose() is onednn
    assert C.product_setting() == setting
    assert not products.clock.asked and not (tmp_path / "fastvi").exists()


@pytest.mark.parametrize("setting", ["auto", ""], ids=["auto", "empty"])
def test_auto_measures(setting: str, products):
    products.restart(setting)
    assert C.product_setting() == "auto"
    choose()
    assert products.clock.asked


@pytest.mark.parametrize("setting", ["mkl", "oneDNN", "1", " torch"])
def test_a_bad_setting_is_refused_by_name(setting: str, products):
    products.restart(setting)
    said = f"FASTVI_PRODUCTS: expected torch, onednn or auto, got {setting}"
    for ask in (choose, C.product_setting, info_rows):
        with pytest.raises(ValueError, match=said):
            ask()


# ---- fastvi info ---------------------------------------------------------------------------------
def test_info_says_which_library_multiplies(products):
    products.clock.times = lambda shape: (1.0, 0.5 if shape[0] == "forward" else 1.0)
    said = "\n".join(f"{name}: {value}" for name, value in info_rows())
    assert "CPU products: auto (FASTVI_PRODUCTS: torch, onednn or auto)" in said
    assert "forward and tanh, 4096+ x 128+ x 128+ (rows, in, out): oneDNN, 2.00 x as fast" in said
    assert "grad of weight, 4096+ x 128+ x 128+ (rows, in, out): torch" in said
    products.restart("onednn")
    rows = dict(info_rows())
    assert rows["CPU products"].startswith("onednn") and "" not in rows


@pytest.mark.slow
def test_the_command_refuses_a_bad_setting(monkeypatch):
    monkeypatch.setenv("FASTVI_PRODUCTS", "blas")
    done = subprocess.run(
        [sys.executable, "-c", "from fastvi_command import main; main()", "info"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "fastvi: FASTVI_PRODUCTS: expected torch, onednn or auto, got blas\n"
