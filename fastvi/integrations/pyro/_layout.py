"""The layout of a program's log-weights over independent data, and their scales.

The bound of independent data is the sum of their bounds. A plate that contains every site separates
the data: each place of it has log-weights and a bound of its own. A latent outside it (a global
one) belongs to all data, and then there is one log-sum-exp for all of them.

.. math::
    \\frac{N}{B} \\sum_{b} \\log \\frac{1}{K} \\sum_k w_{kb} \\le \\sum_n \\log p(x_n)
    \\qquad \\text{but} \\qquad
    \\operatorname{E} \\log \\frac{1}{K} \\sum_k v_k \\exp \\Bigl( \\frac{N}{B} \\sum_b \\log w_{kb}
    \\Bigr) \\nleq \\log p(x)

The scale of sub-sampling is outside the logarithm. With a global latent it would be inside, and the
convex log-sum-exp would turn the noise of the sub-sample into an upward bias: that is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastvi.integrations.pyro._programs import WHERE, Site, Traces, counts, plates_of

Scale = float | Tensor


@dataclass(frozen=True)
class Layout:
    """The dimensions of samples and independent data in log-densities of ``nesting + 1`` dims."""

    nesting: int
    # The dimensions of the plates that contain all sites, from left to right, as negative numbers.
    cells: tuple[int, ...]
    # The weight of a site's term in the log-weight; None for a weight of one.
    plates: float | None
    # The weight of the bound of each cell.
    outside: Scale

    def inside(self, site: Site) -> Scale:
        """Return the weight of this site's log-density in the log-weight."""
        return 1.0 if self.plates is None else site["scale"] / self.plates

    def to_cells(self, log_prob: Tensor) -> Tensor:
        """Sum a site's log-density to one value for each sample and cell, shape (K, *cells)."""
        missing = self.nesting + 1 - log_prob.ndim
        padded = log_prob.reshape((1,) * missing + tuple(log_prob.shape)) if missing else log_prob
        rest = [dim for dim in range(-self.nesting, 0) if dim not in self.cells]
        return padded.sum(rest) if rest else padded

    def from_cells(self, values: Tensor) -> Tensor:
        """Put (K, *cells) back among all the dimensions of plates."""
        sizes = dict(zip(self.cells, values.shape[1:], strict=True))
        shape = [sizes.get(dim, 1) for dim in range(-self.nesting, 0)]
        return values.reshape(values.shape[0], *shape)

    def scaled(self, bound: Tensor) -> Tensor:
        """Return the sum over the cells, each with its scale."""
        if not isinstance(self.outside, Tensor):
            return bound.sum() if self.outside == 1.0 else self.outside * bound.sum()
        return (self.to_cells(self.outside.to(bound.dtype))[0] * bound).sum()


def layout_of(traces: Traces, nesting: int, linear: bool) -> Layout:
    """Return the layout; with ``linear`` the bound is a mean, and takes every scale."""
    found = [site for site in traces.sites() if counts(site)]
    common = _common_plates(found)
    cells = tuple(sorted({frame.dim for frame in common.values() if frame.vectorized}))
    first = found[0]["scale"] if found else 1.0
    if all(_equal(site["scale"], first) for site in found) and _within(first, cells):
        return Layout(nesting, cells, None, first)
    if not linear:
        _check_subsampling(found, common)
    plates = 1.0
    for frame in common.values():
        plates *= _ratio(frame)
    return Layout(nesting, cells, plates, plates)


def _common_plates(found: list[Site]) -> dict[str, Any]:
    if not found:
        return {}
    plates = [plates_of(site) for site in found]
    shared = set(plates[0]).intersection(*plates[1:])
    return {name: frame for name, frame in plates[0].items() if name in shared}


def _check_subsampling(found: list[Site], common: dict[str, Any]) -> None:
    for site in found:
        for name, frame in plates_of(site).items():
            if name in common or _ratio(frame) == 1.0:
                continue
            outside = dict.fromkeys(x["name"] for x in found if name not in plates_of(x))
            raise ValueError(
                f"{WHERE}: expected every site to be in the sub-sampled plate {name!r}, got "
                f"{', '.join(map(repr, outside))} outside of it; the scale {frame.full_size}/"
                f"{int(frame.size)} would stand inside the log-sum-exp over the samples, which "
                f"could then exceed the evidence. Give each step all the data; or use alpha=1 or "
                f"num_samples=1, the ELBO, which may be sub-sampled; or make such a latent a "
                f"parameter"
            )


def _ratio(frame: Any) -> float:
    if frame.full_size is None or frame.full_size == frame.size:
        return 1.0
    return float(frame.full_size) / float(frame.size)


def _equal(a: Scale, b: Scale) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool((a == b).all()))
    return all(not isinstance(x, Tensor) or x.numel() == 1 for x in (a, b)) and float(a) == float(b)


def _within(scale: Scale, cells: tuple[int, ...]) -> bool:
    """Return whether a scale is one number for each cell."""
    if not isinstance(scale, Tensor):
        return True
    return all(size == 1 or dim - scale.ndim in cells for dim, size in enumerate(scale.shape))
