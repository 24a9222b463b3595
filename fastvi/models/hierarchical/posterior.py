"""The posterior of several layers as one distribution."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi.models.hierarchical.drawn import join

if TYPE_CHECKING:
    from fastvi.models.hierarchical.network import LayeredNetwork


class LayeredPosterior(Distribution):
    r"""q(h given x) of a :class:`fastvi.HierarchicalVAE`: its layers joined along the last.

    .. math::
        q(h \mid x) = \prod_l q(h_l \mid \text{guide inputs})

    Args:
        network: the model.
        x: data, shape (\*batch, \*event).
        batch: the shape of the batch.
    """

    arg_constraints: dict = {}

    def __init__(self, network: LayeredNetwork, x: Tensor, batch: torch.Size) -> None:
        self.network, self.x = network, x
        self.sizes = {name: layer.features for name, layer in network._layers()}
        event = torch.Size([sum(self.sizes.values())])
        super().__init__(batch, event, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Return whether all layers are reparameterised."""
        with torch.no_grad():
            drawn = self.network.draw(self.x, 1, key=self.x.new_zeros(2, dtype=torch.int64))
        return all(layer.family.is_reparameterised(layer.given) for layer in drawn.values())

    def rsample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        if not self.has_rsample:
            raise NotImplementedError(
                "LayeredPosterior: expected all layers to be reparameterised for rsample, got "
                "others, such as discrete ones; sample() draws them"
            )
        return self._draw(torch.Size(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]
        return self._draw(torch.Size(sample_shape))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        drawn = self.network.draw(self.x, max(1, math.prod(sample_shape)))
        joined = join([layer.value for layer in drawn.values()])
        return joined[: math.prod(sample_shape)].reshape(
            *sample_shape, *self.batch_shape, *self.event_shape
        )

    def by_layer(self, value: Tensor) -> Mapping[str, Tensor]:
        r"""Split a value, shape (\*samples, \*batch, D), into the layers by their names."""
        if value.shape[-1:] != self.event_shape:
            raise ValueError(
                f"LayeredPosterior: expected value to have {self.event_shape[0]} features, got "
                f"shape {list(value.shape)}"
            )
        parts = value.split(list(self.sizes.values()), -1)
        return dict(zip(self.sizes, parts, strict=True))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Evaluate log q in nats, shape (\*samples, \*batch)."""
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        samples = shape[: len(shape) - len(self.batch_shape)]
        rows = value.expand(*shape, -1).reshape(-1, *self.batch_shape, value.shape[-1])
        total = torch.zeros((), dtype=value.dtype, device=value.device)
        for term in self.network.log_q(self.x, self.by_layer(rows)).values():
            total = total + term
        return total.reshape(*samples, *self.batch_shape)
