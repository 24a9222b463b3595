"""The error budget: the one tolerance of the kernels.

Exact is the reference in float64. A kernel may be as far from it as twice the same reference run in
plain PyTorch at the kernel's own dtype, plus ``FLOOR_ULPS`` units in the last place of the largest
number in the output: where plain PyTorch happens to be exact, rounding once must still be allowed.

Nothing is more exact than float64 here. There, plain PyTorch's error is that of float32, scaled by
the ratio of the two units in the last place, and the reference is granted its own error: once that
of plain PyTorch, and one unit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FACTOR = 2.0
FLOOR_ULPS = 2.0

Leaves = dict[str, Tensor]
# From leaves to named outputs and gradients.
Run = Callable[[Leaves], dict[str, Tensor]]


def as_leaves(tensors: Leaves, dtype: torch.dtype | None = None) -> Leaves:
    """New contiguous leaves with the same numbers."""
    return {
        name: torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
        .copy_(x.detach())
        .requires_grad_(x.requires_grad)
        for name, x in tensors.items()
    }


def _error(ours: Tensor, exact: Tensor) -> float:
    finite = torch.isfinite(exact.to(ours.dtype))
    gap = (ours.detach().double() - exact)[finite].abs()
    return gap.max().item() if gap.numel() else 0.0


def assert_within_budget(ours: Run, reference: Run, tensors: Leaves, dtype: torch.dtype) -> None:
    """Compare every output and gradient of ``ours`` with the reference's."""
    found = ours(tensors)
    exact = reference(as_leaves(tensors, torch.float64))
    if dtype == torch.float64:
        low = as_leaves(tensors, torch.float32)
        plain, plain_exact = reference(low), reference(as_leaves(low, torch.float64))
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    else:
        plain, plain_exact, scale = reference(as_leaves(tensors)), exact, 1.0
    own = 1.0 if dtype == torch.float64 else 0.0
    assert found.keys() == exact.keys()
    for name, x in found.items():
        x, true = x.detach(), exact[name].detach()
        assert x.shape == true.shape, f"{name}: shape {x.shape}, reference {true.shape}"
        if dtype != torch.float64:
            assert x.dtype == plain[name].dtype, f"{name}: dtype {x.dtype}"
        rounded = true.to(x.dtype)
        finite = torch.isfinite(rounded)
        torch.testing.assert_close(
            x[~finite],
            rounded[~finite],
            rtol=0,
            atol=0,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: infinities and NaN differ\n{text}",
        )
        if not bool(finite.any()):
            continue
        plain_error = scale * _error(plain[name].nan_to_num(0.0), plain_exact[name].detach())
        largest = true[finite].abs().max().item()
        floor = (FLOOR_ULPS + own) * torch.finfo(x.dtype).eps * largest
        error = _error(x, true)
        assert error <= (FACTOR + own) * plain_error + floor, (
            f"{name}: error {error:.3e}, plain PyTorch {plain_error:.3e}, floor {floor:.3e}, "
            f"largest value {largest:.3e}"
        )
