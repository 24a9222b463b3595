"""Samples of an objective that the processes of a group share: each evaluates a range of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvi._surrogates import with_gradient
from fastvi.chunks.engine import awaited
from fastvi.chunks.sample_group import SampleGroup
from fastvi.objectives.latent import Latent, LogJoint
from fastvi.objectives.linear import LinearBound, check_paths, linear_bound
from fastvi.objectives.objective import Objective


def share_of(
    objective: Objective, latents: Sequence[Latent], data: Any, facts: Mapping[str, object]
) -> slice:
    """The samples that this process evaluates, once all have said that they compute one bound."""
    group, num_samples = objective.group, len(latents[0].value)
    if group is None:
        return slice(0, num_samples)
    if num_samples < group.size:
        raise ValueError(
            f"{objective.where}: expected at least one sample for each of the "
            f"{group.size} ranks, got {num_samples}"
        )
    told = {**facts, "num_samples": num_samples}
    parts = data if isinstance(data, (tuple, list)) else (data,)
    told |= {f"data {i}": part for i, part in enumerate(parts) if isinstance(part, Tensor)}
    for latent in latents:
        told |= {f"samples of {latent.name!r}": latent.value}
        told |= {f"log q of {latent.name!r}": latent.log_q}
    group.check_agreement(told, latents[0].value.device)
    return slice(*group.share(num_samples))


def gathered(group: SampleGroup | None, own: Tensor, num_samples: int, share: slice) -> Tensor:
    """On every rank, of all samples, what each rank has of its own."""
    if group is None:
        return own
    full = own.new_zeros(num_samples, *own.shape[1:])
    full[share] = own
    return group.add(full)


@dataclass
class SharedBound:
    """A bound that is a sum of terms, of the samples of this process."""

    linear: LinearBound
    latents: list[Latent]
    group: SampleGroup | None
    num_samples: int
    share: slice

    def bound(self) -> Tensor:
        r"""The bound of all samples, (\*batch,), with the gradient of this process's."""
        own = self.linear.value()
        if self.group is None:
            return own
        own = own * (self.linear.num_samples / self.num_samples)
        total = self.group.add(own.detach())
        # Where a sample is impossible no direction improves the bound.
        weight = torch.isfinite(total).to(total.dtype)
        return with_gradient(total, (own[None], weight[None]))

    def everywhere(self, own: Tensor) -> Tensor:
        """Of all samples, what is given of those of this process."""
        return gathered(self.group, own, self.num_samples, self.share)


def shared_linear_bound(
    objective: Objective,
    latents: Sequence[Latent],
    log_joint: LogJoint,
    data: Any,
    num_data: int | None,
    facts: Mapping[str, object],
    *,
    kl: str,
    path: bool = False,
) -> SharedBound:
    """Evaluate all terms of the ELBO at the samples of this process."""
    where, group, num_samples = objective.where, objective.group, len(latents[0].value)
    share = share_of(objective, latents, data, facts)
    if path:
        check_paths(where, latents)
    own = list(latents) if group is None else [_of_range(latent, share) for latent in latents]

    def evaluated() -> LinearBound:
        values = {latent.name: latent.value for latent in own}
        size = objective.samples_at_a_time(own, values, log_joint)
        return linear_bound(where, own, log_joint, num_data, kl, size, path=path)

    return SharedBound(awaited(group, evaluated), own, group, num_samples, share)


def _of_range(latent: Latent, share: slice) -> Latent:
    return dataclasses.replace(
        latent,
        value=latent.value[share],
        log_q=latent.log_q[share],
        path=lambda: latent.log_q_path()[share],
    )
