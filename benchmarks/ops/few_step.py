"""The training step of :mod:`benchmarks.ops.iwae_step` with few of the samples backward.

``fastvi`` runs M of each image's K samples backward, ``fastvi all`` all of them, and ``forward``
computes the same bound without a gradient. In chunks, C samples are run at a time, and
``checkpointed`` is eager PyTorch with ``torch.utils.checkpoint`` over as many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import fastvi
from benchmarks.ops.iwae_step import (
    DATA,
    IWAE_STEP,
    NETWORKS,
    Networks,
    training_step,
)
from benchmarks.ops.jax_step import JAX, NUMPYRO
from benchmarks.work import COMPILE, Case, Run, normal_draw

FASTVI_ALL, FORWARD_ALONE, CHECKPOINTED = "fastvi all", "forward", "checkpointed"


class FewStep:
    """A step whose bound has all samples, and whose gradient few of them."""

    def __init__(self, name: str, providers: tuple[str, ...]) -> None:
        self.name = name
        self.providers = providers

    def runs(self, provider: str, case: Case) -> dict[str, Run]:
        if provider in ("eager", COMPILE, NETWORKS, JAX, NUMPYRO):
            return IWAE_STEP.runs(provider, case)
        networks = Networks().to(case.device, case.torch_dtype)
        x = (normal_draw(case, seed=0)(case.sizes["B"], DATA) > 0).to(case.torch_dtype)
        loss = loss_of(provider, networks, case)
        if provider == FORWARD_ALONE:
            return {"": torch.no_grad()(functools.partial(loss, x))}
        return {"": training_step(networks, loss, x)}

    def num_bytes(self, case: Case) -> int | None:
        return None


def loss_of(provider: str, networks: Networks, case: Case) -> Callable[[Tensor], Tensor]:
    samples, chunk = case.sizes["K"], case.sizes.get("C")
    if provider == CHECKPOINTED:
        from benchmarks.large_k.step import by_hand

        checkpointed = by_hand(networks, chunk)
        return lambda x: checkpointed(x, samples)
    criterion = fastvi.IWLBLoss(
        num_samples=samples,
        estimator="iwae",
        chunk_size=chunk,
        backward_samples=case.sizes["M"] if provider == "fastvi" else None,
    )

    def loss(x: Tensor) -> Tensor:
        loc, log_var = networks.encode(x)
        return criterion(loc, log_var, fastvi.log_likelihood(networks.decoder, x))

    return loss


FEW_STEP = FewStep(
    "few_step",
    ("fastvi", FASTVI_ALL, FORWARD_ALONE, "eager", COMPILE, NETWORKS, JAX, NUMPYRO),
)
FEW_STEP_CHUNKS = FewStep("few_step_chunks", ("fastvi", FASTVI_ALL, FORWARD_ALONE, CHECKPOINTED))
