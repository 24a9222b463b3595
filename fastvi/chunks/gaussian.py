"""The source whose samples are a diagonal Gaussian's, drawn again from their key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastvi._loss_arguments import LogLikelihood, OfData, Prior, log_px_of
from fastvi.bounds.sums import Weights
from fastvi.bounds.weighers import Weigher
from fastvi.chunks.engine import Cut, bound_in_passes
from fastvi.chunks.source import Evaluated, Path, Source
from fastvi.ops._call import exporting, transforms_active
from fastvi.ops.gaussian_rsample import rsample


@dataclass
class GaussianSource(Source):
    """Draw q(z given x) from its key, with a likelihood and perhaps a prior; ``beta`` weighs both.

    What it draws costs no memory: the noise of a range is made again wherever it is asked for.
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
    # What else the ranks must have alike.
    alike: Mapping[str, object] = field(default_factory=dict)
    validate_args: bool = False

    def __post_init__(self) -> None:
        self._meet_in_type()
        self.loc, self.log_var = torch.broadcast_tensors(self.loc, self.log_var)

    def bound(self, how: Cut) -> Tensor:
        r"""Compute the bound, shape (\*batch,), differentiable in all that it depends on."""
        if transforms_active():
            raise RuntimeError(
                f"{self.where}: chunk_size, group and estimators other than 'iwae', 'stl' and "
                f"'dreg' do not work under torch.func transforms"
            )
        if exporting() and torch.compiler.is_dynamo_compiling():
            raise RuntimeError(
                f"{self.where}: chunk_size, group, sums over groups of samples and estimators "
                f"other than 'iwae', 'stl' and 'dreg' need torch.export.export(..., strict=False)"
            )
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

    def evaluate(self, begin: int, end: int, *, graph: bool) -> Evaluated:
        path = _FusedPath()
        with torch.set_grad_enabled(graph):
            z, log_q, model, along = _Drawn.apply(
                self, path, begin, end - begin, self.loc, self.log_var,
                *(self.prior or (None, None)),
            )  # fmt: skip
            if self.weigher.gradient == "score":
                z = z.detach()
            # The sampler's own backward weighs the path, where the weight cannot be lost before it.
            fused = self.weigher.gradient == "path" and not self.weigher.may_lose_the_guide
            seen = z if self.weigher.same or fused else path.attach("z", z)
            log_px = log_px_of(self.where, self.log_likelihood, seen, self.validate_args)
        return _GaussianEvaluated(log_px, log_q, model, along, path, self)

    def draw(self, begin: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """z, log q and log p, without a graph."""
        return rsample(self.loc, self.log_var, "log_var", size, self.key, begin, self.prior, "path")

    def draw_backward(
        self,
        begin: int,
        size: int,
        gradient: str,
        z: Tensor | None,
        log_q: Tensor | None,
        log_p: Tensor | None,
        path_weight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From gradients of a draw's results to those of loc, log_var and the prior's two."""
        prior_loc, prior_log_var = self.prior or (None, None)
        return torch.ops.fastvi._gaussian_rsample_backward(
            z, log_q, log_p, path_weight, self.loc, self.log_var, "log_var", self.key, size, begin,
            prior_loc, prior_log_var, gradient,
        )  # fmt: skip

    def _meet_in_type(self) -> None:
        """Under autocast the widest type of all, as in the op; else the op refuses a mixture."""
        if not torch.is_autocast_enabled(self.loc.device.type):
            return
        dtype = torch.promote_types(self.loc.dtype, self.log_var.dtype)
        for value in self.prior or ():
            dtype = torch.promote_types(dtype, value.dtype)
        if self.prior is not None:
            self.prior = (self.prior[0].to(dtype), self.prior[1].to(dtype))
        self.loc, self.log_var = self.loc.to(dtype), self.log_var.to(dtype)


class _FusedPath(Path):
    """A path whose weight the sampler's own backward may put on all that goes along it."""

    fused: Tensor | None = None


class _GaussianEvaluated(Evaluated):
    """Log-densities of which the prior's is a part for the model, and one along the path."""

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
        # Without a weight the others do not count, infinite ones neither.
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
        begin: int,
        size: int,
        *values: Tensor | None,
    ):
        ctx.source, ctx.path, ctx.begin, ctx.size = source, path, begin, size
        ctx.set_materialize_grads(False)
        z, log_q, log_p = source.draw(begin, size)
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
        source, begin, size = ctx.source, ctx.begin, ctx.size
        of_guide, of_prior = any(ctx.needs_input_grad[4:6]), any(ctx.needs_input_grad[6:])
        gradient, weight = source.weigher.gradient, ctx.path.fused
        loc = log_var = None
        prior: list[Tensor | None] = [None, None]
        if model is not None and of_prior:
            _, _, *prior = source.draw_backward(begin, size, "path", None, None, model)
        if gradient == "score":
            if log_q is not None:
                # With e the noise, the path's part of d log q is (-e / sigma, -e^2) for loc and log
                # sigma; the score is (e / sigma, e^2 - 1).
                loc, log_var, *_ = source.draw_backward(begin, size, "path", None, -log_q, None)
                log_var = log_var - 0.5 * log_q.sum(0, dtype=torch.float64)[..., None]
        elif of_guide or (of_prior and along is not None):
            # Of what the model's weight is on, the prior's part is along too.
            with_prior = source.weigher.same or weight is not None
            if weight is not None:
                gradient = "path_weighted"
                weight = weight.to(log_q.dtype if log_q is not None else source.acc)
            loc, log_var, *of_all = source.draw_backward(
                begin, size, gradient, z, log_q, along, weight
            )
            prior = of_all if with_prior else prior
        if source.prior is None:
            prior = [None, None]
        return None, None, None, None, loc, log_var, *prior
