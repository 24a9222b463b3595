"""K shared among processes: each rank draws a range of the samples, two numbers per datum meet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# What every rank must agree on, exactly and, for what networks computed, about.
_EXACT = ("num_samples", "number of data", "number of latent features", "alpha", "beta")
_KEY_WORDS = 4
_ABOUT = ("loc", "loc", "log_var", "log_var")
_TOLERANCE = 0.01


class SampleGroup:
    """A process group whose ranks share the samples of one bound."""

    def __init__(self, where: str, group: Any) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                f"{where}: group needs torch.distributed to be initialised; call "
                f"torch.distributed.init_process_group first"
            )
        self.where = where
        self.group = group
        self.rank = dist.get_rank(group)
        if self.rank < 0:
            raise ValueError(f"{where}: expected this process to be a member of group, it is not")
        self.size = dist.get_world_size(group)

    def share(self, num_samples: int) -> tuple[int, int]:
        """The range of k that this rank draws: contiguous, and even to within one sample."""
        begin = self.rank * num_samples // self.size
        return begin, (self.rank + 1) * num_samples // self.size

    def common_key(self, key: Tensor) -> Tensor:
        """The first rank's key, on every rank."""
        key = key.clone()
        self._run("sharing the key", dist.broadcast, key, group_src=0)
        return key

    def check_agreement(
        self, num_samples: int, loc: Tensor, log_var: Tensor, key: Tensor, alpha: float, beta: float
    ) -> None:
        """Raise on every rank, naming who differs, where the ranks do not compute one bound.

        The message has one size whatever the arguments are, so no rank waits for another's shape.
        Values of networks are compared loosely: two kinds of device round differently.
        """
        numbers = [num_samples, loc[..., 0].numel(), loc.shape[-1], alpha, beta]
        # 32 bits at a time, which float64 holds exactly.
        words = torch.stack([key & 0xFFFFFFFF, key >> 32]).flatten().double()
        facts = torch.tensor(numbers, dtype=torch.float64, device=loc.device)
        mine = torch.cat([facts, words.to(loc.device), _fingerprint(loc), _fingerprint(log_var)])
        everyone = [torch.empty_like(mine) for _ in range(self.size)]
        self._run("comparing the arguments", dist.all_gather, everyone, mine)
        table = torch.stack(everyone).cpu()
        exact = len(_EXACT) + _KEY_WORDS
        agrees = table == table[0]
        agrees[:, exact:] = torch.isclose(
            table[:, exact:], table[:1, exact:], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        )
        names = (*_EXACT, *["key"] * _KEY_WORDS, *_ABOUT)
        for column, name in enumerate(names):
            different = (~agrees[:, column]).nonzero().flatten().tolist()
            if not different:
                continue
            detail = ""
            if name in _EXACT:
                first, other = table[0, column].item(), table[different[0], column].item()
                detail = f": {first:g} on rank 0, {other:g} on rank {different[0]}"
            if name in _ABOUT:
                detail = "; every rank needs the same x and the same parameters"
            raise ValueError(
                f"{self.where}: expected all ranks of group to have the same {name}, but rank(s) "
                f"{', '.join(map(str, different))} differ from rank 0{detail}"
            )

    def maximum(self, values: Tensor) -> Tensor:
        """The maximum over all ranks."""
        values = values.clone()
        self._run("meeting in the maximum", dist.all_reduce, values, op=dist.ReduceOp.MAX)
        return values

    def add(self, total: Tensor) -> Tensor:
        """The sum over all ranks."""
        total = total.clone()
        self._run("meeting in the sum", dist.all_reduce, total, op=dist.ReduceOp.SUM)
        return total

    def _run(self, doing: str, collective: Any, *arguments: Any, **options: Any) -> None:
        try:
            collective(*arguments, group=self.group, **options)
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.where}: rank {self.rank} of {self.size} lost its group while {doing}; "
                f"another rank has stopped, see the launcher's report for which"
            ) from error


def _fingerprint(values: Tensor) -> Tensor:
    """Two numbers that tell two tensors apart, and change little with their rounding."""
    flat = values.detach().double().flatten()
    if flat.numel() == 0:
        return flat.new_zeros(2)
    signs = torch.cos(0.7 * torch.arange(flat.numel(), device=flat.device, dtype=flat.dtype))
    size = flat.square().mean().sqrt()
    return torch.stack([(flat * signs).sum() / flat.numel() ** 0.5 / size.clamp_min(1e-30), size])


def sum_gradients(parameters: Iterable[Tensor], group: Any = None) -> None:
    """Add up every parameter's ``.grad`` over a group whose ranks share the samples of one loss.

    Each rank's backward leaves its own samples' share of the gradient; their sum is that of all K.
    Parameters that no rank has a gradient for keep none.

    Args:
        parameters: the same on every rank, in the same order.
        group: the process group given to the loss; ``None`` is the default group.

    Example:
        >>> criterion = fastvi.IWLBLoss(num_samples=100_000, chunk_size=1_000)
        >>> # under torchrun: IWLBLoss(..., group=group); loss.backward(); then
        >>> # fastvi.sum_gradients(model.parameters(), group); optimizer.step()
    """
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        return
    sample_group = SampleGroup("sum_gradients", group)
    have = torch.tensor([float(p.grad is not None) for p in parameters])
    have = sample_group.add(have.to(parameters[0].device))
    for parameter, anywhere in zip(parameters, have.tolist(), strict=True):
        if anywhere:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = sample_group.add(grad)
