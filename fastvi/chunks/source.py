"""Sources of samples: what draws a range of the K samples, again and again, and evaluates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvi._gradients import sent_on, with_gradient
from fastvi.bounds.sums import Weights
from fastvi.ops.new_key import new_key


@dataclass(frozen=True, eq=False)
class Samples:
    r"""Some of the K samples: a range of their numbers, or for each datum numbers of its own.

    With an ``index``, int64 of shape (C, \*batch), the range is that of the chosen ones. With
    ``data``, int64 of shape (C,) as the ``index`` then is, each is a sample of the datum that it
    names: a number among all data.
    """

    begin: int
    end: int
    index: Tensor | None = None
    data: Tensor | None = None

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def numbers(self) -> int | Tensor:
        """The number of the first, or the numbers of all."""
        return self.begin if self.index is None else self.index


class Path:
    """The factor of the gradient of samples, between the model and the guide.

    The samples are needed before their weights are known, so the weight is put in afterwards.
    """

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        # By name: samples as they were drawn, with the dimensions of their event, and as the model
        # sees them.
        self.drawn: dict[str, tuple[Tensor, int | None]] = {}
        self.seen: dict[str, Tensor] = {}

    def attach(self, name: str, value: Tensor, event_dim: int | None = None) -> Tensor:
        """Return what the model is to see of samples, whose gradient is weighed on its way back.

        The weight has the leading dimensions of the samples; with ``event_dim`` it has those on
        the left of the event.
        """
        if not value.requires_grad:
            return value
        self.drawn[name] = value, event_dim
        self.seen[name] = _Weighted.apply(value, self, event_dim)
        return self.seen[name]


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Path, event_dim: int | None) -> Tensor:  # type: ignore[override]
        ctx.path, ctx.event_dim = path, event_dim
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight = ctx.path.weight
        if weight is None:
            return grad, None, None
        # A sample without weight adds nothing, whatever its derivative.
        return sent_on(grad, _beside(weight, grad, ctx.event_dim).to(grad.dtype)), None, None


def _beside(weight: Tensor, samples: Tensor, event_dim: int | None) -> Tensor:
    """Return a weight for each sample, with the dimensions of the samples."""
    if event_dim is None:
        return weight.reshape((*weight.shape, *[1] * (samples.ndim - weight.ndim)))
    # A single sample has no dimension of samples, and none of the plates that it is not in.
    batch = samples.ndim - event_dim
    return weight.reshape((*weight.shape[weight.ndim - batch :], *[1] * event_dim))


class _AlongSlope(torch.autograd.Function):
    """Zero, whose derivative by the samples is a given slope."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, still: Tensor, drawn: Tensor, slope: Tensor, event_dim: int | None, shaped: Any
    ) -> Tensor:
        ctx.save_for_backward(slope)
        ctx.event_dim, ctx.shaped = event_dim, shaped
        return still.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        grad = _beside(ctx.shaped(grad), slope, ctx.event_dim)
        return None, sent_on(slope, grad.to(slope.dtype)), None, None, None


class Evaluated:
    r"""Some samples' log p and log q, (C, \*batch), with their graph where that was asked for."""

    # Whether log p - log q is the log-weight, with its whole graph.
    is_whole = True

    def __init__(
        self, log_p: Tensor, log_q: Tensor, score: Tensor | None = None, path: Path | None = None
    ) -> None:
        self.log_p = log_p
        self.log_q = log_q
        # The log-probability of what has no path.
        self.score = score
        self.path = Path() if path is None else path

    @property
    def log_w(self) -> Tensor:
        """The log-weights without their graph."""
        return self.log_p.detach() - self.log_q.detach()

    def bound(self, weights: Weights, slopes: Mapping[str, Tensor] | None = None) -> Tensor:
        r"""Return the bound, (\*batch,), with these samples' part of its gradient.

        ``slopes`` are the derivatives of log p by the samples, where the model's weights are too
        small to carry those of the guide.
        """
        value = weights.bound.to(torch.promote_types(self.log_p.dtype, self.log_q.dtype))
        return with_gradient(value, *self.parts(weights, slopes))

    def parts(
        self, weights: Weights, slopes: Mapping[str, Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return each part of the gradient with its weight."""
        parts = [(self.log_p, weights.model), *self.along(weights, slopes)]
        parts.append((self.log_q, -weights.guide))
        if self.score is not None:
            assert weights.score is not None
            parts.append((self.score, weights.score))
        return parts

    def along(
        self, weights: Weights, slopes: Mapping[str, Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Weigh the path of the samples, by a factor on it or by terms apart from the model's."""
        if weights.guide is weights.model:
            return []
        if slopes is None:
            self.path.weight = self.shaped(weights.ratio)
            return []
        self.path.weight = torch.zeros_like(self.shaped(weights.guide))
        still = torch.zeros_like(self.log_p, requires_grad=False)
        parts = []
        for name, slope in slopes.items():
            drawn, event_dim = self.path.drawn[name]
            along = _AlongSlope.apply(still, drawn, slope, event_dim, self.shaped)
            parts.append((along, weights.guide))
        return parts

    def shaped(self, weight: Tensor) -> Tensor:
        """Return a weight with the dimensions that the samples have."""
        return weight

    def slopes(self) -> dict[str, Tensor]:
        """Differentiate log p by the samples, each with weight one; uses up the graph."""
        seen = self.path.seen
        found = torch.autograd.grad(self.log_p.sum(), list(seen.values()), allow_unused=True)
        return {name: slope for name, slope in zip(seen, found, strict=True) if slope is not None}


class Source:
    """What draws any range of the K samples, the same whenever it is asked, and evaluates them."""

    # Under which name errors are raised.
    where: str

    @property
    def functions(self) -> Any:
        """The functions of the user that are called, whose surroundings have to stay."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        raise NotImplementedError

    @property
    def inputs(self) -> Sequence[Tensor]:
        """Tensors that must not be changed in place before the backward pass."""
        return ()

    def evaluate(self, samples: Samples, *, graph: bool) -> Evaluated:
        """Draw some samples, and evaluate them."""
        raise NotImplementedError

    def prepare(self, chunks: Sequence[Samples]) -> None:
        """Learn which samples will be asked for."""

    def own(self, samples: Samples) -> Sequence[Tensor]:
        """Return what these samples alone depend on: samples that were given, and not drawn."""
        return ()

    @property
    def takes_pairs(self) -> bool:
        """Whether samples can be evaluated of which some data have more than others."""
        return False

    def choice_key(self) -> Tensor:
        """Return the key that a choice among the samples is drawn from."""
        return new_key(self.device)

    def gathered(self, group: Any) -> None:
        """Learn that the first pass is over; the ranks of a group may meet."""

    def setting(self) -> tuple[Any, ...]:
        """What a chunk size that was found for this source may depend on."""
        raise NotImplementedError

    def facts(self) -> Mapping[str, object]:
        """What all ranks must have alike."""
        return {}

    def agree(self, group: Any) -> None:
        """Take the first rank's key, where none was given."""

    def nothing(self) -> Tensor | None:
        r"""Return log-weights of no sample, (0, \*batch), or None where they are not known."""
        return None
