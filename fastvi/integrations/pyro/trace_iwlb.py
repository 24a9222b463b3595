"""The importance-weighted bound of a Pyro model and guide, for ``pyro.infer.SVI``."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.poutine.util import prune_subsample_sites
from pyro.util import warn_if_nan
from torch import Tensor

from fastvi._checks import check_chunks, plain
from fastvi._loss_arguments import check_iwlb_options
from fastvi._modes import records_graphs
from fastvi.bounds.weighers import Renyi
from fastvi.chunks import (
    BackwardSamples,
    Cut,
    SampleGroup,
    bound_at_once,
    bound_in_passes,
    process_group_of,
    sum_gradients,
)
from fastvi.chunks.chunk_size import remembering
from fastvi.integrations.pyro._bounds import weigher_of
from fastvi.integrations.pyro._draws import Draws
from fastvi.integrations.pyro._evaluate import Setting, evaluate
from fastvi.integrations.pyro._preview import Preview, preview
from fastvi.integrations.pyro._programs import (
    WHERE,
    Call,
    Program,
    check_match,
    run_guide,
    run_model,
)
from fastvi.integrations.pyro._source import ProgramSource


class Trace_IWLB(BackwardSamples, ELBO):  # noqa: N801
    r"""Measure the negative importance-weighted bound of a Pyro model and guide.

    .. math::
        -\sum_{b} s_b \log \frac{1}{K} \sum_{k=1}^{K}
            \frac{p(x_b, z_{kb})}{q(z_{kb} \mid x_b)}

    over the places b of the plates that contain all sites. A latent outside of a plate belongs to
    all its data, and then there is one log-sum-exp for all of them. The scale s of sub-sampling,
    N/B, is outside of the logarithm, because it would give no bound inside. If it cannot be outside
    (a latent outside of a sub-sampled plate, K > 1), that is an error. A scale of ``poutine.scale``
    on all sites is outside too. If sites have different scales (annealing), each scale weighs its
    term of the log-weight, as in Pyro. The loss is a sum over the data, as in Pyro.

    All K samples run at once, in an outermost plate. ``elbo(model, guide)`` is an ``nn.Module``.

    Sites that cannot be reparameterised need the estimator ``"iwae"`` or ``"rws"``. The estimator
    ``"iwae"`` gives them VIMCO's signal, from the log-weights of their own place, and the other
    sites the total derivative; ``"rws"`` needs no derivative of any sample.

    Args:
        num_samples: K; or ``num_particles``, as Pyro calls it.
        estimator: ``"dreg"``, ``"iwae"``, ``"stl"``, ``"rws"`` or ``"rws_dreg"``, of the guide's
            gradient; see :func:`fastvi.iwlb_loss`. In a guide of several layers the path of every
            sample is weighed once.
        objective: another bound, with its own settings, also of chunks and group, in place of the
            other arguments: one of :mod:`fastvi.objectives`, or a loss such as
            ``fastvi.MIWAELoss(8, 4)``, of which the reduction and the prior are not used.
        alpha: order of the Rényi bound: 0 is the IWLB, 1 the ELBO.
        chunk_size: samples at a time, with the value and the gradient of all; None for all,
            ``"auto"`` for what ``memory_budget`` allows. The program runs once more in the backward
            pass. The noise of normal sites is the same for every chunk size.
        memory_budget: bytes for ``chunk_size="auto"``; see :func:`fastvi.iwlb_loss`.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them. Pyro's
            ``SVI``, which steps itself, gets their sum from :meth:`loss_and_grads`. Parameters and
            data must be the same on all ranks.
        backward_samples: how many samples of each datum, or of the whole, run backward through the
            model; see :func:`fastvi.iwlb_loss`. The guide draws all of them once more.
        variance_growth: see :func:`fastvi.iwlb_loss`.
        num_particles: another name for ``num_samples``.
        max_plate_nesting: the depth of nested plates; the default is found in a first run for one
            sample, which is made in any case.
        vectorize_particles: False for one sample at a time, as ``chunk_size=1``, for programs that
            do not broadcast.
        retain_graph: as in Pyro.
        fused: evaluate log-densities, and check parameters, by the fused distributions.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range; and, in a call, latents of model and guide that
            differ, a site without a derivative for an estimator that needs one, a scale that
            would stand inside the logarithm, a plate whose size depends on K.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from fastvi.integrations.pyro import Trace_IWLB
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(len(x)))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 0.7))
        >>> svi = pyro.infer.SVI(
        ...     model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_IWLB(num_samples=64)
        ... )
        >>> loss = svi.step(torch.randn(10))

    References:
        | Importance Weighted Autoencoders (Burda et al., 2016), https://arxiv.org/abs/1509.00519
        | Doubly Reparameterized Gradient Estimators (Tucker et al., 2019),
        | https://arxiv.org/abs/1810.04152
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        | https://arxiv.org/abs/1602.06725
    """

    def __init__(
        self,
        num_samples: int | None = None,
        estimator: str | None = None,
        *,
        objective: Any = None,
        alpha: float | None = None,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
        num_particles: int | None = None,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
        fused: bool = True,
    ) -> None:
        if (num_samples, num_particles, objective).count(None) != 2:
            raise ValueError(
                f"{WHERE}: expected exactly one of num_samples, num_particles and objective, got "
                f"{num_samples}, {num_particles} and {objective}"
            )
        if objective is not None:
            beside = {
                "estimator": estimator, "alpha": alpha, "chunk_size": chunk_size,
                "memory_budget": memory_budget, "group": group,
                "backward_samples": backward_samples, "variance_growth": variance_growth,
            }  # fmt: skip
            given = [name for name, value in beside.items() if value is not None]
            if given:
                raise ValueError(
                    f"{WHERE}: expected {' and '.join(given)} to be given to the objective, "
                    f"{type(objective).__name__}, got them beside it"
                )
            self.weigher = weigher_of(objective)
            chunk_size, memory_budget = objective.chunk_size, objective.memory_budget
            group = process_group_of(objective)
            backward_samples = getattr(objective, "backward_samples", None)
            variance_growth = getattr(objective, "variance_growth", None)
        else:
            count = plain(num_samples if num_particles is None else num_particles)
            estimator = "dreg" if estimator is None else estimator
            alpha, chunk_size = 0.0 if alpha is None else plain(alpha), plain(chunk_size)
            check_iwlb_options(WHERE, count, estimator, alpha, "sum")
            check_chunks(WHERE, count, chunk_size, memory_budget)
            self.weigher = Renyi(count, estimator, float(alpha))
        super().__init__(
            num_particles=self.weigher.num_samples,
            max_plate_nesting=max_plate_nesting,
            vectorize_particles=False,
            retain_graph=retain_graph,
        )
        self.vectorize_particles = vectorize_particles
        self.chunk_size = remembering(chunk_size) if vectorize_particles else 1
        self.memory_budget = memory_budget
        self.group = group
        self._keep_few(backward_samples, variance_growth, self.weigher)
        self.estimator = self.weigher.estimator
        self.fused = fused
        self._preview: Preview | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A Preview holds the program, and pickle may not take that.
        return self.__dict__ | {"_preview": None, "chunk_size": remembering(self.chunk_size)}

    # ---- what Pyro calls ------------------------------------------------------------------------
    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the loss, in nats."""
        return self._finished(self._loss(Call(model, guide, args, kwargs)))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Compute the loss, in nats, and add its gradient to that of the parameters.

        It is the gradient of all samples, also with ``group``: Pyro's ``SVI`` steps after it.
        """
        call = Call(model, guide, args, kwargs)
        if self.group is None:
            loss = self._loss(call)
            self._backward(loss)
            return self._finished(loss)
        with poutine.trace(param_only=True) as found:
            loss = self._loss(call)
        sites: list[Any] = list(found.trace.nodes.values())
        parameters = list(dict.fromkeys(site["value"].unconstrained() for site in sites))
        # What earlier calls have left there was summed then.
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._backward(loss)
        sum_gradients(parameters, self.group)
        for parameter, grad in zip(parameters, before, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else grad + parameter.grad
        return self._finished(loss)

    def _backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Compute the loss as a tensor, whose gradient is the estimator's."""
        loss = self._loss(Call(model, guide, args, kwargs))
        warn_if_nan(loss.detach(), "loss")
        return loss

    def _get_trace(
        self, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """Return the traces of model and guide for one sample."""
        call = Call(model, guide, args, kwargs)
        _, nesting = self._previewed(call)
        guide_trace = run_guide(call, 1, nesting, Draws())
        model_trace = run_model(call, 1, nesting, guide_trace)
        check_match(model_trace, guide_trace, nesting)
        return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)

    # ---- the bound ------------------------------------------------------------------------------
    def _loss(self, call: Call) -> Tensor:
        found, nesting = self._previewed(call)
        weigher = self.weigher
        setting = Setting(nesting, found, weigher, self.fused)
        few = records_graphs() and self._few(self.weigher) is not None
        if self.group is not None or self.chunk_size is not None or few:
            return self._in_passes(call, setting)
        gradient = weigher.gradient
        draws = Draws(self.num_particles, 0, None if gradient == "score" else gradient)
        evaluation = evaluate(call, setting, self.num_particles, draws)
        bound = bound_at_once(evaluation, weigher)
        if bound is None:
            return self._in_passes(call, setting)
        return -evaluation.layout.scaled(bound)

    def _in_passes(self, call: Call, setting: Setting) -> Tensor:
        group = None if self.group is None else SampleGroup(WHERE, self.group)
        how = Cut(self.chunk_size, self.memory_budget, group, few=self._few(self.weigher))
        source = ProgramSource(call, setting)
        bound = bound_in_passes(source, self.weigher, how)
        assert source.layout is not None
        return -source.layout.scaled(bound)

    def _previewed(self, call: Call) -> tuple[Preview, int]:
        """Return the facts of the program from one sample, after a check of max_plate_nesting."""
        if self._preview is None or not self._preview.is_of(call):
            self._preview = preview(call)
        found, given = self._preview, self.max_plate_nesting
        if given == float("inf"):
            return found, found.nesting
        if given < found.nesting:
            raise ValueError(
                f"{WHERE}: expected max_plate_nesting to be at least {found.nesting}, the depth of "
                f"the plates of model and guide, got {given}"
            )
        return found, int(given)

    @staticmethod
    def _finished(loss: Tensor) -> float:
        value = torch_item(loss)
        warn_if_nan(value, "loss")
        return value
