"""The diagnosis of a VAE on data: how tight the bound is, and how to improve it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvi._checks import check_num_samples, check_rows
from fastvi.chunks.few import GROWTH, NO_GAIN
from fastvi.diagnostics.weights_and_gradients import gradients, ladder_of, log_weights, measure
from fastvi.models.vae import VAE
from fastvi.ops import new_key

GOOD_K, USABLE_K = 0.5, 0.7
_SMALL_GAP = 0.1  # nats: a gap below it is called small


@dataclass(frozen=True)
class Diagnosis:
    r"""Hold the results of :func:`diagnose` for N data and K samples of each, in nats.

    Attributes:
        num_samples: K.
        ess: effective sample size of each example, shape (N,).
        pareto_k: k-hat of each example, shape (N,).
        gap: estimated log p - L_K of each example, shape (N,).
        max_weight: share of the largest weight in the sum, shape (N,).
        ladder: numbers of samples, the last of them K.
        bounds: L_k of each example for each k of the ladder, shape (len(ladder), N): the mean over
            the K // k disjoint groups of k samples, so unbiased for the expected bound.
        snr_samples: numbers of samples at which gradients were measured.
        snr: signal-to-noise ratio of the gradient by estimator and group of parameters, one
            number for each of ``snr_samples``.
        tail: the M + 1 largest log-weights of each example minus its L_K, the largest first. k-hat
            is fitted to the M that are above the last. Shape (M + 1, N), or ``None``.
        backward_samples: how many of k samples have to run backward, for a variance over the
            samples of at most 1.1 times (:func:`needed_backward_samples`), the mean over the
            groups; shape (len(ladder), N), or ``None``.

    Example:
        >>> vae = fastvi.VAE(torch.nn.Linear(9, 4), torch.nn.Linear(2, 9))
        >>> found = fastvi.diagnose(vae, torch.ones(5, 9), num_samples=100, snr_draws=2)
        >>> found.bounds.shape == (len(found.ladder), 5) and found.ess.shape == (5,)
        True
        >>> for sentence in found.advice():
        ...     assert sentence.endswith(".")
    """

    num_samples: int
    ess: Tensor
    pareto_k: Tensor
    gap: Tensor
    max_weight: Tensor
    ladder: tuple[int, ...]
    bounds: Tensor
    snr_samples: tuple[int, ...]
    snr: dict[str, dict[str, tuple[float, ...]]]
    tail: Tensor | None = None
    backward_samples: Tensor | None = None

    @property
    def log_evidence(self) -> Tensor:
        """Return L_K plus the gap, shape (N,); it estimates log p if k-hat is below 0.7."""
        return self.bounds[-1] + self.gap

    @property
    def reliable(self) -> Tensor:
        """Return whether k-hat is at most 0.7, shape (N,)."""
        return self.pareto_k <= USABLE_K

    @property
    def finite(self) -> Tensor:
        """Return whether all bounds of an example are finite, shape (N,)."""
        return torch.isfinite(self.bounds).all(0)

    @property
    def backward_speedup(self) -> Tensor:
        r"""Return by what ``backward_samples="auto"`` speeds a step up, shape (len(ladder),).

        .. math:: \max\left(1, \frac{3}{1 + 3\, \bar m / k}\right)

        A forward pass is counted as 1 and a backward pass as 2: all samples cost 3, and a few cost
        one forward pass of all and 3 for each of the :math:`\bar m` that run backward, which is the
        mean over the data. NaN where it is not known.
        """
        if self.backward_samples is None:
            return torch.full((len(self.ladder),), math.nan, dtype=torch.float64)
        share = self.backward_samples.nanmean(1) / torch.tensor(self.ladder, dtype=torch.float64)
        return (3.0 / (1.0 + 3.0 * share)).clamp(min=1.0)

    def advice(self) -> list[str]:
        """Return advice, one or two sentences for each finding, the gravest first."""
        return [
            *self._on_broken_weights(),
            *self._on_tail(),
            *self._on_effective_sample_size(),
            *self._on_num_samples(),
            *self._on_backward_samples(),
            *self._on_gradients(),
        ]

    def _on_broken_weights(self) -> Iterator[str]:
        broken = int((~self.finite).sum())
        if broken:
            yield (
                f"{broken} of {len(self.ess)} data have a bound that is not finite: the model "
                "gives them probability zero, or a network's output is NaN."
            )

    def _on_tail(self) -> Iterator[str]:
        k = self.pareto_k[~self.pareto_k.isnan()]
        if not len(k):
            yield f"k-hat needs at least 25 weights, and K is {self.num_samples}: draw more."
            return
        middle, bad = k.median().item(), int((k > USABLE_K).sum())
        share = f"{bad} of {len(k)} data"
        if middle > USABLE_K:
            yield (
                f"k-hat = {middle:.2f} for the median datum, and above {USABLE_K} for {share}: "
                "more samples will not help. Widen the guide (a richer encoder, a larger floor "
                "under its scale), or lower the number of latent features. Until then the "
                "estimated log p is only a lower bound."
            )
        elif bad:
            worst = self.pareto_k.nan_to_num(-math.inf).argsort(descending=True)
            rows = ", ".join(str(row) for row in worst[: min(bad, 5)].tolist())
            yield (
                f"k-hat is good for the median datum ({middle:.2f}) but above {USABLE_K} for "
                f"{share}: there L_K is too low by an unknown amount, whatever K. Look at "
                f"{'row' if bad == 1 else 'rows'} {rows}{' first' if bad > 5 else ''}; the guide "
                "is too narrow there."
            )
        elif middle > GOOD_K:
            yield (
                f"k-hat = {middle:.2f} for the median datum, and nowhere above {USABLE_K}: the "
                "estimates hold, but the weights have no finite variance, so the error falls "
                "more slowly than 1 / K."
            )
        else:
            yield (
                f"k-hat = {middle:.2f} for the median datum, and nowhere above {USABLE_K}: the "
                "bound and the estimated log p can be trusted."
            )

    def _on_effective_sample_size(self) -> Iterator[str]:
        ess, count = self.ess.nanmedian().item(), self.num_samples
        if count == 1:
            return
        if ess > 0.9 * count:
            yield (
                f"ESS {ess:.0f} of {count}: the guide is close to the posterior, and K can be "
                "smaller."
            )
        elif ess < min(10.0, 0.1 * count):
            share = self.max_weight.nanmedian().item()
            yield (
                f"ESS {ess:.1f} of {count}: the weights have collapsed, and the largest alone "
                f"has {share:.0%} of the sum (median datum). The decoder learns from one or a "
                "few samples, and the others are drawn in vain."
            )

    def _on_num_samples(self) -> Iterator[str]:
        good = self.reliable & torch.isfinite(self.gap) & self.finite
        if int(good.sum()) < 0.5 * len(good):
            return
        means = self.bounds[:, good].mean(1)
        evidence = self.log_evidence[good].mean().item()
        gaps = [evidence - bound for bound in means.tolist()]
        near = (k for k, gap in zip(self.ladder, gaps, strict=True) if gap <= _SMALL_GAP)
        enough = next(near, None)
        where = "" if bool(good.all()) else f" (mean over the {int(good.sum())} reliable data)"
        if enough is None:
            needed = 10 ** math.ceil(math.log10(self.num_samples * gaps[-1] / _SMALL_GAP))
            yield (
                f"L_{self.num_samples} is still {gaps[-1]:.2f} nats below the estimated log "
                f"p{where}: about K = {needed:,} would bring it within {_SMALL_GAP}."
            )
        elif enough == 1:
            yield (
                f"The ELBO is within {max(gaps[0], 0.0):.2f} nats of the estimated log p"
                f"{where}: importance weights have nothing to add, and K = 1 will do."
            )
        else:
            yield (
                f"The ELBO is {gaps[0]:.2f} nats below the estimated log p{where}, and "
                f"K = {enough} brings the bound within {_SMALL_GAP}: more is of no use to the "
                "value of the bound."
            )

    def _on_backward_samples(self) -> Iterator[str]:
        if self.backward_samples is None or self.num_samples == 1:
            return
        count, mean = self.num_samples, self.backward_samples[-1].nanmean().item()
        if math.isnan(mean):
            return
        if mean > NO_GAIN * count:
            yield (
                f"{mean:.0f} of {count} samples would have to run backward, in the mean, for a "
                f"variance over the samples of at most {GROWTH:g} times: the weight is on too many "
                "of them for backward_samples to save time."
            )
            return
        factor = self.backward_speedup[-1].item()
        yield (
            f"{mean:.0f} of {count} samples are enough in the backward pass, in the mean, for a "
            f"variance over the samples of at most {GROWTH:g} times: to train with K = {count}, "
            f"backward_samples='auto' would take about 1/{factor:.1f} of the time."
        )

    def _on_gradients(self) -> Iterator[str]:
        if len(self.snr_samples) < 2 or not {"iwae", "dreg"} <= self.snr.keys():
            return
        if not all("encoder" in groups for groups in self.snr.values()):
            return
        iwae, dreg = self.snr["iwae"]["encoder"], self.snr["dreg"]["encoder"]
        first, last = self.snr_samples[0], self.snr_samples[-1]
        if not all(math.isfinite(x) for x in (iwae[0], iwae[-1], dreg[-1])):
            return
        if iwae[-1] < 0.7 * iwae[0] and dreg[-1] > iwae[-1]:
            yield (
                f"The encoder's signal-to-noise ratio falls with K for the estimator iwae, from "
                f"{iwae[0]:.2f} at K = {first} to {_ratio(iwae[-1])} at K = {last}; with dreg it "
                f"is {dreg[-1]:.2f} there: use dreg."
            )
        elif dreg[-1] > 1.2 * iwae[-1]:
            yield (
                f"The encoder's signal-to-noise ratio at K = {last} is {dreg[-1]:.2f} with dreg "
                f"and {_ratio(iwae[-1])} with iwae: use dreg."
            )
        elif iwae[-1] > 1.2 * dreg[-1]:
            yield (
                f"The encoder's signal-to-noise ratio at K = {last} is {iwae[-1]:.2f} with iwae "
                f"and {_ratio(dreg[-1])} with dreg: iwae is the quieter one for this model."
            )
        if max(dreg[-1], iwae[-1]) < 0.3:
            yield (
                f"Both gradients of the encoder drown in noise at K = {last}: larger batches or a "
                "smaller learning rate help, more samples do not."
            )


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "nothing that can be measured"


def diagnose(
    vae: VAE,
    x: Tensor,
    *,
    num_samples: int = 1000,
    key: Tensor | None = None,
    snr_samples: Sequence[int] = (1, 10, 100, 1000),
    snr_draws: int = 50,
    snr_data: int = 16,
) -> Diagnosis:
    r"""Examine a VAE's importance weights on data, and the noise of its gradients.

    The weights are drawn in chunks, for some data at a time, so that memory grows neither with K
    nor with the number of data. The bounds for all numbers of samples come from the same weights.
    Gradients are measured on the first ``snr_data`` data, for the estimators ``"iwae"`` and
    ``"dreg"``, with ``snr_draws`` independent keys. Each of them costs a training step. Call
    ``eval()`` first if the networks have dropout or batch normalisation.

    Args:
        vae: the model.
        x: data, shape (N, \*event). Held-out data tell about the estimate of log p, training data
            about the training.
        num_samples: K.
        key: from :func:`fastvi.ops.new_key`; ``None`` draws one. A key repeats a diagnosis.
        snr_samples: numbers of samples at which gradients are measured, if they are at most K.
        snr_draws: gradients for each number of samples, at least 2; 0 measures none.
        snr_data: the number of data in the batch of the gradients.

    Returns:
        A :class:`Diagnosis`, on the CPU, in float64.

    Raises:
        TypeError: ``x`` is not a floating-point tensor.
        ValueError: no data, or a number below 1.

    Example:
        >>> vae = fastvi.VAE(torch.nn.Linear(9, 4), torch.nn.Linear(2, 9))
        >>> found = fastvi.diagnose(vae, torch.ones(5, 9), num_samples=200, snr_draws=2)
        >>> found.ladder
        (1, 2, 5, 10, 20, 50, 100, 200)
        >>> found.snr_samples
        (1, 10, 100)
    """
    where = "diagnose"
    check_num_samples(where, num_samples)
    check_num_samples(where, snr_data, "snr_data")
    for count in snr_samples:
        check_num_samples(where, count, "each of snr_samples")
    if snr_draws != 0:
        check_num_samples(where, snr_draws, "snr_draws")
    check_rows(where, x)
    if key is None:
        key = new_key(x.device)
    ladder = ladder_of(num_samples)
    parts = []
    for log_w in log_weights(vae, x, num_samples, key):
        parts.append(measure(log_w, ladder))
    ess, k, gap, largest, bounds, tail, few = (
        torch.cat([part[index] for part in parts], dim=-1).double().cpu() for index in range(7)
    )
    measured = tuple(sorted({k for k in snr_samples if k <= num_samples})) if snr_draws else ()
    snr = gradients(vae, x[:snr_data], measured, snr_draws, key) if measured else {}
    return Diagnosis(num_samples, ess, k, gap, largest, ladder, bounds, measured, snr, tail, few)
