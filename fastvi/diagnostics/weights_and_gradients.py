"""What the diagnosis of a VAE computes: log-weights, what is measured of them, and gradients."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastvi.diagnostics.measures import (
    effective_sample_size,
    evidence_gap,
    gradient_snr,
    needed_backward_samples,
    pareto_k,
    tail_size,
)
from fastvi.losses import IWLBLoss
from fastvi.models.vae import VAE
from fastvi.ops import iwlb

# At most this many log-weights and decoder outputs are in memory: 64 and 16 MB in float32.
_MOST_LOG_WEIGHTS, _MOST_OUTPUTS = 2**24, 2**22
_SNR_STREAM = 2**31  # far from the streams of noise of the weights


def ladder_of(num_samples: int) -> tuple[int, ...]:
    """Return 1, 2, 5, 10, 20, ... below K, and K."""
    steps = (m * 10**e for e in range(len(str(num_samples))) for m in (1, 2, 5))
    return (*(k for k in steps if k < num_samples), num_samples)


@torch.no_grad()
def log_weights(vae: VAE, x: Tensor, num_samples: int, key: Tensor) -> Iterator[Tensor]:
    """Yield the log-weights [K, b] of b data at a time."""
    width = max(1, _MOST_LOG_WEIGHTS // num_samples)
    for start in range(0, len(x), width):
        part = x[start : start + width]
        chunk = max(1, _MOST_OUTPUTS // max(1, part.numel()))
        # The noise is numbered within a batch, so each batch has a stream of its own.
        stream = torch.stack((key[0], key[1] + start))
        chunks = [
            vae.log_weights(
                part, min(chunk, num_samples - offset), key=stream, sample_offset=offset
            )
            for offset in range(0, num_samples, chunk)
        ]
        yield torch.cat(chunks)


def measure(log_w: Tensor, ladder: Sequence[int]) -> tuple[Tensor, ...]:
    bounds, few = [], []
    for k in ladder:
        groups = len(log_w) // k
        parts = log_w[: groups * k].reshape(groups, k, *log_w.shape[1:]).double()
        bounds.append(iwlb(parts, dim=1).mean(0))
        few.append(needed_backward_samples(parts.transpose(0, 1)).nanmean(0))
    largest = torch.exp(log_w.amax(0).double() - torch.logsumexp(log_w.double(), 0))
    return (
        effective_sample_size(log_w),
        pareto_k(log_w),
        evidence_gap(log_w),
        largest,
        torch.stack(bounds),
        torch.topk(log_w.double(), tail_size(len(log_w)) + 1, dim=0).values - bounds[-1],
        torch.stack(few),
    )


def gradients(
    vae: VAE, x: Tensor, snr_samples: Sequence[int], draws: int, key: Tensor
) -> dict[str, dict[str, tuple[float, ...]]]:
    result = {}
    # A gradient is measured in every mode of autograd.
    with torch.inference_mode(False), torch.enable_grad():
        vae, x, key = _outside_inference(vae), x.clone(), key.clone()
        groups = _groups(vae)
        source = torch.stack((key[0], key[1] + _SNR_STREAM))
        for estimator in ("iwae", "dreg") if groups else ():
            rows = []
            for k in snr_samples:
                loss = functools.partial(_loss, vae, x, IWLBLoss(k, estimator))
                # Both estimators get the same noise, so that only the estimators differ.
                rows.append(gradient_snr(loss, groups, num_draws=draws, key=source))
            result[estimator] = {name: tuple(row[name] for row in rows) for name in groups}
    return result


def _outside_inference(vae: VAE) -> VAE:
    """Return the model, or a copy if it was made in inference mode and has no gradients."""
    tensors = itertools.chain(vae.parameters(), vae.buffers())
    return copy.deepcopy(vae) if any(x.is_inference() for x in tensors) else vae


def _loss(vae: VAE, x: Tensor, criterion: IWLBLoss, key: Tensor) -> Tensor:
    return vae.loss(x, criterion, key=key)


def _groups(vae: VAE) -> dict[str, list[Tensor]]:
    """Return the model's parameters by the part that they belong to."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in vae.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(name.split(".")[0].split("_")[0], []).append(parameter)
    return groups
