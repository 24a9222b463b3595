"""Guides of bits and of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from fastvi import ops
from fastvi._checks import check_event_dims, check_num_samples
from fastvi.distributions import Bernoulli, Categorical
from fastvi.guides.guide import Guide, arguments_for
from fastvi.objectives.latent import Draws, Latent
from fastvi.ops._arguments import drawn_from
from fastvi.ops._event import sum_event

Logits = Callable[..., Tensor] | Sequence[int]


class _LogitsGuide(Guide):
    """Hold the logits of one latent: free parameters, or the output of a network."""

    def __init__(self, logits: Logits, event_dims: int, of_each: int) -> None:
        super().__init__()
        where = type(self).__name__
        check_event_dims(where, event_dims)
        self.event_dims = event_dims
        self._free = not callable(logits)
        if callable(logits):
            self.network = logits
            return
        shape = tuple(logits)
        if len(shape) != event_dims + of_each:
            raise ValueError(
                f"{where}: expected free logits to have {event_dims + of_each} dimensions, for "
                f"latents of all the data, got shape {shape}"
            )
        self.logits = nn.Parameter(torch.zeros(shape))

    def _logits(self, data: tuple[Any, ...]) -> Tensor:
        if self._free:
            return self.logits
        return self.network(*arguments_for(self.network, data))

    def arrange(self, values: Mapping[str, Tensor]) -> Tensor:
        """Give the model the tensor itself."""
        return values["z"]

    def _latent(self, q: Distribution, value: Tensor, log_q: Tensor) -> list[Latent]:
        law = Independent(q, self.event_dims) if self.event_dims else q
        return [Latent("z", value, log_q, reparameterised=False, parents=(), distribution=law)]


class BernoulliGuide(_LogitsGuide):
    r"""Draw independent bits.

    .. math::
        q(z \mid x) = \prod_d \mathrm{Bernoulli}(z_d; \operatorname{sigmoid} \ell_d(x))

    Its objectives are ``VIMCO``, ``Reinforce`` and ``IWLB(K, "rws")``.

    Args:
        logits: a module or function from the data to logits of shape (B, D); or the shape (D,) of
            logits that are parameters themselves, for bits of all the data.
        event_dims: the number of last dimensions that belong to one latent.

    Raises:
        ValueError: ``event_dims`` below 0, or a shape with another number of dimensions.

    Example:
        >>> guide = fastvi.guides.BernoulliGuide(torch.nn.Linear(5, 3))
        >>> guide.latents((torch.zeros(8, 5),), 16)[0].value.shape
        torch.Size([16, 8, 3])
        >>> guide.probs(torch.zeros(8, 5)).shape
        torch.Size([8, 3])
    """

    def __init__(self, logits: Logits, event_dims: int = 1) -> None:
        super().__init__(logits, event_dims, 0)

    def probs(self, *data: Any) -> Tensor:
        """Return the probability that each bit is one."""
        return self._logits(data).sigmoid()

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> list[Latent]:
        """Draw samples."""
        check_num_samples(type(self).__name__, num_samples)
        return self._range(self._logits(data), num_samples)

    def draws(self, data: tuple[Any, ...], num_samples: int, *, path: bool = False) -> Draws:
        """Return a function that draws ranges of samples from one key, with the same logits."""
        logits = self._logits(data)
        key = ops.new_key(logits.device)
        return Draws(
            lambda num_samples, offset: self._range(logits, num_samples, key, offset),
            key=key, by_number=True,
        )  # fmt: skip

    def _range(
        self,
        logits: Tensor,
        num_samples: int,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
    ) -> list[Latent]:
        # With the event in the last dimension one pass gives the values and the sum over it.
        rows = logits.flatten(-self.event_dims) if self.event_dims else logits[..., None]
        value, log_q = ops.bernoulli_sample(
            rows, num_samples, key=key, **drawn_from(sample_offset, rows.shape[:-1])
        )
        value = value.reshape(num_samples, *logits.shape)
        return self._latent(Bernoulli(logits=logits), value, log_q)


class CategoricalGuide(_LogitsGuide):
    r"""Draw a class, or several independent ones.

    .. math::
        q(z \mid x) = \operatorname{softmax}(\ell(x))_z

    Its objectives are ``VIMCO``, ``Reinforce`` and ``IWLB(K, "rws")``.

    Args:
        logits: a module or function from the data to logits of shape (B, C), or (B, n, C) with
            ``event_dims=1``; or the shape of logits that are parameters themselves, for classes of
            all the data.
        event_dims: the number of dimensions, before the one of classes, that belong to one latent.

    Raises:
        ValueError: ``event_dims`` below 0, or a shape with another number of dimensions.

    Example:
        >>> guide = fastvi.guides.CategoricalGuide(torch.nn.Linear(5, 3))
        >>> guide.latents((torch.zeros(8, 5),), 16)[0].value.shape
        torch.Size([16, 8])
        >>> guide.probs(torch.zeros(8, 5)).shape
        torch.Size([8, 3])
    """

    def __init__(self, logits: Logits, event_dims: int = 0) -> None:
        super().__init__(logits, event_dims, 1)

    def probs(self, *data: Any) -> Tensor:
        """Return the probability of each class."""
        return self._logits(data).softmax(-1)

    def latents(
        self, data: tuple[Any, ...], num_samples: int, *, path: bool = False
    ) -> list[Latent]:
        """Draw samples: classes as int64."""
        check_num_samples(type(self).__name__, num_samples)
        return self._range(Categorical(logits=self._logits(data)), num_samples)

    def draws(self, data: tuple[Any, ...], num_samples: int, *, path: bool = False) -> Draws:
        """Return a function that draws ranges of samples from one key, with the same logits."""
        logits = self._logits(data)
        q, key = Categorical(logits=logits), ops.new_key(logits.device)
        return Draws(
            lambda num_samples, offset: self._range(q, num_samples, key, offset),
            key=key, by_number=True,
        )  # fmt: skip

    def _range(
        self,
        q: Categorical,
        num_samples: int,
        key: Tensor | None = None,
        sample_offset: int | Tensor = 0,
    ) -> list[Latent]:
        value, log_q = q.sample_and_log_prob(num_samples, key=key, sample_offset=sample_offset)
        return self._latent(q, value, sum_event(log_q, self.event_dims))
