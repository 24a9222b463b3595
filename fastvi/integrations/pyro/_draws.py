"""Draws of a guide's normal sites by the fused sampler, from keys."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent, Normal
from pyro.poutine.messenger import Messenger
from torch import Tensor

from fastvi._modes import records_graphs
from fastvi.ops import new_key
from fastvi.ops.gaussian_rsample import rsample

# The entry of a message for its distribution before the plate of the samples repeats it.
ALONE = "alone"


class Draws(Messenger):
    """Draw normal sites from a key: sample k has the noise of place k in every chunk.

    The handler is outside the plate of the samples, and gets distributions broadcast over it. If
    the parameters do not depend on the sample, one kernel draws with the log-densities.

    Args:
        num_samples: the size of the leading dimension in this run.
        offset: the place of the first sample.
        gradient: one of ``fastvi.ops.gaussian_rsample.GRADIENTS``; None for constants.
        key: with None a new one is drawn at the first use.
    """

    def __init__(
        self,
        num_samples: int = 1,
        offset: int = 0,
        gradient: str | None = "total",
        key: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.offset = offset
        self.gradient = gradient
        self.key = key
        # log q of the sites for which the sampler returned it with the samples, in one pass.
        self.log_q: dict[str, Tensor] = {}
        self._count = 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        normal = normal_of(msg["fn"])
        if normal is not None and not msg["args"] and not msg["kwargs"]:
            msg["value"] = self._draw(msg, normal)

    def _pyro_post_sample(self, msg: Any) -> None:
        if self.gradient is None and not msg["is_observed"] and isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()

    def _draw(self, msg: Any, normal: Any) -> Tensor:
        fn, loc, scale = msg["fn"], normal.loc, normal.scale
        num_samples = self.num_samples
        key = self._next_key(loc)
        if num_samples > 1:
            alone = normal_of(msg.get(ALONE))
            if alone is not None and alone.loc.shape == loc.shape[1:]:
                # The same values, without the backward pass of the repetition.
                loc, scale = alone.loc, alone.scale
            elif _repeats(loc) and _repeats(scale):
                loc, scale = loc[0], scale[0]
            else:
                return self._draw_each(loc, scale, key)
        shape = loc.shape
        if not shape:
            loc, scale = loc[None], scale[None]
        with torch.set_grad_enabled(records_graphs() and self.gradient is not None):
            z, log_q, _ = rsample(
                loc, scale, "scale", num_samples, key, self.offset, None, self.gradient or "total"
            )
        z = _shaped(z, (num_samples, *shape) if num_samples > 1 else shape)
        if fn is not normal and fn.event_dim == 1 and self.gradient is not None:
            self.log_q[msg["name"]] = _shaped(log_q, z.shape[:-1])
        return z

    def _draw_each(self, loc: Tensor, scale: Tensor, key: Tensor) -> Tensor:
        """Draw if each sample has parameters of its own, as in a layer above another."""
        unit = torch.zeros(loc.shape[1:], dtype=loc.dtype, device=loc.device)
        rows = unit if unit.ndim else unit[None]
        noise, _, _ = rsample(rows, rows, "log_scale", len(loc), key, self.offset, None, "total")
        return loc + scale * noise.reshape(loc.shape)

    def _next_key(self, like: Tensor) -> Tensor:
        if self.key is None:
            self.key = new_key(like.device)
        # Each site has a stream of the one seed.
        key = self.key
        if self._count > 0:
            key = key + torch.tensor([0, self._count], device=key.device)
        self._count += 1
        return key.to(like.device)


def normal_of(fn: Any) -> Any:
    """Return the normal distribution that this one is, or makes an event of; else None."""
    base = fn.base_dist if type(fn) is Independent else fn
    if type(base) is not Normal or base.loc.device.type not in ("cpu", "cuda"):
        return None
    same = base.loc.dtype == base.scale.dtype and base.loc.shape == base.scale.shape
    return base if same and fn.has_rsample and base.loc.numel() > 0 else None


def _shaped(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x if x.shape == shape else x.reshape(shape)


def _repeats(x: Tensor) -> bool:
    return x.ndim > 0 and x.stride(0) == 0
