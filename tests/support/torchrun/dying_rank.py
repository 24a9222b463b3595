"""Run by torchrun: the example, with the second rank killed once, at its fourth step."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path

import torch

marker, example = Path(sys.argv[1]), sys.argv[2]
step = torch.optim.Adam.step
steps = 0


def dying(self, *args, **options):
    global steps
    steps += 1
    if steps == 4 and os.environ["RANK"] == "1" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **options)


torch.optim.Adam.step = dying
sys.argv = [example, *sys.argv[3:]]
runpy.run_path(example, run_name="__main__")
