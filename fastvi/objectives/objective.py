"""The base of the objectives, and how they make log-weights of terms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from fastvi._checks import check_chunks, check_num_samples, plain
from fastvi.chunks.chunk_size import remembering
from fastvi.objectives.latent import Draws, Latent, LogJoint
from fastvi.objectives.terms import Evaluated, longest_batch


class Objective(nn.Module):
    """Bound the log-evidence by samples of the latents, with an estimator of the gradient.

    The base of :class:`ELBO`, :class:`IWLB`, :class:`VIMCO`, :class:`Reinforce` and the others.
    Its own parameters, those of a network baseline, are trained by the bound's backward pass.

    Args:
        num_samples: K.
        chunk_size: samples at a time through the log-joint; ``None`` for all, ``"auto"`` for what
            ``memory_budget`` allows.
        memory_budget: bytes for ``chunk_size="auto"``; see :func:`fastvi.iwlb_loss`.

    Example:
        >>> isinstance(fastvi.objectives.IWLB(16), fastvi.objectives.Objective)
        True
    """

    # Whether the objective needs the derivative of log q at constant parameters.
    needs_path = False
    # A SampleGroup of processes that share the samples; see IWLB.
    group: Any = None

    @property
    def where(self) -> str:
        """Return the name that errors begin with."""
        return type(self).__name__

    def __init__(
        self,
        num_samples: int,
        *,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        num_samples, chunk_size = plain(num_samples), plain(chunk_size)
        check_num_samples(where, num_samples)
        check_chunks(where, num_samples, chunk_size, memory_budget)
        self.num_samples = num_samples
        self.chunk_size = remembering(chunk_size)
        self.memory_budget = memory_budget

    def bound(
        self,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> Tensor:
        r"""Compute the bound of each example, whose gradient is the estimator.

        Args:
            latents: the samples, in the order in which the guide draws them; or
                :class:`Draws`, which draws the samples of each chunk.
            log_joint: from a mapping of names to values, a tensor of shape (K, \*batch), or a
                mapping of names to terms: tensors, distributions and :class:`Term`.
            data: the input of a network that predicts a baseline.
            num_data: N, if the batch is a part of N examples. Terms of shape (K,), which belong to
                all the data, count as one N-th for each example. ``None`` is the size of the batch.

        Returns:
            The bound in nats, shape (\*batch,).
        """
        raise NotImplementedError

    def forward(
        self,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> Tensor:
        """Compute :meth:`bound`."""
        return self.bound(latents, log_joint, data=data, num_data=num_data)

    @property
    def at_once(self) -> bool:
        """Return whether this process evaluates all samples at once."""
        return self.group is None and self.chunk_size is None

    def drawn(self, latents: Sequence[Latent] | Draws) -> tuple[Sequence[Latent] | Draws, int]:
        """Return the samples, or the function that draws those of a chunk, and their number."""
        if not isinstance(latents, Draws):
            return latents, self.num_samples
        num_samples = latents.num_samples or self.num_samples
        return latents(num_samples) if self.at_once else latents, num_samples

    def extra_repr(self) -> str:
        chunk = "" if self.chunk_size is None else f", chunk_size={self.chunk_size!r}"
        return f"num_samples={self.num_samples}{chunk}"


def check_one_batch(where: str, latents: Sequence[Latent]) -> None:
    """Refuse latents of different batches, which no single log-weight can hold."""
    batches = [latent.batch for latent in latents]
    if any(batch != batches[0] for batch in batches):
        shapes = {latent.name: list(latent.batch) for latent in latents}
        raise ValueError(
            f"{where}: expected all latents to have one batch shape, got {shapes}; latents of a "
            f"datum beside latents of all data need an objective without weights, ELBO or "
            f"Reinforce"
        )


def log_joint_of(
    where: str, latents: Sequence[Latent], terms: Sequence[Evaluated], num_data: int | None
) -> Tensor:
    """Return the sum of all terms, in the shape of log q, and over the data of global latents."""
    values = [term.value for term in terms if term.value is not None]
    local = bool(latents[0].batch)
    if local:
        short = [term for term in terms if term.value is not None and term.value.ndim == 1]
        if short:
            raise ValueError(
                f"{where}: expected term {short[0].name!r} to be of each datum, (K, *batch), got "
                f"shape (K,); a term of all the data needs an objective without weights, ELBO or "
                f"Reinforce"
            )
        return _sum(values)
    batch = longest_batch(values)
    size = math.prod(batch)
    if batch and num_data is not None and num_data != size and len(values[0]) > 1:
        raise ValueError(
            f"{where}: expected all {num_data} data at once under latents of all the data, got "
            f"{size} of them; N/B inside the log-mean-exp gives no bound. Use ELBO or Reinforce, "
            f"which are linear in the data, or num_samples=1"
        )
    scale = 1.0 if num_data is None else num_data / max(size, 1)
    return _sum([scale * v.flatten(1).sum(1) if v.ndim > 1 else v for v in values])


def log_q_of(latents: Sequence[Latent]) -> Tensor:
    return _sum([latent.log_q for latent in latents])


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
