"""A run of `fastvi train` shared by two processes: whole, and interrupted and gone on with.

Each rank leaves what it holds in FOLDER/rank<N>.pt; see tests/app/test_train_ranks.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from fastvi.app import training
from fastvi.app.images import load_images
from fastvi.app.ranks import joined
from fastvi.app.run_folder import RunFolder
from fastvi.app.settings import Settings
from fastvi.callbacks import Callback

SETTINGS = Settings(epochs=3, num_samples=3, hidden=4, latent_features=2, batch_size=4)


def main() -> None:
    root = Path(sys.argv[1])
    images = load_images(root / "mine.npz")
    steps: list[tuple[int, float]] = []

    class Steps(Callback):
        def on_step(self, number: int, bound: torch.Tensor) -> None:
            steps.append((number, bound.item()))

    with joined() as ranks:

        def folder(name: str, resume: bool = False) -> RunFolder:
            made = ranks.from_first(lambda: RunFolder(root, name, resume=resume))
            ranks.from_first(made.create)
            return made

        whole = training.train(images, SETTINGS, folder("whole"), Steps(), ranks)
        pixels = training.held_out_pixels(images, SETTINGS)
        [evaluation] = training.evaluate(whole, pixels, [2000], ranks)

        mean_loss, calls = training._mean_loss, []

        def interrupted(*arguments: object) -> float:
            calls.append(0)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return mean_loss(*arguments)

        training._mean_loss = interrupted
        try:
            training.train(images, SETTINGS, folder("parts"), None, ranks)
        except KeyboardInterrupt:
            calls.append(0)
        parts = training.train(images, SETTINGS, folder("parts", True), None, ranks)
        said = ""
        try:
            ranks.check_alike("the number", ranks.number)
        except ValueError as error:
            said = str(error)
        torch.save(
            {
                "whole": whole.state_dict(), "parts": parts.state_dict(), "steps": steps,
                "bound": evaluation.bound, "images": evaluation.images, "said": said,
            },
            root / f"rank{ranks.number}.pt",
        )  # fmt: skip


if __name__ == "__main__":
    main()
