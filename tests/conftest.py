"""Devices, the emulated build, and what the summary says about what did not run."""

from __future__ import annotations

import gc
import os
import random
import sys
from pathlib import Path

import pytest
from left_out import NO_DEVICE, left_out

# Before torch loads OpenMP. Its threads spin where they wait: in the many small loops of the tests
# that took four times the processor time on a loaded machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# No test's numbers depend on what was faster on this machine, and none writes to the user's cache.
# Those of the choice itself set it.
os.environ.setdefault("FASTVI_PRODUCTS", "torch")

import torch  # noqa: E402

from fastvi._ext import C  # noqa: E402

TESTS = Path(__file__).parent
EMULATED = C.build_info()["cuda_emulated"]


def pytest_addoption(parser):
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in a random order")


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector):
    """Skip the files that import what this environment does not have; the summary names both."""
    if not isinstance(collector, pytest.Module):
        return None
    try:
        collector.obj  # noqa: B018
    except collector.CollectError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and is_of_others(missing.name):
            reason = f"Skipped: {missing.name} is not in this environment"
            where = (str(collector.path), 1, reason)
            return pytest.CollectReport(collector.nodeid, "skipped", where, [])
    except BaseException:
        return None  # pytest imports it again, and says what is wrong
    return None


def is_of_others(module: str | None) -> bool:
    """Whether a module is neither Python's nor this project's."""
    top = (module or "").partition(".")[0]
    own = (TESTS.parent / top).exists() or any(TESTS.rglob(f"{top}.py"))
    return bool(top) and not own and top not in sys.stdlib_module_names


def pytest_collection_modifyitems(config, items):
    if (seed := config.getoption("--shuffle")) is not None:
        random.Random(seed).shuffle(items)


def pytest_collection_finish():
    # The tests themselves stay: there are many, and no need to look through them again and again.
    gc.freeze()


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slow: takes over a second, or a quick test asks nearly the same"
    )
    config.addinivalue_line("markers", "cuda: needs a CUDA device")
    config.addinivalue_line(
        "markers",
        "native: not for the emulated CUDA kernels: too slow there, or no part of them",
    )


def pytest_runtest_setup(item):
    # Skipped from here and not by a mark, so that the summary folds them into one line.
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    if item.get_closest_marker("native") and EMULATED:
        pytest.skip("not for the emulated CUDA kernels")


def pytest_report_header(config):
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    kernels = "CUDA kernels emulated on the host" if EMULATED else C.build_info()["cpu_isa"]
    seed = config.getoption("--shuffle")
    order = "" if seed is None else f", shuffled by --shuffle={seed}"
    return f"fastvi: torch {torch.__version__}, {kernels}, {cuda}{order}"


def pytest_terminal_summary(terminalreporter):
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for line in left_out(skipped):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def seeded():
    # Not torch.manual_seed: where there is no device it keeps a traceback for each of them.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def no_parameters_of_another_test():
    """Pyro keeps them for the whole process, by name."""
    if (pyro := sys.modules.get("pyro")) is not None:
        pyro.clear_param_store()


@pytest.fixture
def threads():
    """Sets the number of threads, and puts it back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh_compiler():
    """No compiled code of another test: their shapes would turn this one's dynamic."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def checks_by_default():
    """torch.compile turns the checks of distributions off for the whole process.

    A test that compiled must not decide what a later one, in whatever order, is refused.
    """
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(True)
    yield
    torch.distributions.Distribution.set_default_validate_args(before)


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``fastvi ...`` in this process: the exit status, what it printed, and its errors."""
    from fastvi.app import cli

    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastvi", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return run
