"""The source of the ELBO, whose terms are added up chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvi._gradients import with_gradient
from fastvi._modes import records_graphs
from fastvi.bounds.sums import Weights
from fastvi.bounds.weighers import Mean
from fastvi.chunks.source import Evaluated
from fastvi.objectives.elbo_terms import ELBOTerms, check_paths, elbo_terms, touched_by
from fastvi.objectives.latent import Draws, Latent, LogJoint
from fastvi.objectives.source import SampleSource

# From a latent and the signals of all samples, (K, ...), to the weights of its log q.
Advantage = Callable[[Latent, Tensor], Tensor]


class ELBOSource(SampleSource):
    """Samples of a bound that is the mean of their terms.

    ``path`` holds the parameters of log q constant. With ``advantage`` the log-probabilities of
    latents without a path are weighed by their signals. It keeps these, four bytes a sample.
    """

    def __init__(
        self,
        where: str,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        num_samples: int,
        *,
        kl: str,
        facts: Mapping[str, object],
        path: bool = False,
        beta: float = 1.0,
        advantage: Advantage | None = None,
        data: Any = None,
        num_data: int | None = None,
    ) -> None:
        super().__init__(where, latents, log_joint, num_samples, data=data, num_data=num_data)
        self.weigher = Mean(self.num_samples, None)
        self.kl = kl
        self.path = path
        self.beta = beta
        self.alike = facts
        self.advantage = advantage
        if path:
            check_paths(where, self.specimens)
        self.scored = [x for x in self.specimens if not x.reparameterised and advantage is not None]
        self.signals: dict[str, Tensor] = {}
        self.advantages: dict[str, Tensor] = {}
        # The terms of the last evaluation.
        self.elbo: ELBOTerms | None = None

    def needs_log_q_path(self, latent: Latent) -> bool:
        return self.path and records_graphs()

    def facts(self) -> Mapping[str, object]:
        return {**self.alike, **super().facts()}

    def evaluated(self, latents: Sequence[Latent], begin: int = 0) -> ELBOEvaluated:
        elbo = elbo_terms(
            self.where, latents, self.log_joint, self.num_data, self.kl, path=self.path,
            beta=self.beta,
        )  # fmt: skip
        self.elbo = elbo
        for latent in latents:
            if any(latent.name == each.name for each in self.scored):
                self._keep(latent.name, _signal(elbo, latent, latents), begin)
        return ELBOEvaluated(elbo, latents, self, begin)

    def _keep(self, name: str, signal: Tensor, begin: int) -> None:
        kept = self.signals.get(name)
        if kept is None:
            # The signals of another rank's samples are zero here.
            kept = signal.new_zeros(self.num_samples, *signal.shape[1:])
            self.signals[name] = kept
        kept[begin : begin + len(signal)] = signal

    def gathered(self, group: Any) -> None:
        """Compute the advantages from the signals of all samples."""
        assert self.advantage is not None or not self.scored
        for latent in self.scored:
            signal = self.signals.pop(latent.name)
            if group is not None:
                signal = group.add(signal)
            self.advantages[latent.name] = self.advantage(latent, signal)  # type: ignore[misc]


class ELBOEvaluated(Evaluated):
    """The terms at some of the samples, and the bound of these samples alone."""

    is_whole = False

    def __init__(
        self, elbo: ELBOTerms, latents: Sequence[Latent], source: ELBOSource, begin: int
    ) -> None:
        self.elbo = elbo
        value = elbo.value()
        super().__init__(value[None], torch.zeros_like(value[None], requires_grad=False))
        self.latents = latents
        self.source = source
        self.begin = begin

    @property
    def log_w(self) -> Tensor:
        """Return the mean over these samples, repeated for each of them."""
        count = self.elbo.num_samples
        return self.log_p.detach().expand(count, *self.log_p.shape[1:])

    def bound(self, weights: Weights, slopes: Mapping[str, Tensor] | None = None) -> Tensor:
        share = weights.model.sum(0, keepdim=True)
        value = weights.bound.to(self.log_p.dtype)
        return self.credited(with_gradient(value, (self.log_p, share)))

    def credited(self, bound: Tensor) -> Tensor:
        """Add to a bound the gradient of latents without a path."""
        for latent in self.latents:
            advantage = self.source.advantages.get(latent.name)
            if advantage is None:
                continue
            log_q = self.elbo.share(latent.log_q)
            weight = advantage.detach()[self.begin : self.begin + len(log_q)]
            zero = torch.zeros(latent.batch, dtype=bound.dtype, device=bound.device)
            bound = bound + with_gradient(zero, (log_q, weight / self.source.num_samples))
        return bound


def _signal(elbo: ELBOTerms, latent: Latent, latents: Sequence[Latent]) -> Tensor:
    """The sum of the terms that depend on the latent, of the shape of its log q."""
    touched = touched_by(latent, latents)
    signal = torch.zeros_like(latent.log_q, requires_grad=False)
    for term in elbo.terms:
        if term.value is None or not term.depends_on & touched:
            continue
        value = term.value.detach()
        if value.ndim == signal.ndim:
            signal = signal + value
        elif signal.ndim == 1:
            # All data depend on a latent of all data; the batch stands for them.
            scale = elbo.num_data / max(elbo.batch.numel(), 1)
            signal = signal + scale * value.flatten(1).sum(1)
        # A term of all data does not depend on the latent of one datum.
    return signal
