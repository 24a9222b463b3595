"""Objectives for latents that cannot be reparameterised, alone or beside others that can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastvi._checks import check_choice, check_num_samples
from fastvi._gradients import with_gradient
from fastvi.bounds.estimators import check_kl
from fastvi.bounds.signals import advantage
from fastvi.bounds.weighers import Renyi, Weigher
from fastvi.chunks import Cut, SampleGroup, bound_in_passes
from fastvi.objectives.elbo_source import ELBOSource
from fastvi.objectives.latent import Draws, Latent, LogJoint
from fastvi.objectives.objective import Objective
from fastvi.objectives.score_function import DecayingAverage
from fastvi.objectives.weighed import Weighed

_ONE = "baseline"


class VIMCO(Weighed):
    r"""Bound the log-evidence by the log-mean-exp, with leave-one-out signals for each sample.

    .. math::
        \nabla L_K \approx \sum_{k=1}^{K} \bigl(L_K - \hat L_K^{(-k)}\bigr)
            \sum_{i \text{ not repar.}} \nabla \log q(z_{ik} \mid \cdot)
            + \sum_{k=1}^{K} \tilde w_k \nabla \log w_k

    where :math:`\hat L_K^{(-k)}` is the bound with :math:`w_k` replaced by the geometric mean of
    the others. Reparameterised latents get the total derivative of :math:`\log w_k`, through
    their samples, and through the samples of other latents that are drawn given them.

    Args:
        num_samples: K, at least 2.
        chunk_size: see :class:`IWLB`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.
        backward_samples: see :class:`IWLB`.
        variance_growth: see :func:`fastvi.iwlb_loss`.

    Raises:
        TypeError: not an int.
        ValueError: K < 2. In ``bound``: latents of different batches, a term of the wrong shape,
            sub-sampled data under latents of all the data.

    Example:
        >>> objective = fastvi.objectives.VIMCO(num_samples=16)
        >>> q = torch.distributions.Bernoulli(logits=torch.zeros(8, requires_grad=True))
        >>> b = fastvi.objectives.Latent.draw("b", q, 16)
        >>> (-objective.bound([b], lambda z: z["b"] - 1.3).mean()).backward()

    References:
        | Variational Inference for Monte Carlo Objectives (Mnih & Rezende, 2016),
        | https://arxiv.org/abs/1602.06725
    """

    credits = True

    def __init__(
        self,
        num_samples: int,
        *,
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
        backward_samples: int | Literal["auto"] | None = None,
        variance_growth: float | None = None,
    ) -> None:
        super().__init__(num_samples, chunk_size=chunk_size, memory_budget=memory_budget)
        self.group = None if group is None else SampleGroup("VIMCO", group)
        check_num_samples("VIMCO", num_samples, at_least=2)
        self._keep_few(backward_samples, variance_growth, self.weigher(self.num_samples))

    def weigher(self, num_samples: int) -> Weigher:
        check_num_samples("VIMCO", num_samples, at_least=2)
        return Renyi(num_samples, "iwae")


class Reinforce(Objective):
    r"""Bound the log-evidence by the ELBO, with score-function gradients and their baselines.

    .. math::
        \nabla \mathcal{L} \approx \frac{1}{K} \sum_{k=1}^{K} \Bigl[\nabla \log w_k
            + \sum_{i \text{ not repar.}} (s_{ik} - b_{ik})\, \nabla \log q(z_{ik} \mid \cdot)\Bigr]

    The signal :math:`s_i` of an example holds its terms that depend on latent i, or on a latent
    that is drawn given it. The log-joint says which terms these are by returning them by name. A
    divergence in closed form replaces a sampled term, and is in the signals of earlier latents
    only.

    Args:
        num_samples: K.
        baseline: for all latents that are not reparameterised, or a mapping of their names:
            ``None``; ``"leave_one_out"``, the mean signal of the other samples; a
            :class:`DecayingAverage`, one for each latent; or a module from the data to shape
            (\*batch,), which the same backward pass trains by its squared error.
        kl: see :class:`ELBO`.
        chunk_size: see :class:`IWLB`.
        memory_budget: bytes for ``chunk_size="auto"``.
        group: a ``torch.distributed`` process group whose ranks share the samples, each with its
            share of the gradient until :func:`fastvi.sum_gradients` adds them.

    Raises:
        TypeError: not an int, or a baseline of another kind.
        ValueError: K < 1, an unknown choice, or ``"leave_one_out"`` with K = 1. In ``bound``: a
            term or a baseline of the wrong shape, a mapping that lacks a latent.

    Example:
        >>> objective = fastvi.objectives.Reinforce(16, baseline="leave_one_out")
        >>> q = torch.distributions.Bernoulli(logits=torch.zeros(8, requires_grad=True))
        >>> b = fastvi.objectives.Latent.draw("b", q, 16)
        >>> p = torch.distributions.Bernoulli(0.3)
        >>> bound = objective.bound([b], lambda z: {"b": p, "x": -z["b"]})
        >>> (-bound.mean()).backward()

    References:
        | Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014),
        | https://arxiv.org/abs/1402.0030
        | Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool et al., 2019),
        | https://openreview.net/forum?id=r1lgTGL5DE
        | Gradient Estimation Using Stochastic Computation Graphs (Schulman et al., 2015),
        | https://arxiv.org/abs/1506.05254
    """

    def __init__(
        self,
        num_samples: int,
        baseline: None | str | nn.Module | Mapping[str, None | str | nn.Module] = None,
        *,
        kl: str = "auto",
        chunk_size: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        group: Any = None,
    ) -> None:
        super().__init__(num_samples, chunk_size=chunk_size, memory_budget=memory_budget)
        self.group = None if group is None else SampleGroup("Reinforce", group)
        check_kl("Reinforce", kl)
        self.kl = kl
        given = dict(baseline) if isinstance(baseline, Mapping) else {_ONE: baseline}
        self._for_each = isinstance(baseline, Mapping)
        self._baselines: dict[str, None | str] = {}
        # They are in a list, because torch's mapping of modules does not take every name.
        self.networks = nn.ModuleList()
        self._places: dict[str, int] = {}
        for name, value in given.items():
            if isinstance(value, nn.Module):
                self._places[name] = len(self.networks)
                self.networks.append(value)
                continue
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"Reinforce: expected baseline to be None, 'leave_one_out', a DecayingAverage "
                    f"or a module of the data, got {type(value).__name__}"
                )
            if value is not None:
                check_choice("Reinforce", "baseline", value, ("leave_one_out",))
                check_num_samples(
                    "Reinforce with baseline 'leave_one_out'", num_samples, at_least=2
                )
            self._baselines[name] = value

    def bound(
        self,
        latents: Sequence[Latent] | Draws,
        log_joint: LogJoint,
        *,
        data: Any = None,
        num_data: int | None = None,
    ) -> Tensor:
        r"""Compute the bound of each datum; see :meth:`Objective.bound`."""
        latents, num_samples = self.drawn(latents)
        source = ELBOSource(
            "Reinforce", latents, log_joint, num_samples, kl=self.kl, facts={"kl": self.kl},
            advantage=lambda latent, signal: self._advantage(latent, signal, data), data=data,
            num_data=num_data,
        )  # fmt: skip
        scored = source.scored
        if len(scored) > 1 and isinstance(self._baseline(scored[0].name), DecayingAverage):
            self._refuse_one_average(scored)
        if self.at_once:
            evaluated = source.evaluated(source.given)
            source.gathered(None)
            bound = evaluated.credited(evaluated.elbo.value())
        else:
            how = Cut(self.chunk_size, self.memory_budget, self.group)
            bound = bound_in_passes(source, source.weigher, how)
        return self._fitted(bound, source)

    def _fitted(self, bound: Tensor, source: ELBOSource) -> Tensor:
        """Add the squared error of baselines, which falls as the bound rises."""
        samples, share = source.num_samples, slice(None)
        if self.group is not None:
            share = slice(*self.group.share(samples))
        for latent in source.scored:
            difference = source.advantages[latent.name]
            if difference.requires_grad and source.elbo is not None:
                fit = source.elbo.share(difference[share].square())
                weight = torch.full_like(fit, -1.0 / samples)
                zero = torch.zeros(latent.batch, dtype=bound.dtype, device=bound.device)
                bound = bound + with_gradient(zero, (fit, weight))
        return bound

    def _advantage(self, latent: Latent, signal: Tensor, data: Any) -> Tensor:
        base = self._baseline(latent.name)
        if isinstance(base, nn.Module) and not isinstance(base, DecayingAverage):
            return advantage(signal, self._predict(base, data, latent))
        return advantage(signal, base)

    def _baseline(self, name: str) -> None | str | nn.Module:
        if not self._for_each:
            name = _ONE
        elif name not in self._places and name not in self._baselines:
            raise ValueError(
                f"Reinforce: expected baseline to have an entry for latent {name!r}, got "
                f"{sorted({*self._places, *self._baselines})}"
            )
        if name in self._places:
            return self.networks[self._places[name]]
        return self._baselines[name]

    def shared_baseline(self) -> None | str | nn.Module:
        """Return the one baseline of all latents, or a module that holds several."""
        return self.networks if self._for_each else self._baseline(_ONE)

    def _refuse_one_average(self, scores: Sequence[Latent]) -> None:
        averages = [self._baseline(latent.name) for latent in scores]
        if len({id(average) for average in averages}) < len(averages):
            raise ValueError(
                "Reinforce: expected one DecayingAverage for each latent, got one for several, "
                "which would know of the samples of this step; give a mapping of names"
            )

    def _predict(self, network: nn.Module, data: Any, latent: Latent) -> Tensor:
        if data is None:
            raise ValueError(
                f"Reinforce: expected data for the baseline of latent {latent.name!r}, got None"
            )
        predicted = network(data)
        if not isinstance(predicted, Tensor) or predicted.shape != latent.batch:
            shape = list(getattr(predicted, "shape", ())) or type(predicted).__name__
            raise ValueError(
                f"Reinforce: expected the baseline of latent {latent.name!r} to return a tensor of "
                f"shape (*batch,) = {list(latent.batch)}, got {shape}"
            )
        return predicted

    def extra_repr(self) -> str:
        shown = self._baselines if self._for_each else self._baselines.get(_ONE, "module")
        return f"{super().extra_repr()}, baseline={shown!r}, kl={self.kl!r}"
