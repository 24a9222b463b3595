"""The process in which one provider runs: it takes a time when asked, and else waits on a pipe."""

from __future__ import annotations

import ctypes
import gc
import math
import re
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.work import CUDA_GRAPHS, Case, Run
from fastvi._ext import C

STATUS, RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_MMAP_THRESHOLD = -3
# The largest block that glibc may come to take from the heap: larger ones are always mapped.
LARGEST_ON_HEAP = 32 * 2**20
# Below this, what is seen is the allocator's own pages.
SMALLEST_PEAK = 256 * 1024
SAMPLE_SECONDS = {"cpu": 0.02, "cuda": 0.01}
MAX_CALLS = 10_000


class Session:
    """One provider with one case loaded."""

    def __init__(self, case: Case, provider: str) -> None:
        from benchmarks.ops import WORKS

        torch.set_grad_enabled(case.backward)
        self.case = case
        self.runs: dict[str, Run] = {}
        self.failures: dict[str, str] = {}
        for name, run in WORKS[case.op].runs(provider, case).items():
            try:
                for _ in range(2):
                    run()
                synchronize(case.device)
            except Exception as error:
                self.failures[name] = f"{type(error).__name__}: {error}"
            else:
                self.runs[name] = run
        if not self.runs:
            raise RuntimeError(f"{provider} cannot run {case}: {self.failures}")
        self.best = next(iter(self.runs))
        self.calls = 1
        self._graph: tuple[torch.cuda.CUDAGraph, int] | None = None

    def choose(self) -> str:
        """Take the fastest variant, and as many calls as make a sample long enough to time."""
        times = {}
        for name, run in self.runs.items():
            once = self._time(run, 1)
            calls = max(1, min(MAX_CALLS, math.ceil(0.25 * self._enough / once)))
            times[name] = median(self._time(run, calls) for _ in range(5))
        self.best = min(times, key=times.__getitem__)
        self.calls = max(1, min(MAX_CALLS, math.ceil(self._enough / times[self.best])))
        return self.best

    def sample(self) -> float:
        """Seconds for one call, after calls enough to wake the threads and fill the caches."""
        run = self.runs[self.best]
        for _ in range(1 + self.calls // 10):
            run()
        return self._time(run, self.calls)

    def device_sample(self) -> float:
        """Seconds of the card's own time for one call: replays of a graph of several calls."""
        if self._graph is None:
            self._graph = self._capture()
        graph, calls = self._graph
        graph.replay()
        return self._time(graph.replay, 3) / calls

    def memory(self) -> int | None:
        """The most bytes that one call holds beside its inputs, where that can be seen."""
        run = self._plain
        run()
        return peak_cuda(run) if self.case.device != "cpu" else peak_cpu(run)

    @property
    def _plain(self) -> Run:
        """The best variant that is no graph itself: such a one cannot be captured or weighed."""
        plain = [name for name in self.runs if CUDA_GRAPHS not in name]
        return self.runs[self.best if self.best in plain or not plain else plain[0]]

    @property
    def _enough(self) -> float:
        return SAMPLE_SECONDS["cpu" if self.case.device == "cpu" else "cuda"]

    def _time(self, run: Run, calls: int) -> float:
        if self.case.device == "cpu":
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) / calls
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end) / calls

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, int]:
        run = self._plain
        # As many calls as there are input sets at most, and their results kept: else every call
        # would write where the last one did, in the cache.
        calls = 8
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [run() for _ in range(calls)]
        graph.replay()
        torch.cuda.synchronize()
        del kept
        return graph, calls


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def peak_cuda(run: Run) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def peak_cpu(run: Run) -> int | None:
    """The growth of the process's resident memory at its highest; None where that is not seen.

    It sees an extension's own buffers too, which the profiler of torch's allocator does not.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return None
    # From here on every tensor is a mapping of its own, gone as soon as it is freed: what the heap
    # keeps would count as held before, and hide what the call takes.
    libc.mallopt(M_MMAP_THRESHOLD, 65536)
    try:
        peak = max(_growth(run, libc) for _ in range(3))
    except OSError:
        return None
    return peak if peak >= SMALLEST_PEAK else None


def _growth(run: Run, libc: ctypes.CDLL) -> int:
    run()
    libc.malloc_trim(0)
    C.release_kept_memory()
    RESET_PEAK.write_text("5")
    before = resident("VmRSS")
    kept = run()
    peak = resident("VmHWM")
    del kept
    return max(0, peak - before)


def resident(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def serve(connection: Connection, threads: int | None, heap_is_warm: bool = False) -> None:
    """Answer requests until told to stop: ("load", case, provider), then a Session's methods."""
    if threads is not None:
        torch.set_num_threads(threads)
    if heap_is_warm:
        warm_heap()
    session: Session | None = None
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        if request == "stop":
            return
        try:
            if request == "load":
                session = None
                forget(arguments[0].device)
                session = Session(*arguments)
                gc.collect()
                gc.disable()
                answer: Any = session.failures
            else:
                answer = getattr(session, request)(*arguments)
        except Exception:
            connection.send(("error", traceback.format_exc()))
        else:
            connection.send(("ok", answer))


def warm_heap() -> None:
    """Bring malloc to where it is in a program that once freed a block of almost 32 MiB.

    What glibc keeps of freed memory depends on the largest block that it ever got back. Where all
    were small it returns the memory of each step to the system, and the next step takes it anew,
    page fault by page fault: that is how most programs run, and the same operation may take twice
    the time.
    """
    torch.empty(LARGEST_ON_HEAP - 2**20, dtype=torch.uint8)


def forget(device: str) -> None:
    """Give back what the last case held, where a process serves several."""
    gc.enable()
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if device != "cpu":
        torch.cuda.empty_cache()
