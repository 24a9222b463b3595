"""K shared among processes, under torchrun as a user starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastvi

ROOT = Path(__file__).parents[2]
CHECKS = ROOT / "tests/support/torchrun/group_checks.py"
FEW = ROOT / "tests/support/torchrun/few_checks.py"
DYING = ROOT / "tests/support/torchrun/dying_rank.py"
EXAMPLE = ROOT / "examples/large_k_torchrun.py"
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed"),
]


def torchrun(processes: int, *command: str | Path, restarts: int = 0):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
    }
    return subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={processes}", f"--max-restarts={restarts}", *map(str, command),
        ],
        env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip


def succeed(processes: int, *command: str | Path, restarts: int = 0) -> str:
    done = torchrun(processes, *command, restarts=restarts)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3], ids=lambda n: f"{n} processes")
def test_few_samples_backward(processes: int):
    succeed(processes, FEW, "mean", "wire", "one_choice", "ranks_that_differ")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 3], ids=lambda n: f"{n} processes")
def test_bound_and_gradients_are_those_of_one_process(processes: int):
    succeed(processes, CHECKS, "sums", "closed_forms", "own_keys", "evidence", "losses_of_layers")


@pytest.mark.slow
def test_svi_with_shared_samples_is_that_of_one_process():
    succeed(2, ROOT / "tests/support/torchrun/svi_group.py")


@pytest.mark.slow
def test_ranks_that_disagree_are_named():
    succeed(2, CHECKS, "disagreement", "disagreement_of_models", "rounding")


@pytest.mark.slow
def test_a_rank_whose_likelihood_raises_is_named_by_the_others():
    succeed(2, CHECKS, "failure")


@pytest.mark.slow
def test_a_rank_without_samples():
    succeed(2, CHECKS, "empty_share")


@pytest.mark.slow
def test_with_data_parallelism_on_a_mesh():
    succeed(4, CHECKS, "mesh", "shards_of_a_mesh")


@pytest.mark.slow
def test_with_networks_that_are_data_parallel_each():
    succeed(2, CHECKS, "networks_wrapped_apart")


@pytest.mark.cuda
def test_by_the_collectives_of_a_device():
    succeed(1, CHECKS, "nccl")


OPTIONS = ("--num-samples", "10", "--chunk-size", "3", "--steps", "6", "--every", "2",
           "--backward-samples", "4")  # fmt: skip


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_resumes_bit_for_bit(tmp_path: Path):
    paths = [tmp_path / name for name in ("whole.pt", "killed.pt", "marker")]
    whole, killed, marker = paths
    output = succeed(2, EXAMPLE, *OPTIONS, "--checkpoint", whole)
    assert "step 6: L_10 =" in output

    command = (DYING, marker, EXAMPLE, *OPTIONS, "--checkpoint", killed)
    stopped = torchrun(2, *command)
    assert stopped.returncode != 0
    report = stopped.stdout + stopped.stderr
    assert "SIGKILL" in report or "-9" in report
    assert "rank      : 1" in report or "local_rank: 1" in report

    for path in (killed, marker):
        path.unlink()
    output = succeed(2, *command, restarts=1)
    assert marker.exists() and "resumed at step" in output
    expected, actual = (torch.load(path, weights_only=True) for path in (whole, killed))
    assert expected["step"] == actual["step"] == 6
    for name, value in expected["model"].items():
        assert torch.equal(value, actual["model"][name])


@pytest.mark.slow
def test_a_killed_rank_of_two_nodes_that_share_no_disk(tmp_path: Path):
    """One node counts a restart, the other may not; one alone has the checkpoint."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}",
    }
    nodes = []
    for node in range(2):
        (tmp_path / str(node)).mkdir()
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=two",
            "--local-addr=localhost", "--max-restarts=2", DYING, tmp_path / "marker", EXAMPLE,
            *OPTIONS, "--checkpoint", "large_k.pt",
        ]  # fmt: skip
        nodes.append(
            subprocess.Popen(
                list(map(str, command)), env=environment, cwd=tmp_path / str(node), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    try:
        output = "".join(node.communicate(timeout=120)[0] for node in nodes)
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], output[-6000:]
    assert (tmp_path / "marker").exists() and output.count("resumed at step") == 1
    assert len(list(tmp_path.glob("*/large_k.pt"))) == 1


def test_sum_gradients_without_a_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        fastvi.sum_gradients([torch.nn.Parameter(torch.ones(2))])
