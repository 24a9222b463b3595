"""Run by torchrun: bounds whose samples ranks share, in every mode of autograd."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import torch
import torch.distributed
from leaving import leave

sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluation_faces import (  # noqa: E402
    MODES,
    SAMPLES,
    assert_same_bits,
    data,
    evaluated,
    loss_face,
    small_vae,
    svi_face,
)


def faces(group):
    for chunk_size in (None, 3):
        options = {"group": group, "chunk_size": chunk_size}
        for name in ("iwlb dreg", "iwlb iwae", "iwlb stl", "iwlb rws", "renyi"):
            yield lambda n=name, o=options: loss_face(n, **o)
        for name in ("IWLB dreg", "IWLB rws", "IWLB alpha", "wake-sleep"):
            yield lambda n=name, o=options: svi_face(n, **o)

    def evidence():
        vae, x = small_vae(), data()
        return lambda: vae.log_evidence(x, SAMPLES, chunk_size=3, group=group)

    yield evidence
    if importlib.util.find_spec("pyro") is None:
        return
    sys.path.insert(0, str(Path(__file__).parents[2] / "integrations"))
    from test_pyro_modes import KEPT, Program, Trace_IWLB, X

    def of_program(kind, estimator, chunk_size):
        program = Program(kind)
        # What ranks share is compared: a NaN is not even like itself.
        x = torch.where(KEPT, X, 0.0) if kind == "numbers" else X
        assert bool(x.isfinite().all()) == (kind == "numbers")

        def face():
            bound = Trace_IWLB(SAMPLES, estimator, group=group, chunk_size=chunk_size)
            found = bound.differentiable_loss(program.model, program.guide, x)
            assert math.isfinite(found.item())
            return found

        return face

    for kind in ("numbers", "layers"):
        for estimator in ("dreg", "iwae", "rws"):
            for chunk_size in (None, 3):
                yield lambda a=kind, b=estimator, c=chunk_size: of_program(a, b, c)


def main() -> None:
    torch.distributed.init_process_group("gloo")
    count = 0
    for make in faces(torch.distributed.group.WORLD):
        torch.manual_seed(0)
        expected = evaluated(make())
        for mode in MODES.values():
            torch.manual_seed(0)
            with mode():
                face = make()
                assert_same_bits(evaluated(face), expected)
            count += 1
    assert count > 50
    leave()


if __name__ == "__main__":
    main()
