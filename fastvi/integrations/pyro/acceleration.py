"""Put the fused distributions into an unmodified Pyro program, and take them out again.

``pyro.distributions.Normal`` is ``class Normal(torch.distributions.Normal,
TorchDistributionMixin)``. While an acceleration is on, its first base is
:class:`fastvi.distributions.Normal`, a subclass of torch's. The class itself stays the same object,
so that all imports of it, its subclasses, objects made before and after, ``isinstance`` and
``kl_divergence`` work as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro.distributions
import torch.distributions
from pyro.distributions.distribution import COERCIONS
from pyro.distributions.torch_distribution import TorchDistributionMixin

import fastvi.distributions
from fastvi.integrations._acceleration import Acceleration, Swaps

# The names that Pyro, torch and fastvi have in common, with the same constructor.
NAMES = tuple(
    name
    for name in fastvi.distributions.__all__
    if isinstance(getattr(pyro.distributions, name, None), type)
    and getattr(torch.distributions, name, None) in getattr(pyro.distributions, name).__bases__
    and issubclass(getattr(fastvi.distributions, name), getattr(torch.distributions, name))
)

# The same as classes of their own, of those to which Pyro's add no log_prob.
_FUSED: dict[str, Any] = {
    name: type(name, (getattr(fastvi.distributions, name), TorchDistributionMixin), {})
    for name in NAMES
    if "log_prob" not in vars(getattr(pyro.distributions, name))
}
# The classes whose constructors check parameters, by Pyro's class.
_CHECKS: dict[type, Any] = {
    getattr(pyro.distributions, name): fused
    for name, fused in _FUSED.items()
    if name != "Independent" and "__init__" not in vars(getattr(pyro.distributions, name))
}


def accelerate(*names: str) -> Acceleration:
    """Put the fused distributions in place of torch's in all Pyro programs, until closed.

    Log-densities of ``pyro.distributions.Normal``, ``Bernoulli`` and the others of
    ``fastvi.integrations.pyro.acceleration.NAMES`` run one kernel, summed over the event if the
    program uses ``to_event``, and checks of arguments cost less. Samples are drawn as before, with
    the same numbers for a seed. Accelerations nest; the last one that is closed swaps back.

    The base classes are swapped, so all imports, subclasses and older objects of a program change
    too. ``torch.distributions`` without Pyro does not change, nor does a subclass whose own
    ``log_prob`` does not call its base's.

    It acts on the whole process, as Pyro's own stack of handlers does. Open and close it while no
    other thread runs a Pyro program.

    Args:
        names: of the distributions to swap; by default all.

    Returns:
        A handle: ``with accelerate(): ...``, or ``handle = accelerate()`` and ``handle.close()``.

    Raises:
        ValueError: a name that cannot be swapped.

    Example:
        >>> import pyro.distributions as dist
        >>> from fastvi.integrations.pyro import accelerate
        >>> with accelerate():
        ...     q = dist.Normal(torch.zeros(4, 3), torch.ones(4, 3)).to_event(1)
        ...     isinstance(q.base_dist, fastvi.distributions.Normal), q.log_prob(q()).shape
        (True, torch.Size([4]))
        >>> issubclass(dist.Normal, fastvi.distributions.Normal)
        False
    """
    return Acceleration(_SWAPS, _SWAPS.chosen(names))


@contextlib.contextmanager
def quick_checks() -> Iterator[None]:
    """Let Pyro's distributions check their parameters by the fast checks of fastvi's."""
    COERCIONS.append(_checked_quickly)
    try:
        yield
    finally:
        COERCIONS.remove(_checked_quickly)


def _checked_quickly(kind: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return Pyro's own distribution, made by fastvi's constructor; None for others."""
    fused = _CHECKS.get(kind)
    if fused is None:
        return None
    result = object.__new__(fused)
    result.__init__(*args, **kwargs)
    result.__class__ = kind
    return result


def fused_copy(fn: Any) -> Any:
    """Return an equal distribution of fastvi's, if there is one; only in this thread."""
    kind = type(fn)
    name = kind.__name__
    if name not in _FUSED or kind is not getattr(pyro.distributions, name):
        return fn
    result = object.__new__(_FUSED[name])
    result.__dict__.update(fn.__dict__)
    if name == "Independent":
        result.base_dist = fused_copy(fn.base_dist)
    return result


def _swap(name: str, on: bool) -> None:
    kind = getattr(pyro.distributions, name)
    of_torch, fused = getattr(torch.distributions, name), getattr(fastvi.distributions, name)
    before, after = (of_torch, fused) if on else (fused, of_torch)
    kind.__bases__ = tuple(after if base is before else base for base in kind.__bases__)


_SWAPS = Swaps(NAMES, _swap)
