"""What a measurement depends on: the machine, the versions, the day."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import fastvi
from fastvi._ext import C

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Conditions:
    """The columns that every row of a run shares."""

    device: str
    torch: str
    cuda: str
    fastvi: str
    commit: str
    date: str

    @property
    def slug(self) -> str:
        """The device as a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    @property
    def caption(self) -> str:
        cuda = f", CUDA {self.cuda}" if self.cuda else ""
        versions = f"torch {self.torch}{cuda} · fastvi {self.fastvi} ({self.commit})"
        return f"{self.device} · {versions} · {self.date}"


def conditions(device: str, threads: int | None = None) -> Conditions:
    return Conditions(
        device=_device_name(device, threads or torch.get_num_threads()),
        torch=torch.__version__,
        cuda=torch.version.cuda or "",
        fastvi=fastvi.__version__,
        commit=_commit(),
        date=datetime.date.today().isoformat(),
    )


def busy() -> str | None:
    """A warning, if something else already keeps the machine's cores busy."""
    load = os.getloadavg()[0]
    if load < 0.5:
        return None
    return f"the machine is busy (load average {load:.1f}): times will be uneven"


def _device_name(device: str, threads: int) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    unit = "thread" if threads == 1 else "threads"
    return f"{_cpu_model()}, {threads} {unit}, {C.build_info()['cpu_isa']}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit, with a plus sign if the tree has changed since; empty outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
