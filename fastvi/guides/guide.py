"""The base of all guides of SVI."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from fastvi.objectives.latent import Draws, Joint, Latent


class Guide(nn.Module):
    """Hold a family of distributions over the latents of a model.

    A subclass defines :meth:`latents`, which draws samples. If the model does not take the samples
    themselves, it also defines :meth:`arrange`. Guides with several layers give each
    :class:`fastvi.objectives.Latent` its ``parents``, and its ``path`` for ``"dreg"`` and
    ``"stl"``.

    Example:
        >>> class Wide(fastvi.guides.Guide):
        ...     def latents(self, data, num_samples, *, path=False):
        ...         q = torch.distributions.Normal(torch.zeros(len(data[0])), 2.0)
        ...         return [fastvi.objectives.Latent.draw("z", q, num_samples, path=path)]
        >>> Wide().latents((torch.zeros(8),), 16)[0].value.shape
        torch.Size([16, 8])
    """

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> Sequence[Latent]:
        """Draw samples, in the order in which they depend on each other.

        Args:
            data: the parts of a batch; empty without a batch.
            num_samples: K.
            path: whether the objective holds the parameters of log q constant.

        Returns:
            The latents: of each datum, or, without a batch shape, of all the data.
        """
        raise NotImplementedError

    def draws(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> Draws | Sequence[Latent]:
        """Return a function that draws any range of the samples, or all of them, if it cannot.

        If ranges can be drawn, an objective with ``chunk_size`` keeps the samples of one chunk
        only. The arguments are those of :meth:`latents`.
        """
        return self.latents(data, num_samples, path=path)

    def arrange(self, values: Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
        """Return what the model takes, made of the latents' values by name; by default these."""
        return values

    def prior(self, name: str, prior: Distribution, value: Tensor) -> Tensor:
        """Evaluate the prior of a value that the model took under a name."""
        return prior.log_prob(value)

    def read(self, joint: Joint, z: Tensor | Mapping[str, Tensor]) -> Joint:
        """Translate a log-joint over the model's values into one over the latents."""
        return joint


def draws_of(
    guide: Guide, data: tuple[Any, ...], num_samples: int, *, path: bool
) -> Draws | Sequence[Latent]:
    """Return the samples, or the function that draws ranges of them if the guide has one."""
    draws: Draws | Sequence[Latent]
    own = next(k for k in type(guide).__mro__ if "draws" in vars(k) or "latents" in vars(k))
    if "draws" in vars(own):
        draws = guide.draws(data, num_samples, path=path)
    else:
        draws = guide.latents(data, num_samples, path=path)
    if isinstance(draws, Draws):
        draws.num_samples = num_samples
    return draws


def arguments_for(function: Any, data: tuple[Any, ...], *before: Any) -> tuple[Any, ...]:
    """Return as many parts of a batch, from the first, as the function accepts after ``before``.

    So a loader may give labels, and a model that has no argument for them does not get them.
    """
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        signature = inspect.signature(call)
    except ValueError:
        return data
    for count in range(len(data), -1, -1):
        try:
            signature.bind(*before, *data[:count])
        except TypeError:
            continue
        return data[:count]
    return data


def is_optional(function: Any) -> bool:
    """Return whether the function may be called without arguments."""
    call = function.forward if isinstance(function, nn.Module) else function
    try:
        inspect.signature(call).bind()
    except (TypeError, ValueError):
        return False
    return True
