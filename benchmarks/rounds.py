"""Measure a case: each provider in a process of its own, asked in turn, one at a time."""

from __future__ import annotations

import contextlib
import getpass
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.ops import WORKS
from benchmarks.work import CHECKPOINT, COMPILE, Case
from benchmarks.worker import serve

REPLY_SECONDS = 180.0
# After a parallel region OpenMP's threads spin for a few milliseconds before they sleep.
SETTLE_SECONDS = 0.01
FEWEST_ROUNDS = 5


class WorkerError(RuntimeError):
    """A provider could not do what it was asked."""


class Asked(Protocol):
    """What takes part in a round."""

    def ask(self, request: str, *arguments: Any) -> Any: ...


class Worker:
    """A provider's process, seen from the parent."""

    def __init__(
        self, provider: str, device: str, threads: int | None = None, heap_is_warm: bool = False
    ) -> None:
        context = _context(device)
        self.provider = provider
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, threads, heap_is_warm), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, request: str, *arguments: Any) -> Any:
        try:
            self._connection.send((request, *arguments))
            if not self._connection.poll(REPLY_SECONDS):
                self._process.kill()
                raise WorkerError(f"{self.provider}: no answer to {request!r} in {REPLY_SECONDS} s")
            outcome, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            code = self._process.exitcode
            raise WorkerError(f"{self.provider}: its process ended with code {code}") from error
        if outcome == "error":
            # An error on a card stays with the process: the next case gets another.
            self.stop()
            raise WorkerError(f"{self.provider}: {answer}")
        return answer

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(("stop",))
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()


def _context(device: str) -> Any:
    # The variable is read when the compiler is imported. Its own pool of processes would compete
    # with what is measured.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # It takes from its cache what it wrote for other vectors than torch has now, which may crash.
    # Torch itself may have set the variable by now, to what is its default.
    vectors = torch.backends.cpu.get_cpu_capability().replace(" ", "_").lower()
    usual = str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR", usual) == usual:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{usual}_{vectors}"
    if device != "cpu":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preload"])
    return context


class Staff:
    """The processes: a fresh one for each case on a CPU, one for all cases on a card.

    On a CPU the compiler's OpenMP threads slow what follows them, its own next case too. On a card
    nothing depends on them, and a process is slow to start.
    """

    def __init__(self, device: str, threads: int | None = None, heap_is_warm: bool = False) -> None:
        self._device = device
        self._threads = threads
        self._heap_is_warm = heap_is_warm
        self._kept: dict[str, Worker] = {}

    @contextlib.contextmanager
    def of(self, providers: Sequence[str]) -> Iterator[list[Worker]]:
        workers = []
        try:
            for provider in providers:
                workers.append(self._take(provider))
            yield workers
        finally:
            for worker in workers:
                self._release(worker)

    def _take(self, provider: str) -> Worker:
        worker = self._kept.pop(provider, None)
        return worker or Worker(provider, self._device, self._threads, self._heap_is_warm)

    def _release(self, worker: Worker) -> None:
        if self._device == "cpu" or not worker.alive:
            worker.stop()
        else:
            self._kept[worker.provider] = worker

    def dismiss(self) -> None:
        for worker in self._kept.values():
            worker.stop()
        self._kept.clear()


@dataclass(frozen=True)
class Samples:
    """What was measured of one provider: seconds or bytes, one number for each round."""

    provider: str
    variant: str
    metric: str
    values: tuple[float, ...]


def alternate(
    workers: Mapping[str, Asked],
    request: str,
    rounds: int,
    seconds: float,
    settle: float = SETTLE_SECONDS,
) -> dict[str, list[float]]:
    """Ask each worker for one number, in turn, round after round; at most ``seconds`` of it.

    Whatever else slows the machine for a while so falls on all of them, and no two run at once.
    """
    values: dict[str, list[float]] = {name: [] for name in workers}
    deadline = time.monotonic() + seconds
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.monotonic() > deadline:
            break
        for name, worker in workers.items():
            values[name].append(worker.ask(request))
            time.sleep(settle)
    return values


def measure(
    case: Case,
    providers: Sequence[str],
    staff: Staff,
    *,
    rounds: int,
    seconds: float = 10.0,
    note: Callable[[str], None] = lambda _: None,
) -> list[Samples]:
    """Time the case with each provider; one that fails is told to ``note``, and left out."""
    found: list[Samples] = []
    with staff.of(providers) as workers:
        variants: dict[str, str] = {}
        ready: dict[str, Worker] = {}
        for worker in workers:
            try:
                for variant, why in worker.ask("load", case, worker.provider).items():
                    note(f"{case.op} {case.shape} {worker.provider} ({variant}): {why}")
                ready[worker.provider] = worker
            except WorkerError as error:
                note(f"{case.op} {case.shape} {case.dtype} {case.mode}: {error}")
        for name, worker in ready.items():
            variants[name] = worker.ask("choose")
        timed = {name: worker for name, worker in ready.items() if name != CHECKPOINT}

        def keep(metric: str, values: Mapping[str, Sequence[float]]) -> None:
            for name, numbers in values.items():
                found.append(Samples(name, variants[name], metric, tuple(numbers)))

        keep("time", alternate(timed, "sample", rounds, seconds))
        if case.device != "cpu" and WORKS[case.op].num_bytes(case) is not None:
            for name, worker in timed.items():
                try:
                    worker.ask("device_sample")
                except WorkerError as error:
                    note(f"{case.op} {case.shape} {case.mode}, graph: {error}")
                    ready.pop(name)
            captured = {name: worker for name, worker in timed.items() if name in ready}
            keep("device_time", alternate(captured, "device_sample", rounds, seconds))
        if case.backward:
            peaks = {name: worker.ask("memory") for name, worker in ready.items()}
            keep("memory", {name: [peak] for name, peak in peaks.items() if peak is not None})
    return found


def compile_all(
    cases: Sequence[Case],
    jobs: int,
    threads: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> None:
    """Fill the compiler's cache on disk, several cases at once, before anything is timed."""

    def compile_some(share: Sequence[Case]) -> None:
        # The number of threads is part of the generated code.
        staff = Staff(share[0].device, threads)
        for case in share:
            try:
                with staff.of([COMPILE]) as [worker]:
                    worker.ask("load", case, COMPILE)
            except WorkerError as error:
                note(f"{case.op} {case.shape} {case.dtype} {case.mode}, compiling: {error}")
        staff.dismiss()

    jobs = max(1, min(jobs, len(cases)))
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_some, [cases[job::jobs] for job in range(jobs)]))
