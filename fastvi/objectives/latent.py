"""The arguments of an objective: samples of the latents, and the terms of a log-joint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from fastvi import ops
from fastvi._checks import check_floating, check_num_samples, check_tensor
from fastvi._gradients import moving_along
from fastvi.distributions import constant_parameters
from fastvi.distributions._draws import draws_by_key
from fastvi.ops._arguments import drawn_from
from fastvi.ops._call import transforms_active
from fastvi.ops.new_key import new_key


@dataclass(frozen=True, eq=False)
class Latent:
    r"""Hold the samples of one latent, and the log-density that the guide gives them.

    Args:
        name: the log-joint finds the samples under this name.
        value: :math:`z_k`, shape (K, \*batch, \*event). A latent of all the data has no batch.
            If it is reparameterised, it is a function of the guide's parameters.
        log_q: :math:`\log q(z_k \mid \cdot)` in nats, shape (K, \*batch), as a function of the
            samples and of the guide's parameters.
        reparameterised: whether gradients reach the guide through ``value``.
        parents: the latents that q of this one depends on; ``None`` for all before it.
        path: computes log q as a function of the samples alone, the guide's parameters held
            constant, or anything with that gradient. ``None`` takes the derivative of ``log_q``
            by ``value``, which is right if ``log_q`` was computed from ``value``, and from no
            other latent that is reparameterised. In other cases an objective raises an error.
        distribution: q, which the closed form of a divergence needs.
        own_path: as ``path``, for a q that depends on no other latent that is reparameterised;
            :meth:`draw` sets it.

    Raises:
        TypeError: not floating-point tensors.
        ValueError: the shape of ``log_q`` does not lead the shape of ``value``, or K = 0.

    Example:
        >>> q = torch.distributions.Normal(torch.zeros(8), torch.ones(8))
        >>> fastvi.objectives.Latent.draw("z", q, num_samples=16).log_q.shape
        torch.Size([16, 8])
    """

    name: str
    value: Tensor
    log_q: Tensor
    _: dataclasses.KW_ONLY
    reparameterised: bool = True
    parents: tuple[str, ...] | None = None
    path: Callable[[], Tensor] | None = None
    distribution: Distribution | None = None
    own_path: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        where = f"Latent {self.name!r}"
        check_floating(where, "log_q", self.log_q)
        check_tensor(where, "value", self.value)
        leading = self.value.shape[: self.log_q.ndim]
        if self.log_q.ndim < 1 or self.log_q.shape != leading or self.log_q.shape[0] < 1:
            raise ValueError(
                f"{where}: expected log_q to have shape (K, *batch), the leading dimensions of "
                f"value, {list(self.value.shape)}, with K at least 1, got {list(self.log_q.shape)}"
            )

    @classmethod
    def draw(
        cls,
        name: str,
        distribution: Distribution,
        num_samples: int,
        *,
        parents: tuple[str, ...] | None = None,
        path: bool = False,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
    ) -> Latent:
        r"""Draw samples of a distribution whose batch is the data's, or empty.

        Args:
            name: of the latent.
            distribution: q, batch shape \*batch. Samples are reparameterised if it can do so.
                ``Independent`` normals go through :func:`fastvi.ops.gaussian_rsample`, and the
                fused draws of :mod:`fastvi.distributions` are used.
            num_samples: K.
            parents: see :class:`Latent`.
            path: whether an objective needs the derivative of log q by the samples alone.
            key: from :func:`fastvi.ops.new_key`, for a distribution that a kernel draws.
            sample_offset: the number of the first sample of the key; or the numbers of all
                samples, int64 of shape (K, \*batch).

        Returns:
            The latent.

        Example:
            >>> q = torch.distributions.Bernoulli(torch.full((8,), 0.5))
            >>> fastvi.objectives.Latent.draw("b", q, 16).reparameterised
            False
        """
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"Latent {name!r}: expected a torch.distributions.Distribution, "
                f"got {type(distribution).__name__}"
            )
        check_num_samples(f"Latent {name!r}", num_samples)
        reparameterised = bool(distribution.has_rsample)
        normal = _diagonal_normal(distribution)
        if normal is not None:
            loc, scale = normal
            value, log_q, _ = ops.gaussian_rsample(
                loc,
                scale=scale,
                num_samples=num_samples,
                key=key,
                **drawn_from(sample_offset, torch.broadcast_shapes(loc.shape, scale.shape)[:-1]),
            )

            def held_normal() -> Tensor:
                return ops.gaussian_log_prob(value, loc.detach(), scale=scale.detach())

            return cls(
                name, value, log_q, parents=parents, distribution=distribution, own_path=held_normal
            )
        fused = "rsample_and_log_prob" if reparameterised else "sample_and_log_prob"
        log_q_path = None
        # A kernel that computes both at once hides the derivative of one by the other.
        if draws_by_key(distribution, fused) and not (path and reparameterised):
            of_key = {} if key is None else {"key": key, "sample_offset": sample_offset}
            value, log_q = getattr(distribution, fused)(num_samples, **of_key)
        elif reparameterised:
            value, log_q, log_q_path = constant_parameters.draw(
                f"Latent {name!r}", distribution, num_samples
            )
            log_q_path = constant_parameters.checked(
                f"Latent {name!r}", distribution, value, log_q_path
            )
        else:
            value = distribution.sample(torch.Size((num_samples,)))
            log_q = distribution.log_prob(value)

        return cls(
            name,
            value,
            log_q,
            reparameterised=reparameterised,
            parents=parents,
            distribution=distribution,
            own_path=log_q_path,
        )

    @property
    def batch(self) -> torch.Size:
        return self.log_q.shape[1:]

    def part(self, value: Tensor, log_q: Tensor, *, log_q_path: Tensor | None = None) -> Latent:
        """Return these samples as a latent, with log q at constant parameters, if it is known."""
        path = None if log_q_path is None else lambda: log_q_path
        return dataclasses.replace(self, value=value, log_q=log_q, path=path, own_path=None)

    def log_q_path(self) -> Tensor:
        """Evaluate log q as a function of the samples alone, with constant parameters."""
        if self.path is not None:
            return self.path()
        if self.own_path is not None:
            return self.own_path()
        if self.distribution is not None and self.value.requires_grad:
            constant_parameters.check_score(f"Latent {self.name!r}", "the guide", self.distribution)
        if not self.value.requires_grad:
            return self.log_q.detach()
        slope = None
        if self.log_q.requires_grad:
            (slope,) = torch.autograd.grad(
                self.log_q.sum(), self.value, retain_graph=True, allow_unused=True
            )
        if slope is None:
            raise ValueError(
                f"Latent {self.name!r}: expected log_q to be computed from value, or path to be "
                f"given: the estimator needs log q with the guide's parameters held constant"
            )
        # It has the same value and, by the samples, the same derivative.
        return moving_along(self.log_q, self.value, slope)


class Draws:
    r"""Draw any range of the samples of some latents, and the same samples at every call.

    An objective takes it in place of the samples. With ``chunk_size`` the objective draws the
    samples of one chunk at a time, so that its memory does not grow with K.

    Args:
        function: returns the latents, given the number of samples and the number of the first;
            with ``by_number`` also given the numbers of all, int64 of shape (K, \*batch), in place
            of the first.
        num_samples: K, if it is not the objective's.
        key: the key of the samples; a choice among them is drawn from it too.
        by_number: whether the function draws samples of any numbers, or only ranges.

    Example:
        >>> q = torch.distributions.Independent(
        ...     torch.distributions.Normal(torch.zeros(8, 2), torch.ones(8, 2)), 1)
        >>> draws = fastvi.objectives.Draws.of({"z": q})
        >>> objective = fastvi.objectives.IWLB(100_000, chunk_size=1_000)
        >>> objective.bound(draws, lambda z: -z["z"].square().sum(-1)).shape
        torch.Size([8])
    """

    def __init__(
        self,
        function: Callable[[int, int | Tensor], Sequence[Latent]],
        num_samples: int | None = None,
        *,
        key: Tensor | None = None,
        by_number: bool = False,
    ) -> None:
        self._function = function
        self.num_samples = num_samples
        self.key = key
        self.by_number = by_number

    def __call__(self, num_samples: int, sample_offset: int | Tensor = 0) -> list[Latent]:
        """Draw this many samples: from number ``sample_offset`` on, or those of these numbers."""
        return list(self._function(num_samples, sample_offset))

    @classmethod
    def of(
        cls,
        distributions: Mapping[str, Distribution],
        *,
        parents: tuple[str, ...] | None = (),
        path: bool = True,
    ) -> Draws:
        """Draw from distributions by name; a kernel has to draw each of them from a key.

        Args:
            distributions: q of each latent.
            parents: see :class:`Latent`.
            path: see :meth:`Latent.draw`.

        Raises:
            ValueError: torch draws a distribution by its own generator, which cannot draw only a
                range of the samples.
        """
        for name, q in distributions.items():
            if not is_keyed(q, path=path):
                raise ValueError(
                    f"Draws: expected a distribution that is drawn from a key, an Independent "
                    f"Normal or one of fastvi.distributions, got {q} for {name!r}; draw all "
                    f"samples at once by Latent.draw"
                )
        keys = {name: new_key(_device_of(q)) for name, q in distributions.items()}

        def draw(num_samples: int, sample_offset: int | Tensor) -> list[Latent]:
            return [
                Latent.draw(
                    name, q, num_samples, parents=parents, path=path, key=keys[name],
                    sample_offset=sample_offset,
                )
                for name, q in distributions.items()
            ]  # fmt: skip

        by_number = all(is_by_number(q) for q in distributions.values())
        return cls(draw, key=next(iter(keys.values()), None), by_number=by_number)


def is_keyed(distribution: Distribution, *, path: bool) -> bool:
    """Return whether a kernel draws the samples from a key, which can draw any range of them."""
    if _diagonal_normal(distribution) is not None:
        return True
    fused = "rsample_and_log_prob" if distribution.has_rsample else "sample_and_log_prob"
    return draws_by_key(distribution, fused) and not (path and distribution.has_rsample)


def is_by_number(distribution: Distribution) -> bool:
    """Whether the samples of a datum, one that is drawn from a key, can be drawn by number.

    The last dimension of what a kernel draws is no datum's: an event, or the classes.
    """
    whole = bool(distribution.event_shape) or not distribution.batch_shape
    return whole or isinstance(distribution, Categorical)


def _device_of(distribution: Distribution) -> torch.device | None:
    """Return the device that a distribution draws on, or None for torch's default device."""
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    return next((x.device for x in vars(base).values() if isinstance(x, Tensor)), None)


@dataclass(frozen=True, eq=False)
class Term:
    r"""Hold one term of a log-joint, and say which latents it depends on.

    Args:
        value: in nats, shape (K, \*batch); or a distribution. With ``observed`` it is the
            distribution of these data, else the prior of the latent that has the term's name.
        observed: data under the distribution ``value``.
        depends_on: names of the latents that ``value`` depends on, ``None`` for all. The term is
            part of the score-function signals of these latents. Too few names give a biased
            gradient, too many a noisy one.

    Example:
        >>> term = fastvi.objectives.Term(torch.zeros(16, 8), depends_on=("z1",))
        >>> term.depends_on
        ('z1',)
    """

    value: Tensor | Distribution
    observed: Tensor | None = None
    _: dataclasses.KW_ONLY
    depends_on: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.observed is not None and not isinstance(self.value, Distribution):
            raise TypeError(
                "Term: expected value to be a distribution where observed is given, "
                f"got {type(self.value).__name__}"
            )
        if isinstance(self.depends_on, str):
            raise TypeError(
                f"Term: expected depends_on to be a tuple of names, got {self.depends_on!r}"
            )


Joint = Tensor | Mapping[str, "Tensor | Distribution | Term"]
LogJoint = Callable[[Mapping[str, Tensor]], Joint]


def _diagonal_normal(q: Distribution) -> tuple[Tensor, Tensor] | None:
    """Return loc and scale of normals whose last dimension is the event, for the fused sampler."""
    if not isinstance(q, Independent) or q.reinterpreted_batch_ndims != 1:
        return None
    base = q.base_dist
    # A subclass may be another distribution.
    plain = type(base) is Normal or type(base).__module__.startswith("fastvi.distributions")
    if not (plain and isinstance(base, Normal)) or transforms_active():
        return None
    return base.loc, base.scale


def check_latents(where: str, latents: Iterable[Latent]) -> list[Latent]:
    """Return the latents as a list: at least one, all of the same K, under different names."""
    latents = list(latents)
    for latent in latents:
        if not isinstance(latent, Latent):
            raise TypeError(
                f"{where}: expected latents to be a sequence of Latent, "
                f"got {type(latent).__name__} in it"
            )
    if not latents:
        raise ValueError(f"{where}: expected at least one latent, got none")
    names = [latent.name for latent in latents]
    if len(set(names)) < len(names):
        raise ValueError(f"{where}: expected latents of different names, got {names}")
    nums_samples = {latent.name: len(latent.value) for latent in latents}
    if len(set(nums_samples.values())) > 1:
        raise ValueError(f"{where}: expected as many samples of every latent, got {nums_samples}")
    for latent in latents:
        unknown = set(latent.parents or ()) - set(names)
        if unknown:
            raise ValueError(
                f"{where}: expected the parents of latent {latent.name!r} to be among {names}, "
                f"got {sorted(unknown)}"
            )
    return latents


def check_reparameterised(where: str, latents: Iterable[Latent]) -> None:
    for latent in latents:
        if not latent.reparameterised:
            raise ValueError(
                f"{where}: expected latent {latent.name!r} to be reparameterised, got samples that "
                f"carry no gradient; use VIMCO or Reinforce, which also take mixtures of both"
            )
