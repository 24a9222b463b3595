"""Parts of log-gamma and logarithms of ratios, in float64, without cancellation.

They are the functions of ``csrc/maths/gamma.h`` and ``deviance.h``, with the same float64
polynomials, because plain PyTorch has no such functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_STIRLING = (
    -0.00014662372361018463,
    0.0016031253042551462,
    -0.008117612393690323,
    0.025190310297915346,
    -0.05333706092061831,
    0.08094702366876606,
    -0.0894648808197021,
    0.07066055393153046,
    -0.036300114897613575,
    0.007183094947469427,
    0.005313130817249451,
    -0.004791501118442647,
    0.0008886856605161269,
    0.0006539066370335416,
    2.8274855283877573e-05,
    -0.0005982660032098553,
    2.2491224817581712e-07,
    0.0007936397603098573,
    3.292305857250617e-10,
    -0.0027777777829594394,
    3.2302836091810566e-14,
    0.0833333333333333,
)
_DIGAMMA = (
    -0.0013656696493184633,
    0.014478464738220892,
    -0.0704849647086815,
    0.20762692150881318,
    -0.4088248786932529,
    0.555943056204818,
    -0.507690972334847,
    0.2557042146506213,
    0.03961633369670371,
    -0.20035922075645063,
    0.18785610916080217,
    -0.09386966058367907,
    0.019520303828875627,
    0.003773825414213039,
    0.000542272168924717,
    -0.004222574933002488,
    4.0398233120291215e-06,
    0.003968059740733616,
    5.713246446355258e-09,
    -0.008333333422405215,
    5.524364223911908e-13,
    0.08333333333333276,
)
_EXCESS = (
    1.308676700994817477e-01,
    1.326875966856061184e-01,
    1.538624020581347840e-01,
    1.818179563088475337e-01,
    2.222222239180046965e-01,
    2.857142857080323117e-01,
    4.000000000000087930e-01,
    6.666666666666666297e-01,
)


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    y = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y = y * x + c
    return y


def stirling_rest(z: Tensor) -> Tensor:
    """Return log Γ(z) − ((z − ½) log z − z + ½ log 2π), for z of 1 and more."""
    inverse = 1 / z
    return _horner(inverse, _STIRLING) * inverse


def digamma_rest(z: Tensor) -> Tensor:
    """Return (log z − ψ(z) − 1/2z) z², for z of 1 and more."""
    return _horner(1 / z, _DIGAMMA)


def log_less_digamma(z: Tensor) -> Tensor:
    """Return log z − ψ(z), for z of 1 and more."""
    inverse = 1 / z
    return inverse * (0.5 + inverse * digamma_rest(z))


def trigamma_rest(z: Tensor) -> Tensor:
    """Return ψ'(z) − 1/z, for z > 0."""
    large = z > 32
    s = 1 / torch.where(large, z, 32.0)
    q = s * s
    far = q * (0.5 + s * (1 / 6 - q * (1 / 30 - q * (1 / 42 - q * (1 / 30 - q * 5 / 66)))))
    near = torch.where(large, 1.0, z)
    return torch.where(large, far, torch.polygamma(1, near) - 1 / near)


def excess(w: Tensor, log_ratio: Tensor) -> Tensor:
    """Return w − log(1 + w) for w of −1 and more; ``log_ratio`` is log(1 + w), for w near −1."""
    near = (w > -0.29) & (w < 0.41)
    f = torch.where(near, w, 0.0)
    s = f / (2 + f)
    z = s * s
    series = s * (f - _horner(z, _EXCESS) * z)
    return torch.where(near, series, w - torch.where(w < -0.5, log_ratio, torch.log1p(w)))
