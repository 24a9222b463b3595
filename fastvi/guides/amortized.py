"""Guides that are a function of the data: any module that returns distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi._checks import check_callable
from fastvi.guides.guide import Guide, arguments_for, is_optional
from fastvi.objectives.latent import Draws, Latent, is_keyed

_ONLY = "z"


class AmortizedGuide(Guide):
    r"""Draw from the distributions that a network returns.

    .. math::
        q(z \mid x) = \prod_i q_i(z_i \mid x)

    SVI makes such a guide of a module or function that it is given as ``guide``.

    Args:
        network: returns a ``torch.distributions.Distribution`` for the data, whose sample the model
            gets as one tensor; or a mapping of names to distributions, independent of each other
            given the data. With batch shape (B,) each example has its latent. A function without
            arguments has batch shape (), for latents of all the data. So has a module whose data
            are optional, such as a flow with an optional context, if the distribution that it
            returns for the first batch cannot be drawn from.

    Raises:
        TypeError: the network is not callable; or, at a draw, it returns no distribution.

    Example:
        >>> encoder = torch.nn.Linear(5, 3)
        >>> guide = fastvi.guides.AmortizedGuide(
        ...     lambda x: torch.distributions.Independent(
        ...         torch.distributions.Normal(encoder(x), 1.0), 1
        ...     )
        ... )
        >>> guide.latents((torch.zeros(8, 5),), 16)[0].value.shape
        torch.Size([16, 8, 3])
    """

    def __init__(self, network: Callable[..., Distribution | Mapping[str, Distribution]]) -> None:
        super().__init__()
        check_callable("AmortizedGuide", "network", network, "callable")
        self.network = network
        self._single = False
        # Whether the network is called with data; None before the first call.
        self._takes_data: bool | None = None

    def distributions(self, *data: Any) -> dict[str, Distribution]:
        """Return q of each latent, given the data. A single latent has the name "z"."""
        result = self._result(arguments_for(self.network, data))
        self._single = isinstance(result, Distribution)
        named = {_ONLY: result} if isinstance(result, Distribution) else result
        if not isinstance(named, Mapping) or not named:
            raise TypeError(
                f"AmortizedGuide: expected the network to return a distribution or a mapping of "
                f"names to distributions, got {type(result).__name__}"
            )
        return dict(named)

    def _result(self, data: tuple[Any, ...]) -> Any:
        if self._takes_data is None and data:
            self._takes_data = not is_optional(self.network) or self._draws_given(data)
        return self.network(*data) if self._takes_data else self.network()

    @torch.no_grad()
    def _draws_given(self, data: tuple[Any, ...]) -> bool:
        """Return whether a network whose data are optional can draw with data."""
        devices = {x.device for x in data if isinstance(x, Tensor) and x.is_cuda}
        with torch.random.fork_rng(list(devices)):
            try:
                _draw_once(self.network(*data))
                return True
            except (RuntimeError, ValueError, TypeError, IndexError):
                try:
                    alone = self.network()
                    _draw_once(alone)
                except (RuntimeError, ValueError, TypeError, IndexError):
                    return True  # the first error is the one that is raised
        return any(q.batch_shape for q in _all(alone) if isinstance(q, Distribution))

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> Sequence[Latent]:
        """Draw samples of each latent."""
        return _draw(self.distributions(*data), num_samples, path)

    def draws(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> Draws | Sequence[Latent]:
        """Return a function that draws ranges of the samples; the network runs once for all."""
        found = self.distributions(*data)
        if all(is_keyed(q, path=path) for q in found.values()):
            return Draws.of(found, path=path)
        return _draw(found, num_samples, path)

    def arrange(self, values: Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
        """Give the model one tensor, or the mapping."""
        return values[_ONLY] if self._single else values


def _draw(found: Mapping[str, Distribution], num_samples: int, path: bool) -> list[Latent]:
    return [Latent.draw(name, q, num_samples, parents=(), path=path) for name, q in found.items()]


def _all(result: Any) -> list[Any]:
    return list(result.values()) if isinstance(result, Mapping) else [result]


def _draw_once(result: Any) -> None:
    for q in _all(result):
        if isinstance(q, Distribution):
            q.sample()


def as_guide(guide: object) -> Guide:
    """Return the guide itself, or a guide made of a network."""
    if isinstance(guide, Guide):
        return guide
    if not callable(guide):
        raise TypeError(
            f"SVI: expected guide to be a Guide, or a module or function that returns "
            f"distributions, got {type(guide).__name__}"
        )
    return AmortizedGuide(guide)
