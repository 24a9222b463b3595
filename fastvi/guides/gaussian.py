"""Gaussian guides over named parameters with constraints: automatic differentiation VI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    LowRankMultivariateNormal,
    Normal,
    constraints,
)

from fastvi import ops
from fastvi._checks import check_num_samples, check_number
from fastvi.guides.guide import Guide
from fastvi.guides.named import Named
from fastvi.objectives.latent import Draws, Joint, Latent, Term
from fastvi.ops._arguments import drawn_from


class _GaussianGuide(Guide):
    """Hold a Gaussian over all parameters in one row, before their constraints."""

    loc: Tensor

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        supports: Mapping[str, constraints.Constraint] | None,
        init: Mapping[str, Tensor] | None,
        init_scale: float,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        check_number(where, "init_scale", init_scale)
        if init_scale <= 0:
            raise ValueError(f"{where}: expected init_scale to be positive, got {init_scale}")
        self.named = Named(where, shapes, supports or {})
        loc = self.named.unconstrain(
            init or {}, torch.get_default_dtype() if dtype is None else dtype
        )
        self.loc = nn.Parameter(loc)

    def _spread(self) -> Tensor:
        """Return the standard deviation of each number."""
        raise NotImplementedError

    def arrange(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give the model the named parameters, in their supports."""
        return values

    def prior(self, name: str, prior: Distribution, value: Tensor) -> Tensor:
        """Evaluate a prior at one value, summed over the parameter."""
        return self.named.log_prior(name, self.named.whole_prior(name, prior, 1), value)

    def constrain(self, numbers: Tensor) -> dict[str, Tensor]:
        r"""Biject numbers into the parameters' supports.

        Args:
            numbers: the unconstrained numbers of all parameters in the order of ``shapes``,
                shape (\*leading, D).

        Returns:
            Each parameter, shape (\*leading, \*shape).
        """
        return self.named.constrain(numbers)[0]

    @torch.no_grad()
    def sample(self, num_samples: int) -> dict[str, Tensor]:
        r"""Draw parameters of the posterior.

        Args:
            num_samples: K.

        Returns:
            Each parameter, in its support, shape (K, \*shape).
        """
        latents = self.latents((), num_samples)
        return dict(self.arrange({latent.name: latent.value for latent in latents}))

    @torch.no_grad()
    def median(self) -> dict[str, Tensor]:
        """Return the median of each number. For a simplex it is the image of the median."""
        return self.constrain(self.loc.detach().clone())

    @torch.no_grad()
    def quantiles(self, q: float | Sequence[float]) -> dict[str, Tensor]:
        r"""Compute quantiles of each number's marginal.

        Args:
            q: one probability, or n of them, between 0 and 1.

        Returns:
            Each parameter, shape (\*shape) for one probability, else (n, \*shape).

        Raises:
            ValueError: a probability outside (0, 1), or a support whose numbers depend on each
                other, such as a simplex: take the quantiles of :meth:`sample` instead.
        """
        probs = torch.as_tensor(q, dtype=self.loc.dtype, device=self.loc.device)
        if probs.ndim > 1 or not bool(((probs > 0) & (probs < 1)).all()):
            raise ValueError(
                f"{type(self).__name__}.quantiles: expected q to be a probability or a sequence of "
                f"them, between 0 and 1, got {q}"
            )
        standard = torch.special.ndtri(probs)
        shift = standard[..., None] * self._spread()
        upper, lower = (
            self.named.constrain(self.loc + sign * shift, elementwise=True)[0] for sign in (1, -1)
        )
        # A decreasing bijection reverses the order.
        return {name: upper[name] if self.named.rises(name) else lower[name] for name in upper}

    def extra_repr(self) -> str:
        return f"{self.loc.numel()} numbers: {', '.join(self.named.names)}"


class MeanFieldGaussian(_GaussianGuide):
    r"""Approximate the posterior of named parameters by independent Gaussians, bijected.

    .. math::
        u \sim \mathcal{N}(\mu, \operatorname{diag} \sigma^2), \qquad \theta = T(u), \qquad
        \log q(\theta) = \log \mathcal{N}(u; \mu, \sigma^2) - \log |\det \partial T / \partial u|

    where T is torch's ``biject_to`` of each parameter's support. The model sees a mapping of names
    to parameters, shape (K, \*shape), and may return their priors as distributions by name.

    Args:
        shapes: names of the parameters to their shapes.
        supports: names to ``torch.distributions.constraints``; the default is real.
        init: names to first values, in their supports. The guide starts near these values; a
            parameter without a value starts around zero, before the bijection.
        init_scale: the first :math:`\sigma`.
        dtype: of the parameters; torch's default if None.

    Raises:
        TypeError: a support that is no constraint.
        ValueError: no parameter, an unknown name, or a first value of another shape or outside its
            support.

    Example:
        >>> guide = fastvi.guides.MeanFieldGaussian(
        ...     {"weight": (3,), "noise": ()},
        ...     supports={"noise": torch.distributions.constraints.positive},
        ... )
        >>> {name: value.shape for name, value in guide.sample(16).items()}
        {'weight': torch.Size([16, 3]), 'noise': torch.Size([16])}

    References:
        | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017),
        | https://arxiv.org/abs/1603.00788
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        supports: Mapping[str, constraints.Constraint] | None = None,
        *,
        init: Mapping[str, Tensor] | None = None,
        init_scale: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shapes, supports, init, init_scale, dtype)
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())

    def _spread(self) -> Tensor:
        return self.log_scale.exp()

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> list[Latent]:
        """Draw the parameters. Each is a latent, independent of the others."""
        check_num_samples(type(self).__name__, num_samples)
        return self._range(num_samples, 0, None)

    def draws(self, data: tuple[Any, ...], num_samples: int, *, path: bool = False) -> Draws:
        """Return a function that draws ranges of the samples from one key."""
        key = ops.new_key(self.loc.device)
        return Draws(
            lambda num_samples, offset: self._range(num_samples, offset, key),
            key=key, by_number=True,
        )  # fmt: skip

    def _range(
        self, num_samples: int, sample_offset: int | Tensor, key: Tensor | None
    ) -> list[Latent]:
        # All numbers are drawn at once, and each parameter has its own density.
        row, _, _ = ops.gaussian_rsample(
            self.loc, log_scale=self.log_scale, num_samples=num_samples, key=key,
            **drawn_from(sample_offset, self.loc.shape[:-1]),
        )  # fmt: skip
        values, log_dets = self.named.constrain(row)
        rows = row.split(self.named.sizes, -1)
        locs, log_scales = (p.split(self.named.sizes) for p in (self.loc, self.log_scale))
        places = zip(self.named.names, rows, locs, log_scales, strict=True)
        return [
            self._latent(name, values[name], log_dets.get(name), u, loc, log_scale)
            for name, u, loc, log_scale in places
        ]

    def _latent(
        self,
        name: str,
        value: Tensor,
        log_det: Tensor | None,
        u: Tensor,
        loc: Tensor,
        log_scale: Tensor,
    ) -> Latent:
        def density(loc: Tensor, log_scale: Tensor) -> Tensor:
            log_q = ops.gaussian_log_prob(u, loc, log_scale=log_scale)
            return log_q if log_det is None else log_q - log_det

        def along_path() -> Tensor:
            return density(loc.detach(), log_scale.detach())

        q = self.named.distribution(name, loc, log_scale.exp())
        return Latent(
            name,
            value,
            density(loc, log_scale),
            reparameterised=True,
            parents=(),
            path=along_path,
            distribution=q,
        )

    def read(self, joint: Joint, z: Tensor | Mapping[str, Tensor]) -> Joint:
        """Extend a prior under the name of a parameter to the whole parameter."""
        if not isinstance(joint, Mapping) or not isinstance(z, Mapping):
            return joint
        return self.named.priors(joint, len(next(iter(z.values()))))

    def distribution(self) -> Normal:
        """Return q of the numbers before their bijections, in the order of ``shapes``."""
        return Normal(self.loc, self._spread())


class LowRankGaussian(_GaussianGuide):
    r"""Approximate the posterior of named parameters by a Gaussian of low rank plus a diagonal.

    .. math::
        u \sim \mathcal{N}(\mu, W W^\top + \operatorname{diag} \sigma^2), \qquad \theta = T(u)

    It is as :class:`MeanFieldGaussian`, and models correlations in R directions too.

    Args:
        shapes: names of the parameters to their shapes.
        supports: names to ``torch.distributions.constraints``; the default is real.
        init: names to first values, in their supports.
        rank: R, the columns of W.
        init_scale: the first :math:`\sigma`; W starts as noise of that size over the square root
            of R, from torch's generator.
        dtype: of the parameters; torch's default if None.

    Raises:
        TypeError: a support that is no constraint, or a rank that is no int.
        ValueError: as :class:`MeanFieldGaussian`, or a rank below 1.

    Example:
        >>> guide = fastvi.guides.LowRankGaussian({"weight": (3,), "bias": ()}, rank=2)
        >>> guide.median()["weight"]
        tensor([0., 0., 0.])

    References:
        | Gaussian Variational Approximation with a Factor Covariance Structure (Ong et al., 2018),
        | https://arxiv.org/abs/1701.03208
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        supports: Mapping[str, constraints.Constraint] | None = None,
        *,
        init: Mapping[str, Tensor] | None = None,
        rank: int,
        init_scale: float = 0.1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(shapes, supports, init, init_scale, dtype)
        check_num_samples("LowRankGaussian", rank, "rank")
        # The name of the one latent, which holds all parameters before their bijections.
        self._joint = ", ".join(self.named.names)
        factor = torch.randn(self.loc.numel(), rank, dtype=self.loc.dtype)
        self.factor = nn.Parameter(factor * init_scale / rank**0.5)
        self.log_scale = nn.Parameter(torch.full_like(self.loc, init_scale).log())

    def _spread(self) -> Tensor:
        return (self.factor.square().sum(1) + (2 * self.log_scale).exp()).sqrt()

    def distribution(self) -> LowRankMultivariateNormal:
        """Return q of the numbers before their bijections, in the order of ``shapes``."""
        return LowRankMultivariateNormal(
            self.loc, self.factor, (2 * self.log_scale).exp(), validate_args=False
        )

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> list[Latent]:
        """Draw the parameters as one latent before the bijection, with log q after it."""
        check_num_samples(type(self).__name__, num_samples)
        q = self.distribution()
        u = q.rsample(torch.Size((num_samples,)))
        _, log_dets = self.named.constrain(u)
        # The default path differentiates this by u, with the terms that the bijections add.
        return [
            Latent(
                self._joint,
                u,
                q.log_prob(u) - sum(log_dets.values()),
                reparameterised=True,
                parents=(),
            )
        ]

    def arrange(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give the model the named parameters, in their supports."""
        return self.constrain(values[self._joint])

    def read(self, joint: Joint, z: Tensor | Mapping[str, Tensor]) -> Joint:
        """Evaluate the priors that stand under the names of parameters, to shape (K,)."""
        if not isinstance(joint, Mapping) or not isinstance(z, Mapping):
            return joint
        terms = self.named.priors(joint, len(next(iter(z.values()))))
        return {name: self._evaluated(name, term, z) for name, term in terms.items()}

    def _evaluated(self, name: str, term: Term, z: Mapping[str, Tensor]) -> Term:
        if isinstance(term.value, Distribution) and term.observed is None:
            return Term(self.named.log_prior(name, term.value, z[name]))
        return Term(term.value, term.observed)
