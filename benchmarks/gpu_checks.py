"""Run every kernel, forward and backward, on small ugly inputs: what compute-sanitizer watches.

    PYTHONPATH=tests/support compute-sanitizer --tool memcheck python -m benchmarks.gpu_checks

The inputs are the table of the op tests. They are made on the CPU, so that on the card little runs
but fastvi's kernels. Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1: inside torch's cached blocks an
access past the end of a tensor would not be seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time

import torch

import fastvi
from fastvi.bounds.estimators import IWLB_ESTIMATORS


def ops(device: str, dtypes: list[torch.dtype], deadline: float) -> tuple[int, int]:
    """Every sample of the table; the numbers of calls made, and left out for want of time."""
    from op_samples import OPS

    done = left = 0
    # Round after round over the ops, so that a run cut short has seen all of them.
    longest = max(len(op.samples) for op in OPS)
    samples = [(op, op.samples[i]) for i in range(longest) for op in OPS if i < len(op.samples)]
    for op, sample in samples:
        for dtype in dtypes:
            if dtype not in sample.dtypes:
                continue
            if time.monotonic() > deadline:
                left += 1
                continue
            tensors = sample.make(dtype, device)
            outputs = op.call(op.public, tensors, sample.options)
            upstream = [torch.ones(out.shape, dtype=out.dtype).to(device) for out in outputs]
            torch.autograd.grad(outputs, list(tensors.values()), upstream, allow_unused=True)
            done += 1
    return done, left


def losses(device: str) -> int:
    """Each estimator of the loss, and its relatives: their backward passes are not the ops' own."""
    criteria: list[torch.nn.Module] = [fastvi.IWLBLoss(5, name) for name in IWLB_ESTIMATORS]
    criteria += [fastvi.IWLBLoss(5, chunk_size=2), fastvi.IWLBLoss(5, alpha=0.5)]
    criteria += [fastvi.MIWAELoss(5, 2), fastvi.PIWAELoss(5, 2)]
    criteria += [fastvi.CIWAELoss(5, 0.3), fastvi.JackknifeLoss(5)]
    loc, log_var = torch.randn(7, 13), torch.randn(7, 13)
    value = (torch.randn(7, 13) > 0).float().to(device)
    for criterion in criteria:
        leaves = [x.to(device).requires_grad_() for x in (loc, log_var)]
        loss = criterion(*leaves, lambda z: fastvi.ops.bernoulli_log_prob(value, z))
        torch.autograd.grad(loss, leaves)
    return len(criteria)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_checks")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    deadline = time.monotonic() + options.seconds
    estimators = losses(options.device)
    if importlib.util.find_spec("pytest") is None:
        # The table of the ops is written in its words.
        sys.stdout.write(f"gpu_checks: {estimators} losses; no samples of the ops without pytest\n")
        return 0
    dtypes = [getattr(torch, name) for name in options.dtype]
    done, left = ops(options.device, dtypes, deadline)
    if options.device == "cuda":
        torch.cuda.synchronize()
    sys.stdout.write(f"gpu_checks: {done} samples of the ops, {estimators} losses")
    sys.stdout.write(f"; {left} samples left out for want of time\n" if left else "\n")
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
