"""The command in a process of its own, and the tables it leaves."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys


def hear_signals():
    """A shell in the background hands down an ignored SIGINT, and nohup an ignored SIGHUP."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*arguments, **environment):
    """Starts ``fastvi ...`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from fastvi_command import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        preexec_fn=hear_signals,
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
