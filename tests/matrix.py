"""Runs the suite as other machines would: python tests/matrix.py [--list] [--only WORD] [--quick].

Each run has an instruction set of fastvi's kernels and of torch's, a number of threads, a library
of matrix products, an order of the tests, and a machine that is idle or loaded. The first run is
the whole suite; the others leave out what is the same in all of them. It takes hours, and is no
part of CI.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The compilers, the emulation and the installation do not see any of the settings.
ONCE = (
    "device/test_cuda_compile",
    "device/test_cuda_emulation",
    "device/test_cuda_budgets",
    "device/test_cuda_launches",
    "device/test_ptx",
    "device/test_ptx_noise",
    "device/test_cpu_sanitizers",
    "project/test_install",
)
# What torch, MKL and oneDNN are told, so that they compute as on an older processor.
TORCH = {
    "best": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
    },
}
SETTINGS = ("FASTVI_CPU_ISA", "FASTVI_PRODUCTS", "OMP_NUM_THREADS", *TORCH["avx2"])
BUSY = "while True: pass"


@dataclass(frozen=True)
class Run:
    isa: str
    torch: str = "best"
    threads: int | None = 2  # None: as many as torch takes by itself
    loaded: bool = False
    seed: int | None = None
    whole: bool = False
    products: str | None = None  # of Linear layers; None: torch's, as tests/conftest.py says

    @property
    def name(self) -> str:
        parts = [self.isa, f"torch-{self.torch}"]
        parts.append("threads-unset" if self.threads is None else f"threads-{self.threads}")
        parts += ["loaded"] * self.loaded
        parts += [] if self.products is None else [f"products-{self.products}"]
        parts += [] if self.seed is None else [f"shuffled-{self.seed}"]
        return "_".join(parts)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        own = {"FASTVI_CPU_ISA": self.isa} | TORCH[self.torch]
        if self.threads is not None:
            own["OMP_NUM_THREADS"] = str(self.threads)
        if self.products is not None:
            own["FASTVI_PRODUCTS"] = self.products
        return kept | own

    def command(self, more: list[str]) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-rfE"]
        command += ["-p", "no:cacheprovider", "-p", "no:logging"]
        if not self.whole:
            command += [f"--ignore=tests/{name}.py" for name in ONCE]
        if self.seed is not None:
            command.append(f"--shuffle={self.seed}")
        return command + more


def instruction_sets() -> list[str]:
    """Those of this machine, the widest first."""
    code = "import fastvi; print(fastvi._ext.C.build_info()['cpu_isa'])"
    found = []
    for isa in ("avx512", "avx2", "baseline"):
        environment = os.environ | {"FASTVI_CPU_ISA": isa}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.stdout.strip() == isa:
            found.append(isa)
        elif "this machine does not have" not in done.stderr:
            raise SystemExit(done.stderr)
    return found


def runs(isas: list[str], seed: int, product: bool = False) -> list[Run]:
    """Every value of every setting, and each with each where two of them could meet."""
    best = isas[0]
    chosen = [Run(best, whole=True)]
    if product:
        chosen += [Run(*run) for run in itertools.product(isas, TORCH, (1, 2))]
    else:
        chosen += [Run(isa) for isa in isas]
        chosen += [Run(best, torch) for torch in TORCH]
        chosen += [Run(isa, isa if isa in TORCH else "default", 1) for isa in isas[1:]]
        chosen.append(Run(best, threads=1))
    chosen.append(Run(best, products="onednn"))
    chosen.append(Run(best, threads=None, loaded=True))
    chosen.append(Run(best, seed=seed))
    by_name: dict[str, Run] = {}
    for run in chosen:
        by_name.setdefault(run.name, run)
    return list(by_name.values())


def last_line(log: Path) -> str:
    lines = [line.strip("= \n") for line in log.read_text(errors="replace").splitlines()]
    return next((x for x in reversed(lines) if x), "nothing was printed")


def carry_out(run: Run, logs: Path, more: list[str]) -> tuple[Run, bool, str, float]:
    log, begin = logs / f"{run.name}.log", time.monotonic()
    cores = os.cpu_count() or 1
    load = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(run.loaded * 2 * cores)]
    try:
        with log.open("w") as out:
            # torch's compiler takes from its cache what it wrote for another instruction set.
            cache = {"TORCHINDUCTOR_CACHE_DIR": str(logs / f"{run.name}.cache")}
            code = subprocess.run(
                run.command(more), cwd=ROOT, env=run.environment() | cache, stdout=out, stderr=out
            ).returncode
    finally:
        for process in load:
            process.kill()
            process.wait()
    said = last_line(log)
    print(f"{'ok' if code == 0 else 'FAILED':6} {run.name}: {said}", flush=True)
    return run, code == 0, said, time.monotonic() - begin


def table(results: list[tuple[Run, bool, str, float]]) -> str:
    rows = [("run", "passed", "failed", "skipped", "minutes")]
    for run, ok, said, seconds in results:
        counts = {
            word: int(found[1]) if (found := re.search(rf"(\d+) {word}", said)) else 0
            for word in ("passed", "failed", "error", "skipped")
        }
        bad = str(counts["failed"] + counts["error"] or ("0" if ok else "stopped"))
        numbers = (str(counts["passed"]), bad, str(counts["skipped"]))
        rows.append((run.name, *numbers, f"{seconds / 60:.1f}"))
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        rest = (cell.rjust(w) for cell, w in zip(row[1:], wide[1:], strict=True))
        lines.append("  ".join([row[0].ljust(wide[0]), *rest]))
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="name the runs, and stop")
    parser.add_argument(
        "--only", action="append", metavar="WORD", help="runs with WORD in the name"
    )
    parser.add_argument(
        "--quick", action="store_true", help='without the slow tests: -m "not slow"'
    )
    parser.add_argument("--product", action="store_true", help="every combination")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--seed", type=int, help="of the shuffled order (default: another each time)"
    )
    parser.add_argument(
        "--logs", type=Path, default=ROOT / "build/matrix", help="folder of the logs"
    )
    parser.add_argument("pytest", nargs="*", help="more for pytest, after --: files, -k, -x")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    chosen = runs(instruction_sets(), seed, asked.product)
    chosen = [r for r in chosen if not asked.only or any(word in r.name for word in asked.only)]
    if not chosen:
        raise SystemExit(f"--only: no run has {' or '.join(asked.only)} in its name; see --list")
    if asked.list:
        print("\n".join(run.name for run in chosen))
        return 0
    asked.logs.mkdir(parents=True, exist_ok=True)
    more = [*(("-m", "not slow") if asked.quick else ()), *asked.pytest]
    with ThreadPoolExecutor(max(asked.jobs, 1)) as pool:
        results = list(pool.map(lambda run: carry_out(run, asked.logs, more), chosen))
    print(f"\n{table(results)}\nlogs: {asked.logs}")
    return 0 if all(ok for _, ok, _, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
