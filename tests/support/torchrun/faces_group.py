"""Run by torchrun: every cell of the table whose samples a group of processes shares.

What went wrong in each cell, on any rank, is written as JSON to the file that is given.
"""

from __future__ import annotations

import datetime
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from faces import cells, run
from leaving import leave


def main(report: Path) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    found: dict[str, str] = {}
    for cell in cells():
        if cell.option != "group":
            continue
        wrong = ""
        try:
            run(cell, dist.group.WORLD)
        except Exception:
            wrong = traceback.format_exc()
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, wrong)
        found[str(cell)] = "\n".join(f"rank {r}: {text}" for r, text in enumerate(everyone) if text)
    if dist.get_rank() == 0:
        report.write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
