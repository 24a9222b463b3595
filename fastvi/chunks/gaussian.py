"""The source of samples of a diagonal Gaussian, which are drawn again from their key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastvi._gradients import with_gradient
from fastvi._loss_arguments import LogLikelihood, OfData, Prior, log_px_of
from fastvi.bounds.sums import Weights
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.engine import Cut, bound_in_passes
from fastvi.chunks.source import Evaluated, Path, Samples, Source
from fastvi.ops import gaussian_log_prob, gaussian_rsample
from fastvi.ops._call import refuse_strict_export, transforms_active
from fastvi.ops.gaussian_rsample import rsample


@dataclass
class GaussianSource(Source):
    """Draw q(z given x) from its key, with a likelihood and perhaps a prior; ``beta`` weighs both.

    Its samples cost no memory: the noise of a range is made again whenever it is asked for.
    """

    where: str
    log_likelihood: LogLikelihood
    loc: Tensor
    log_var: Tensor
    prior: Prior | None
    key: Tensor
    weigher: Weigher
    # The weight of log p - log q beside log p(x | z).
    beta: float = 1.0
    # Whether the key was drawn here, so that the first rank's may serve all.
    own_key: bool = False
    # Other facts that all ranks must have in common.
    alike: Mapping[str, object] = field(default_factory=dict)
    validate_args: bool = False

    def __post_init__(self) -> None:
        self._meet_in_type()
        self.loc, self.log_var = torch.broadcast_tensors(self.loc, self.log_var)

    def bound(self, how: Cut) -> Tensor:
        r"""Compute the bound, shape (\*batch,), differentiable in all that it depends on."""
        if transforms_active():
            raise RuntimeError(
                f"{self.where}: chunk_size, group, backward_samples and estimators other than "
                f"'iwae', 'stl' and 'dreg' do not work under torch.func transforms"
            )
        refuse_strict_export(self.where, "'iwae', 'stl' and 'dreg'")
        return bound_in_passes(self, self.weigher, how)

    # ---- what the engine asks -------------------------------------------------------------------
    @property
    def functions(self) -> Any:
        return self.log_likelihood

    @property
    def device(self) -> torch.device:
        return self.loc.device

    @property
    def inputs(self) -> Sequence[Tensor]:
        return [x for x in (self.loc, self.log_var, *(self.prior or ())) if x.requires_grad]

    def setting(self) -> tuple[Any, ...]:
        return self.where, self.loc.shape, self.loc.dtype, self.loc.device

    def facts(self) -> Mapping[str, object]:
        prior_loc, prior_log_var = self.prior or (None, None)
        return {
            "number of data": self.loc.shape[:-1].numel(),
            "number of latent features": self.loc.shape[-1],
            "dtype": str(self.loc.dtype),
            "beta": self.beta,
            **self.alike,
            "key": None if self.own_key else self.key.tolist(),
            "x": self.log_likelihood.x if isinstance(self.log_likelihood, OfData) else None,
            "loc": self.loc,
            "log_var": self.log_var,
            "prior loc": prior_loc,
            "prior log_var": prior_log_var,
        }

    def agree(self, group: Any) -> None:
        if self.own_key:
            self.key = group.common_key(self.key)

    def nothing(self) -> Tensor:
        return torch.zeros(0, *self.loc.shape[:-1], dtype=self.acc, device=self.loc.device)

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.loc.dtype == torch.float64 else torch.float32

    def choice_key(self) -> Tensor:
        return self.key

    @property
    def takes_pairs(self) -> bool:
        batch = self.loc.shape[:-1]
        # In low precision the sampler rounds once, where noise and product would round twice.
        plain = self.beta == 1.0 and self.loc.dtype.itemsize >= 4
        if not isinstance(self.log_likelihood, OfData) or not plain or not batch:
            return False
        return self.log_likelihood.x.shape[: len(batch)] == batch

    def evaluate(self, samples: Samples, *, graph: bool) -> Evaluated:
        if samples.data is not None:
            with torch.set_grad_enabled(graph):
                return _evaluate_pairs(self, samples)
        path = _FusedPath()
        with torch.set_grad_enabled(graph):
            z, log_q, model, along = _Drawn.apply(
                self, path, samples, self.loc, self.log_var, *(self.prior or (None, None))
            )
            if self.weigher.gradient == "score":
                z = z.detach()
            # The sampler's own backward weighs the path, where the weight cannot be lost before it.
            fused = self.weigher.gradient == "path" and not self.weigher.may_lose_the_guide
            seen = z if self.weigher.same or fused else path.attach("z", z)
            log_px = log_px_of(self.where, self.log_likelihood, seen, self.validate_args)
        return _GaussianEvaluated(log_px, log_q, model, along, path, self)

    def draw(self, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """z, log q and log p, without a graph."""
        begin = samples.begin if samples.index is None else 0
        return rsample(
            self.loc, self.log_var, "log_var", len(samples), self.key, begin, self.prior, "path",
            sample_index=samples.index,
        )  # fmt: skip

    def draw_backward(
        self,
        samples: Samples,
        gradient: str,
        z: Tensor | None,
        log_q: Tensor | None,
        log_p: Tensor | None,
        path_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of loc, log_var and the prior's, from those of the results."""
        prior_loc, prior_log_var = self.prior or (None, None)
        return torch.ops.fastvi._gaussian_rsample_backward(
            z, log_q, log_p, path_weight, self.loc, self.log_var, "log_var", self.key,
            len(samples), samples.begin if samples.index is None else 0, prior_loc, prior_log_var,
            gradient, sample_index=samples.index,
        )  # fmt: skip

    def _meet_in_type(self) -> None:
        """Under autocast take the widest type, as the op does, which else refuses a mixture."""
        if not torch.is_autocast_enabled(self.loc.device.type):
            return
        dtype = torch.promote_types(self.loc.dtype, self.log_var.dtype)
        for value in self.prior or ():
            dtype = torch.promote_types(dtype, value.dtype)
        if self.prior is not None:
            self.prior = (self.prior[0].to(dtype), self.prior[1].to(dtype))
        self.loc, self.log_var = self.loc.to(dtype), self.log_var.to(dtype)


def _evaluate_pairs(source: GaussianSource, samples: Samples) -> PairsEvaluated:
    """Evaluate a list of samples, each of its datum, as one sample of as many data."""
    rows, index = samples.data, samples.index
    assert rows is not None and index is not None
    num_data, gradient, path = source.loc.shape[:-1].numel(), source.weigher.gradient, Path()
    loc, log_var = (x.flatten(0, -2)[rows] for x in (source.loc, source.log_var))
    zero = torch.zeros_like(loc[0], requires_grad=False)
    # The noise of the place that sample and datum have among all, as the sampler has it.
    noise, log_noise, _ = gaussian_rsample(
        zero, log_var=zero, key=source.key, sample_index=index * num_data + rows
    )
    z = torch.addcmul(loc, (0.5 * log_var).exp(), noise)
    if gradient == "total":
        log_q = log_noise - 0.5 * log_var.sum(-1)
    elif gradient == "path":
        log_q = gaussian_log_prob(z, loc.detach(), log_var=log_var.detach())
    else:
        z = z.detach()
        log_q = gaussian_log_prob(z, loc, log_var=log_var)
    seen = z[None] if source.weigher.same else path.attach("z", z[None])
    assert isinstance(source.log_likelihood, OfData)
    of_rows = source.log_likelihood.of(rows, source.loc.ndim - 1)
    log_px = log_px_of(source.where, of_rows, seen, source.validate_args)
    prior = [x.expand(source.loc.shape).flatten(0, -2)[rows] for x in source.prior or (zero, zero)]
    log_prior = gaussian_log_prob(seen, prior[0], log_var=prior[1])
    score = log_q[None] if gradient == "score" else None
    return PairsEvaluated(log_px + log_prior, log_q[None], score, rows, path)


class PairsEvaluated(Evaluated):
    """A list of samples, (1, P), of data that ``rows`` names."""

    def __init__(
        self, log_p: Tensor, log_q: Tensor, score: Tensor | None, rows: Tensor, path: Path
    ) -> None:
        super().__init__(log_p, log_q, score, path)
        self.rows = rows

    @property
    def log_w(self) -> Tensor:
        return super().log_w[0]

    def bound(self, weights: Weights, slopes: Mapping[str, Tensor] | None = None) -> Tensor:
        parts = self.parts(weights.each(lambda weight: weight[None]), slopes)
        each = with_gradient(torch.zeros_like(self.log_p[0], requires_grad=False), *parts)
        flat = torch.zeros_like(weights.bound, dtype=each.dtype).flatten()
        value = weights.bound.to(each.dtype)
        return value + flat.index_add(0, self.rows, each).view(weights.bound.shape)


class _FusedPath(Path):
    """A path whose weight the sampler's backward may apply to everything that goes along it."""

    fused: Tensor | None = None


class _GaussianEvaluated(Evaluated):
    """Log-densities; the prior's stands twice, as a part of the model and along the path."""

    is_whole = False

    def __init__(
        self,
        log_px: Tensor,
        log_q: Tensor,
        model: Tensor,
        along: Tensor,
        path: _FusedPath,
        source: GaussianSource,
    ) -> None:
        super().__init__(log_px, log_q, path=path)
        self.fused_path = path
        self.prior_model = model
        self.prior_along = along
        self.source = source
        self.beta = source.beta

    @property
    def log_w(self) -> Tensor:
        log_px = self.log_p.detach()
        # Without a weight the other terms do not count, not even infinite ones.
        if self.beta == 0.0:
            return log_px.to(torch.promote_types(log_px.dtype, self.log_q.dtype))
        prior, log_q = self.prior_model.detach(), self.log_q.detach()
        if self.beta != 1.0:
            prior, log_q = self.beta * prior, self.beta * log_q
        return log_px + prior - log_q

    def parts(
        self, weights: Weights, slopes: Mapping[str, Tensor] | None
    ) -> list[tuple[Tensor, Tensor]]:
        apart = weights.guide is not weights.model
        if apart and slopes is None and self.source.weigher.gradient == "path":
            self.fused_path.fused = weights.ratio
            weights, apart = replace(weights, guide=weights.model), False
        parts = [(self.log_p, weights.model), *self.along(weights, slopes)]
        model, guide = weights.model, weights.guide
        if self.beta != 1.0:
            model, guide = self.beta * model, self.beta * guide
        if apart:
            parts.append((self.prior_model, model))
        if weights.score is not None:
            return [*parts, (self.log_q, weights.score)]
        return [*parts, (self.prior_along, guide), (self.log_q, -guide)]


class _Drawn(torch.autograd.Function):
    """Samples with log q and log p: twice, as a part of the model and along the samples' path."""

    @staticmethod
    def forward(  # type: ignore[override]  # noqa: ANN205
        ctx: Any,
        source: GaussianSource,
        path: _FusedPath,
        samples: Samples,
        *values: Tensor | None,
    ):
        ctx.source, ctx.path, ctx.samples = source, path, samples
        ctx.set_materialize_grads(False)
        z, log_q, log_p = source.draw(samples)
        return z, log_q, log_p, log_p.view_as(log_p)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any,
        z: Tensor | None,
        log_q: Tensor | None,
        model: Tensor | None,
        along: Tensor | None,
    ) -> tuple[Any, ...]:
        source, samples = ctx.source, ctx.samples
        of_guide, of_prior = any(ctx.needs_input_grad[3:5]), any(ctx.needs_input_grad[5:])
        gradient, weight = source.weigher.gradient, ctx.path.fused
        loc = log_var = None
        prior: list[Tensor | None] = [None, None]
        if model is not None and of_prior:
            _, _, *prior = source.draw_backward(samples, "path", None, None, model)
        if gradient == "score":
            if log_q is not None:
                # With e the noise, the path's part of d log q is (-e / sigma, -e^2) for loc and log
                # sigma; the score is (e / sigma, e^2 - 1).
                loc, log_var, *_ = source.draw_backward(samples, "path", None, -log_q, None)
                log_var = log_var - 0.5 * log_q.sum(0, dtype=torch.float64)[..., None]
        elif of_guide or (of_prior and along is not None):
            # If the weight is the model's, the prior's part goes along as well.
            with_prior = source.weigher.same or weight is not None
            if weight is not None:
                gradient = "path_weighted"
                weight = weight.to(log_q.dtype if log_q is not None else source.acc)
            loc, log_var, *of_all = source.draw_backward(samples, gradient, z, log_q, along, weight)
            prior = of_all if with_prior else prior
        if source.prior is None:
            prior = [None, None]
        return None, None, None, loc, log_var, *prior
