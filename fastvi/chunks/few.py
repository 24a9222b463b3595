"""How many samples run backward, and what they are chosen by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvi._checks import check_backward_samples, plain
from fastvi.bounds.sums import Sums, Weighs
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.choice import Choice, choose, enough, weighed_once
from fastvi.ops import gaussian_rsample

log = logging.getLogger("fastvi")

# By how much the variance over the samples may grow.
GROWTH = 1.1
# A step with more than this share of the samples backward is no quicker than one with all.
NO_GAIN = 0.5
# So many steps are taken with all samples until it is tried again.
_REST = 20
# So many values has the number that a choice is drawn by.
_STEPS = 2.0**30
# The stream of a key that the choice is drawn from, beside those of the samples.
_STREAM = 0x46455721


class AutoFew(str):
    """``"auto"`` of a loss, with what it came to before."""

    def __init__(self, _: str) -> None:
        # Steps that are still to be taken with all samples.
        self.resting = 0
        self.said: set[int] = set()


def remembering_few(backward_samples: Any) -> Any:
    """Return a loss's ``backward_samples``: if it is ``"auto"``, one that remembers."""
    if isinstance(backward_samples, str) and backward_samples == "auto":
        return backward_samples if isinstance(backward_samples, AutoFew) else AutoFew("auto")
    return plain(backward_samples)


def forget_few(loss: object) -> None:
    """Let ``"auto"`` of a loss start as if it were new."""
    few = getattr(loss, "backward_samples", None)
    if isinstance(few, AutoFew):
        few.resting = 0


@dataclass(frozen=True)
class Few:
    """The setting: so many samples of each datum, or as many as the variance asks for."""

    samples: int | AutoFew
    growth: float

    @classmethod
    def of(
        cls,
        where: str,
        backward_samples: Any,
        variance_growth: float | None,
        weigher: Weigher,
    ) -> Few | None:
        """Check the arguments; None if all samples run backward."""
        if backward_samples is None and variance_growth is None:
            return None
        backward_samples, variance_growth = plain(backward_samples), plain(variance_growth)
        check_backward_samples(where, backward_samples, variance_growth)
        if backward_samples is None or weigher.num_samples == 1:
            return None
        if weigher.linear:
            raise ValueError(
                f"{where}: expected backward_samples to be None for a bound without weights, whose "
                f"samples all count alike, got {backward_samples!r}; use fewer num_samples"
            )
        if isinstance(backward_samples, str):
            samples = backward_samples if isinstance(backward_samples, AutoFew) else AutoFew("auto")
            return cls(samples, GROWTH if variance_growth is None else float(variance_growth))
        return None if backward_samples >= weigher.num_samples else cls(backward_samples, 0.0)

    @property
    def rests(self) -> bool:
        """Whether this step is taken with all samples, as the last tries gained nothing."""
        if not isinstance(self.samples, AutoFew) or self.samples.resting == 0:
            return False
        self.samples.resting -= 1
        return True

    def choose(
        self,
        where: str,
        parts: Sequence[str],
        sums: Sums,
        share: tuple[int, int],
        num_samples: int,
        log_w: Tensor,
        uniform: Tensor,
        *,
        takes_pairs: bool,
    ) -> Choice | None:
        r"""Choose among a share of the samples; None if all of them are to run backward."""
        begin, end = share
        if log_w.numel() == 0:
            return None
        weighs = weighed_once(sums, begin, log_w)
        if isinstance(self.samples, AutoFew):
            counts = self._enough(where, parts, weighs, begin, log_w, takes_pairs=takes_pairs)
            if not counts:
                return None
        else:
            # Of every share of the samples as many.
            few = end * self.samples // num_samples - begin * self.samples // num_samples
            numbers = [
                few * (n + 1) // len(parts) - few * n // len(parts) for n in range(len(parts))
            ]
            if sum(numbers) >= end - begin:
                return None
            counts = {
                part: torch.full(log_w.shape[1:], max(1, number), device=log_w.device)
                for part, number in zip(parts, numbers, strict=True)
            }
        as_list = isinstance(self.samples, AutoFew) and takes_pairs
        return choose(weighs, begin, log_w, counts, uniform, as_list=as_list)

    def _enough(
        self,
        where: str,
        parts: Sequence[str],
        sums: Weighs,
        begin: int,
        log_w: Tensor,
        *,
        takes_pairs: bool,
    ) -> dict[str, Tensor]:
        """Return what each datum needs, or all what one needs; nothing if that is too much."""
        assert isinstance(self.samples, AutoFew)
        counts = {part: enough(sums, begin, log_w, part, self.growth) for part in parts}
        if not takes_pairs:
            counts = {
                part: torch.full_like(count, int(count.max())) for part, count in counts.items()
            }
        mean = sum(float(count.double().mean()) for count in counts.values())
        gains = mean <= NO_GAIN * len(log_w)
        said = int(mean).bit_length() if gains else 0
        if said not in self.samples.said:
            self.samples.said.add(said)
            log.info(
                "%s: backward_samples='auto' took %.1f of %d samples of each datum, for at most "
                "%g times the variance over them",
                where, mean if gains else len(log_w), len(log_w), self.growth,
            )  # fmt: skip
        if not gains:
            self.samples.resting = _REST
        return counts if gains else {}


class BackwardSamples:
    """Keep how many samples of a bound run backward, and by what that may raise the variance."""

    backward_samples: Any = None
    variance_growth: float | None = None

    @property
    def where(self) -> str:
        """Return the name that errors begin with."""
        return type(self).__name__

    def _keep_few(
        self, backward_samples: Any, variance_growth: float | None, weigher: Weigher
    ) -> None:
        """Check and keep the setting."""
        self.backward_samples = remembering_few(backward_samples)
        self.variance_growth = variance_growth
        self._few(weigher)  # Which refuses wrong settings.

    def _few(self, weigher: Weigher) -> Few | None:
        return Few.of(self.where, self.backward_samples, self.variance_growth, weigher)


def uniform_of(key: Tensor, parts: int, begin: int, batch: torch.Size) -> Tensor:
    r"""Draw what a choice depends on, (parts, \*batch), between 0 and 1, in float64."""
    zero = torch.zeros(batch.numel(), 1, dtype=torch.float64, device=key.device)
    stream = torch.tensor([0, _STREAM], device=key.device)
    noise, _, _ = gaussian_rsample(
        zero, log_var=zero, num_samples=parts, key=key ^ stream, sample_offset=begin
    )
    # In the middle of steps, so that sums of probabilities may round without changing a choice.
    number = (torch.special.ndtr(noise) * _STEPS).floor().clamp(max=_STEPS - 1.0)
    return ((number + 0.5) / _STEPS).reshape(parts, *batch)


def parts_of(weigher: Weigher, *, signals: bool) -> tuple[str, ...]:
    """Return the parts of the gradient that need a choice of their own.

    Where a sample counts for the guide at most what it counts for the model, one choice serves.
    """
    parts = ["model"]
    if not (weigher.same or weigher.guide_counts_less or weigher.gradient == "score"):
        parts.append("guide")
    if signals:
        parts.append("score")
    return tuple(parts)
