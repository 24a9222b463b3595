"""K samples shared among processes: each rank draws a range, and sends two numbers a datum."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastvi._gradients import with_gradient

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

if dist.is_available():
    # The defaults of its functions are the default group of the moment that it is imported. If
    # torch's compiler does so later, on an optimiser's first step, they keep a group that was
    # destroyed, whose threads may then abort the process while it ends.
    import torch.distributed.nn.functional  # noqa: F401

Result = TypeVar("Result")
# Two kinds of device round differently, a float32 network may run in TF32, and one under autocast
# in less. So tensors are compared up to the coarsest rounding.
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2.0**-10}
_TOLERANCE_IN_LOW_PRECISION = 1e-2
# The frequencies, over the rows and along a row, of the waves that tensors are compared by.
_WAVES = ((0.0, 0.0), (0.7, 1.9), (2.6, 0.4))


@dataclass(frozen=True)
class _Print:
    """Some numbers that tell two tensors apart, and change little with rounding."""

    shape: tuple[int, ...]
    # The root mean square, and the projection on each wave divided by it.
    numbers: tuple[float, ...]
    tolerance: float

    @classmethod
    def of(cls, values: Tensor) -> _Print:
        shape, device = tuple(values.shape), values.device
        tolerance = _TOLERANCE.get(values.dtype, _TOLERANCE_IN_LOW_PRECISION)
        if torch.is_autocast_enabled(device.type):
            tolerance = _TOLERANCE_IN_LOW_PRECISION
        # Integers and booleans are exact in either type, or differ by much.
        acc = torch.float64 if values.dtype == torch.float64 else torch.float32
        rows = values.detach().to(acc).reshape(-1, *values.shape[-1:])
        if rows.numel() == 0:
            return cls(shape, (), tolerance)
        place = [torch.arange(n, device=device, dtype=torch.float64) for n in rows.shape]
        if rows.ndim == 1:
            rows, place = rows[:, None], [place[0], place[0].new_zeros(1)]
        size = rows.square().mean(dtype=torch.float64).sqrt()
        sums = [
            ((rows * torch.cos(along * place[1]).to(acc)).sum(1, dtype=torch.float64))
            @ torch.cos(over * place[0])
            for over, along in _WAVES
        ]
        scaled = torch.stack(sums) / (math.sqrt(rows.numel()) * size.clamp_min(1e-300))
        return cls(shape, (size.item(), *scaled.tolist()), tolerance)

    def __str__(self) -> str:
        return f"a tensor of shape {list(self.shape)}"

    def resembles(self, other: object) -> bool:
        if not isinstance(other, _Print) or self.shape != other.shape:
            return False
        tolerance = max(self.tolerance, other.tolerance)
        return all(
            math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance if number else 0.0)
            or (math.isnan(a) and math.isnan(b))
            for number, (a, b) in enumerate(zip(self.numbers, other.numbers, strict=True))
        )


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

    def share(self, num_samples: int, rank: int | None = None) -> tuple[int, int]:
        """Return the range of k that a rank draws (this one), even to within one sample."""
        rank = self.rank if rank is None else rank
        return rank * num_samples // self.size, (rank + 1) * num_samples // self.size

    def common_key(self, key: Tensor) -> Tensor:
        """Return the first rank's key, on every rank."""
        key = key.clone()
        self._run("sharing the key", dist.broadcast, key, group_src=0)
        return key

    def check_agreement(self, facts: Mapping[str, object], device: torch.device) -> None:
        """Raise on every rank, naming who differs, where the ranks do not compute one bound.

        Facts have to be equal; tensors have to have the same shape, and the same values up to
        rounding. The first fact that differs is named, so causes stand before their effects.
        """
        mine = {
            name: _Print.of(fact) if isinstance(fact, Tensor) else fact
            for name, fact in facts.items()
        }
        everyone: list[Any] = [None] * self.size
        with torch.cuda.device(device.index if device.type == "cuda" else -1):
            self._run("comparing the arguments", dist.all_gather_object, everyone, mine)
        first = everyone[0]
        # The same names in the same order on every rank.
        for name in dict.fromkeys(name for facts in everyone for name in facts):
            expected = first.get(name)
            different = [
                rank for rank, facts in enumerate(everyone) if not _same(expected, facts.get(name))
            ]
            if not different:
                continue
            got = everyone[different[0]].get(name)
            detail = f": {expected} on rank 0, {got} on rank {different[0]}"
            if str(expected) == str(got):
                detail = "; every rank needs the same x, the same parameters and the same noise"
            raise ValueError(
                f"{self.where}: expected all ranks of group to have the same {name}, but rank(s) "
                f"{', '.join(map(str, different))} differ from rank 0{detail}"
            )

    def maximum(self, values: Tensor) -> Tensor:
        """The maximum over all ranks."""
        return self._reduced("meeting in the maximum", values, dist.ReduceOp.MAX)

    def add(self, total: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self._reduced("meeting in the sum", total, dist.ReduceOp.SUM)

    def shared(self, value: Tensor) -> Tensor:
        """Return a value that all ranks have, with an equal share of its gradient on each."""
        return with_gradient(value, (value[None], torch.full_like(value[None], 1.0 / self.size)))

    def check_alive(self, *, failed: bool) -> None:
        """Raise where another rank has raised an error; every rank calls it, whatever happened."""
        flags = torch.zeros(self.size)
        flags[self.rank] = float(failed)
        backend = dist.get_backend(self.group)
        if backend == "nccl":
            flags = flags.cuda()
        flags = self._reduced("comparing what happened", flags, dist.ReduceOp.SUM)
        failures = flags.nonzero().flatten().tolist()
        if failures and not failed:
            raise RuntimeError(
                f"{self.where}: rank(s) {', '.join(map(str, failures))} of {self.size} raised an "
                f"error in the log-likelihood of their samples, so there is no bound; the report "
                f"of each says which"
            )

    def check_placement(self, name: str, parameter: Tensor) -> None:
        """Raise where the ranks that share the samples also share the parameter."""
        sharded = _sharded(parameter)
        if sharded is None:
            return
        sharing = set(sharded.device_mesh.mesh.flatten().tolist())
        both = sharing.intersection(dist.get_process_group_ranks(self.group or dist.group.WORLD))
        if both != {dist.get_rank()}:
            raise ValueError(
                f"{self.where}: expected parameters that the ranks of group do not share, but "
                f"{name}, of shape {list(parameter.shape)}, is a DTensor over ranks "
                f"{', '.join(map(str, sorted(both)))} of group; shard it over another dimension of "
                f"the mesh than the one that shares the samples"
            )

    def _reduced(self, doing: str, values: Tensor, op: Any) -> Tensor:
        values = values.clone(memory_format=torch.contiguous_format)
        self._run(doing, dist.all_reduce, values, op=op)
        return values

    def _run(self, doing: str, collective: Any, *arguments: Any, **options: Any) -> None:
        try:
            collective(*arguments, group=self.group, **options)
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.where}: rank {self.rank} of {self.size} lost its group while {doing}; "
                f"another rank has stopped, see the launcher's report for which"
            ) from error


def process_group_of(thing: object) -> Any:
    """Return the process group that a loss or an objective shares its samples among, or None."""
    group = getattr(thing, "group", None)
    return group.group if isinstance(group, SampleGroup) else group


def awaited(group: SampleGroup | None, function: Callable[[], Result]) -> Result:
    """Call a function; if it raises on one rank, the others, which wait, raise too."""
    if group is None:
        return function()
    try:
        result = function()
    except Exception:
        with contextlib.suppress(RuntimeError):
            group.check_alive(failed=True)
        raise
    group.check_alive(failed=False)
    return result


def _same(expected: object, got: object) -> bool:
    return expected.resembles(got) if isinstance(expected, _Print) else expected == got


def _sharded(tensor: Tensor) -> DTensor | None:
    """Return the tensor if it is a sharded one."""
    # Imported here, because it takes a moment.
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None


def sum_gradients(parameters: Iterable[Tensor], group: Any = None) -> None:
    """Add up every parameter's ``.grad`` over a group whose ranks share the samples of one loss.

    Each rank's backward pass leaves the share of its own samples; their sum is the gradient of all
    K. Call it once, after the backward pass and before the step. :class:`fastvi.SVI`, Pyro's
    ``SVI`` and Lightning's ``Trainer``, which step themselves, need no call. Parameters that no
    rank has a gradient for keep none. Of a sharded parameter (a ``DTensor``) each rank adds up its
    own shard: the ranks that share samples must not be ranks that share the parameter.

    Args:
        parameters: the same on every rank, in the same order.
        group: the process group given to the loss; ``None`` is the default group.

    Raises:
        ValueError: if a parameter is sharded or replicated over ranks of ``group``: what wrapped it
            has summed its gradient there already.

    Example:
        >>> criterion = fastvi.IWLBLoss(num_samples=100_000, chunk_size=1_000)
        >>> # under torchrun: IWLBLoss(..., group=group); loss.backward(); then
        >>> # fastvi.sum_gradients(model.parameters(), group); optimizer.step()
    """
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        return
    sample_group = SampleGroup("sum_gradients", group)
    for index, parameter in enumerate(parameters):
        sample_group.check_placement(f"parameter {index}", parameter)
    have = torch.tensor([float(p.grad is not None) for p in parameters])
    have = sample_group.add(have.to(parameters[0].device))
    for parameter, anywhere in zip(parameters, have.tolist(), strict=True):
        if anywhere:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if (sharded := _sharded(grad)) is not None:
                shard = sharded.to_local()
                shard.copy_(sample_group.add(shard))
                parameter.grad = grad
            else:
                parameter.grad = sample_group.add(grad)
