"""The source of latents, which are drawn range by range from keys, or given all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvi._modes import records_graphs
from fastvi.bounds.sums import Weights
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.source import Evaluated, Path, Samples, Source
from fastvi.objectives.elbo_terms import check_paths, moves_with_samples
from fastvi.objectives.latent import Draws, Latent, LogJoint, check_latents, check_reparameterised
from fastvi.objectives.objective import check_one_batch, log_joint_of, log_q_of
from fastvi.objectives.terms import evaluate


class SampleSource(Source):
    """Samples of latents, and a log-joint that is evaluated at them.

    ``latents`` holds all samples, or draws any range of them.
    """

    weigher: Weigher

    def __init__(
        self,
        where: str,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        num_samples: int,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> None:
        self.where = where
        self.log_joint = log_joint
        self.data = data
        self.num_data = num_data
        self.draws = latents if isinstance(latents, Draws) else None
        self.given = [] if isinstance(latents, Draws) else check_latents(where, latents)
        self.num_samples = num_samples if self.draws else len(self.given[0].value)
        # One sample, or all of them, whose shapes and devices are read.
        with torch.no_grad():
            self.specimens = self.given if self.draws is None else self._checked(self.draws(1, 0))
        self._pieces: dict[tuple[int, int], list[Latent]] = {}

    def needs_log_q_path(self, latent: Latent) -> bool:
        """Return whether the estimator needs log q with constant parameters."""
        raise NotImplementedError

    def evaluated(self, latents: Sequence[Latent], begin: int = 0) -> Evaluated:
        """Evaluate the log-joint at samples, with a graph if autograd records one."""
        raise NotImplementedError

    def _checked(self, latents: Sequence[Latent]) -> list[Latent]:
        return check_latents(self.where, latents)

    # ---- what the engine calls ------------------------------------------------------------------
    @property
    def functions(self) -> Any:
        return self.log_joint

    @property
    def device(self) -> torch.device:
        return self.specimens[0].value.device

    def choice_key(self) -> Tensor:
        key = None if self.draws is None else self.draws.key
        return super().choice_key() if key is None else key

    def prepare(self, chunks: Sequence[Samples]) -> None:
        """Cut the given samples, all at once, so that their gradients are added in one place."""
        self._pieces = {}
        if self.draws is not None or not chunks:
            return
        columns = [
            _cut(latent, chunks, with_path=self.needs_log_q_path(latent)) for latent in self.given
        ]
        for chunk, latents in zip(chunks, zip(*columns, strict=True), strict=True):
            self._pieces[chunk.begin, chunk.end] = list(latents)

    def own(self, samples: Samples) -> Sequence[Tensor]:
        found = []
        for latent in self._pieces.get((samples.begin, samples.end), ()):
            found += [latent.value, latent.log_q]
            if self.needs_log_q_path(latent):
                found.append(latent.log_q_path())
        return [tensor for tensor in found if tensor.requires_grad]

    def setting(self) -> tuple[Any, ...]:
        shapes = tuple(latent.value.shape[1:] for latent in self.specimens)
        return self.where, shapes, self.device, self.draws is None

    def facts(self) -> Mapping[str, object]:
        parts = self.data if isinstance(self.data, (tuple, list)) else (self.data,)
        told: dict[str, object] = {
            f"data {i}": part for i, part in enumerate(parts) if isinstance(part, Tensor)
        }
        for latent in self.specimens:
            told |= {f"samples of {latent.name!r}": latent.value}
            told |= {f"log q of {latent.name!r}": latent.log_q}
        return told

    def evaluate(self, samples: Samples, *, graph: bool) -> Evaluated:
        with torch.set_grad_enabled(graph):
            return self.evaluated(self._latents(samples), samples.begin)

    def _latents(self, samples: Samples) -> Sequence[Latent]:
        if self.draws is not None:
            return self._checked(self.draws(len(samples), samples.numbers))
        if (samples.begin, samples.end) in self._pieces:
            return self._pieces[samples.begin, samples.end]
        return [_cut(latent, [samples], with_path=False)[0] for latent in self.given]


class LatentSource(SampleSource):
    """Samples with weights; ``credits`` says whether samples without a path get a signal."""

    def __init__(
        self,
        where: str,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        weigher: Callable[[int], Weigher],
        num_samples: int,
        *,
        credits: bool,
        data: Any = None,
        num_data: int | None = None,
    ) -> None:
        super().__init__(where, latents, log_joint, num_samples, data=data, num_data=num_data)
        self.weigher = weigher(self.num_samples)
        check_one_batch(where, self.specimens)
        gradient = self.weigher.gradient
        if gradient != "score" and not credits:
            check_reparameterised(where, self.specimens)
        if gradient != "total":
            check_paths(where, self.specimens)
        # The latents that get a signal.
        self.unseen = [x.name for x in self.specimens if not x.reparameterised]
        self.unseen = self.unseen if gradient == "total" else []

    def needs_log_q_path(self, latent: Latent) -> bool:
        if self.weigher.gradient == "total" or not records_graphs():
            return False
        return moves_with_samples(latent, self.specimens)

    def evaluated(self, latents: Sequence[Latent], begin: int = 0) -> Evaluated:
        path, values = Path(), {}
        for latent in latents:
            value = latent.value
            if self.weigher.gradient == "score":
                value = value.detach()
            same = self.weigher.same
            values[latent.name] = value if same else path.attach(latent.name, value)
        terms = evaluate(self.where, latents, values, self.log_joint)
        log_p = log_joint_of(self.where, latents, terms, self.num_data)
        return _LatentsEvaluated(log_p, latents, self, path)


class _LatentsEvaluated(Evaluated):
    """Terms whose log q may have constant parameters, for each latent by itself."""

    def __init__(
        self, log_p: Tensor, latents: Sequence[Latent], source: LatentSource, path: Path
    ) -> None:
        unseen = [x for x in latents if x.name in source.unseen]
        score = log_q_of(unseen) if unseen else None
        super().__init__(log_p, log_q_of(latents), score, path)
        self.gradient = source.weigher.gradient
        self.latents = latents

    def parts(
        self, weights: Weights, slopes: Mapping[str, Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        if self.gradient == "total":
            return super().parts(weights, slopes)
        moving = [x.log_q_path() for x in self.latents if moves_with_samples(x, self.latents)]
        if self.gradient == "score":
            assert weights.score is not None
            # The score is the total derivative without the path.
            parts = [(self.log_p, weights.model), (self.log_q, weights.score)]
            return parts + [(part, -weights.score) for part in moving]
        parts = [(self.log_p, weights.model), *self.along(weights, slopes)]
        return parts + [(part, -weights.guide) for part in moving]


def _cut(latent: Latent, chunks: Sequence[Samples], *, with_path: bool) -> list[Latent]:
    """Cut the samples of chunks into pieces; ``with_path`` adds log q at constant parameters."""
    columns = [latent.value, latent.log_q]
    if with_path:
        columns.append(latent.log_q_path())
    pieces = [_values_of(column, chunks) for column in columns]
    return [
        latent.part(value, log_q, log_q_path=along[0] if along else None)
        for value, log_q, *along in zip(*pieces, strict=True)
    ]


def _values_of(values: Tensor, chunks: Sequence[Samples]) -> tuple[Tensor, ...]:
    """Those of each chunk among all samples' values."""
    if chunks[0].index is None:
        found = values[chunks[0].begin : chunks[-1].end]
    else:
        index = torch.cat([chunk.index for chunk in chunks])  # type: ignore[misc]
        index = index.reshape(*index.shape, *[1] * (values.ndim - index.ndim))
        found = values.gather(0, index.expand(-1, *values.shape[1:]))
    return found.split([len(chunk) for chunk in chunks])
