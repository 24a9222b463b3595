"""Calls that are refused: the op, what is wrong, the error, and what its message must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvi import ops

Make = Callable[..., Tensor]


def make(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def call_of(op: str) -> Callable[..., Callable[[Make], Any]]:
    """Write a call as ``iwlb(lambda t: (t(3, 2),))`` or with a dict of named arguments after it."""

    def build(arguments: Callable[[Make], tuple[Any, ...]]) -> Callable[[Make], Any]:
        def call(t: Make) -> Any:
            positional = arguments(t)
            named = {}
            if positional and isinstance(positional[-1], dict):
                *positional, named = positional
            return getattr(ops, op)(*positional, **named)

        return call

    return build


@dataclass(frozen=True)
class Bad:
    op: str
    what: str
    arguments: Callable[[Make], tuple[Any, ...]]
    error: type[Exception]
    # What the message must say besides the op, "expected" and "got".
    says: tuple[str, ...]
    # Whether a fake tensor can stand in the same place: it cannot be on two devices.
    fake: bool = True

    def call(self, t: Make) -> Any:
        return call_of(self.op)(self.arguments)(t)


I64 = torch.int64
F64 = torch.float64
HALF = torch.float16

BAD_IWLB = [
    Bad("iwlb", "not a tensor", lambda t: ([1.0, 2.0],), TypeError, ("log_w", "tensor", "list")),
    Bad("iwlb", "scalar", lambda t: (t(),), ValueError, ("log_w",)),
    Bad("iwlb", "K = 0", lambda t: (t(0, 3),), ValueError, ("log_w", "at least one sample")),
    Bad("iwlb", "K = 0, last", lambda t: (t(3, 0), {"dim": 1}), ValueError, ("log_w",)),
    Bad("iwlb", "dim too large", lambda t: (t(3, 2), {"dim": 2}), ValueError, ("dim", "2")),
    Bad("iwlb", "dim too small", lambda t: (t(3, 2), {"dim": -3}), ValueError, ("dim", "-3")),
    Bad("iwlb", "dim not an int", lambda t: (t(3, 2), {"dim": "k"}), TypeError, ("dim",)),
    Bad("iwlb", "dim a float", lambda t: (t(3, 2), {"dim": 0.0}), TypeError, ("dim",)),
    Bad("iwlb", "integers", lambda t: (t(3, 2, dtype=I64),), TypeError, ("log_w", "float")),
    Bad("iwlb", "booleans", lambda t: (t(3, 2, dtype=torch.bool),), TypeError, ("log_w",)),
    Bad("iwlb", "complex", lambda t: (t(3, 2, dtype=torch.cfloat),), TypeError, ("log_w",)),
    Bad("iwlb", "alpha NaN", lambda t: (t(3, 2), {"alpha": float("nan")}), ValueError, ("alpha",)),
    Bad("iwlb", "alpha inf", lambda t: (t(3, 2), {"alpha": float("inf")}), ValueError, ("alpha",)),
    Bad("iwlb", "alpha text", lambda t: (t(3, 2), {"alpha": "0"}), TypeError, ("alpha",)),
    Bad(
        "iwlb", "dim twice", lambda t: (t(3, 2), 1, {"dim": 0}), TypeError, ("2 by position, dim",)
    ),
    Bad("iwlb", "too many", lambda t: (t(3, 2), 1, 0.5, 0), TypeError, ("alpha", "4")),
    Bad("iwlb", "nothing", lambda t: (), TypeError, ("log_w", "0")),
    Bad("iwlb", "an unknown name", lambda t: (t(3), {"k": 1}), TypeError, ("dim", "k")),
    Bad("iwlb", "two names", lambda t: (t(3), {"log_pz": t(3)}), TypeError, ("log_qz", "log_pz")),
    Bad("iwlb", "two terms", lambda t: (t(3, 2), t(3, 2)), TypeError, ("log_pz",)),
    Bad("iwlb", "four terms", lambda t: (t(3), t(3), t(3), t(3)), TypeError, ("log_px", "4")),
    Bad("iwlb", "a term of None", lambda t: (t(3), t(3), None), TypeError, ("log_qz",)),
    Bad("iwlb", "terms' shapes", lambda t: (t(3, 2), t(3, 1), t(3, 2)), ValueError, ("log_pz",)),
    Bad("iwlb", "terms' dtypes", lambda t: (t(3), t(3), t(3, dtype=F64)), TypeError, ("log_qz",)),
    Bad(
        "iwlb",
        "terms' devices",
        lambda t: (t(3), t(3, device="meta"), t(3)),
        ValueError,
        ("log_pz", "device", "meta"),
        fake=False,
    ),
]


def _rsample(t: Make, **change: Any) -> tuple[Any, ...]:
    named = {"log_var": t(4, 3), "num_samples": 5, "key": t(2, dtype=I64)} | change
    loc = named.pop("loc", None)
    return (t(4, 3) if loc is None else loc, {k: v for k, v in named.items() if v is not None})


def bad_rsample(what: str, error: type[Exception], says: tuple[str, ...], **change: Any) -> Bad:
    """A change is a value, or a function of ``t`` that makes one."""

    def arguments(t: Make) -> tuple[Any, ...]:
        made = {k: v(t) if callable(v) else v for k, v in change.items()}
        return _rsample(t, **made)

    return Bad("gaussian_rsample", what, arguments, error, says, fake="device" not in what)


BAD_RSAMPLE = [
    bad_rsample("loc not a tensor", TypeError, ("loc", "float"), loc=1.0),
    bad_rsample("scale not a tensor", TypeError, ("log_var", "float"), log_var=1.0),
    bad_rsample(
        "scalar loc", ValueError, ("loc", "dimension"), loc=lambda t: t(), log_var=lambda t: t()
    ),
    bad_rsample("no scale", ValueError, ("scale", "none"), log_var=None),
    bad_rsample("two scales", ValueError, ("scale, log_var",), scale=lambda t: t(4, 3)),
    bad_rsample("two log-scales", ValueError, ("log_scale, log_var",), log_scale=lambda t: t(4, 3)),
    bad_rsample("shapes", ValueError, ("log_var", "loc"), log_var=lambda t: t(4, 2)),
    bad_rsample("rows", ValueError, ("log_var", "loc"), log_var=lambda t: t(3, 3)),
    bad_rsample("integer loc", TypeError, ("loc", "float"), loc=lambda t: t(4, 3, dtype=I64)),
    bad_rsample("integer scale", TypeError, ("log_var",), log_var=lambda t: t(4, 3, dtype=I64)),
    bad_rsample("dtypes", TypeError, ("log_var", "dtype"), log_var=lambda t: t(4, 3, dtype=F64)),
    bad_rsample(
        "devices", ValueError, ("log_var", "device"), log_var=lambda t: t(4, 3, device="meta")
    ),
    bad_rsample("K = 0", ValueError, ("num_samples", "0"), num_samples=0),
    bad_rsample("K = -1", ValueError, ("num_samples", "-1"), num_samples=-1),
    bad_rsample("K = 2^40", ValueError, ("num_samples", str(2**40)), num_samples=2**40),
    bad_rsample("K a bool", TypeError, ("num_samples", "bool"), num_samples=True),
    bad_rsample("K a float", TypeError, ("num_samples", "float"), num_samples=5.0),
    bad_rsample("K a tensor", TypeError, ("num_samples", "Tensor"), num_samples=torch.tensor(5)),
    bad_rsample("offset negative", ValueError, ("sample_offset", "-1"), sample_offset=-1),
    bad_rsample("offset a float", TypeError, ("sample_offset", "float"), sample_offset=1.5),
    bad_rsample("offset a bool", TypeError, ("sample_offset", "bool"), sample_offset=True),
    bad_rsample("offset too large", ValueError, ("sample_offset",), sample_offset=2**64),
    bad_rsample(
        "rows beyond 2^63",
        ValueError,
        ("sample_offset", str((2**63 - 1) // 4 - 5), "5 samples of 4 data", str(2**61)),
        sample_offset=2**61,
    ),
    bad_rsample("key not a tensor", TypeError, ("key", "int"), key=3),
    bad_rsample("key a generator", TypeError, ("key", "Generator"), key=torch.Generator()),
    bad_rsample("key of floats", TypeError, ("key", "int64"), key=lambda t: t(2)),
    bad_rsample("key too long", ValueError, ("key", "[2]"), key=lambda t: t(3, dtype=I64)),
    bad_rsample("key a scalar", ValueError, ("key", "[2]"), key=lambda t: t(dtype=I64)),
    bad_rsample(
        "key on another device",
        ValueError,
        ("key", "device"),
        key=lambda t: t(2, dtype=I64, device="meta"),
    ),
    bad_rsample("index not a tensor", TypeError, ("sample_index", "list"), sample_index=[[0] * 4]),
    bad_rsample(
        "index of floats", TypeError, ("sample_index", "int64"), sample_index=lambda t: t(5, 4)
    ),
    bad_rsample(
        "index for one datum",
        ValueError,
        ("sample_index", "[5, 4]", "[5, 1]"),
        sample_index=lambda t: t(5, 1, dtype=I64),
    ),
    bad_rsample(
        "index on another device",
        ValueError,
        ("sample_index", "device"),
        sample_index=lambda t: t(5, 4, dtype=I64, device="meta"),
    ),
    bad_rsample("event_dims 2", ValueError, ("event_dims", "0 or 1", "2"), event_dims=2),
    bad_rsample("event_dims a bool", TypeError, ("event_dims", "bool"), event_dims=True),
    bad_rsample("prior a tensor", TypeError, ("prior", "pair"), prior=lambda t: t(2, 3)),
    bad_rsample("prior of one", TypeError, ("prior", "pair"), prior=lambda t: (t(3),)),
    bad_rsample("prior of numbers", TypeError, ("prior", "loc"), prior=lambda t: (0.0, 1.0)),
    bad_rsample("prior half none", TypeError, ("prior", "log_var"), prior=lambda t: (t(3), None)),
    bad_rsample("prior shape", ValueError, ("prior",), prior=lambda t: (t(2), t(3))),
    bad_rsample("prior log_var shape", ValueError, ("prior",), prior=lambda t: (t(3), t(5, 3))),
    bad_rsample(
        "prior would enlarge the batch",
        ValueError,
        ("prior",),
        prior=lambda t: (t(2, 4, 3), t(2, 4, 3)),
    ),
    bad_rsample(
        "prior dtype", TypeError, ("prior", "dtype"), prior=lambda t: (t(3, dtype=F64), t(3))
    ),
    bad_rsample(
        "prior device",
        ValueError,
        ("prior", "device"),
        prior=lambda t: (t(3, device="meta"), t(3)),
    ),
]

BAD_BERNOULLI = [
    Bad("bernoulli_log_prob", what, arguments, error, says, fake="device" not in what)
    for what, arguments, error, says in (
        ("value not a tensor", lambda t: (1.0, t(3)), TypeError, ("value", "float")),
        ("logits not a tensor", lambda t: (t(3), None), TypeError, ("logits", "NoneType")),
        ("shapes", lambda t: (t(4, 3), t(5, 4, 2)), ValueError, ("logits", "broadcast")),
        ("batch", lambda t: (t(3, 3), t(5, 4, 3)), ValueError, ("logits", "broadcast")),
        ("integer value", lambda t: (t(3, dtype=I64), t(3)), TypeError, ("value", "float")),
        ("boolean value", lambda t: (t(3, dtype=torch.bool), t(3)), TypeError, ("value", "float")),
        ("integer logits", lambda t: (t(3), t(3, dtype=I64)), TypeError, ("logits", "float")),
        ("float64 value", lambda t: (t(3, dtype=F64), t(3)), TypeError, ("value", "dtype")),
        ("float64 logits", lambda t: (t(3), t(3, dtype=F64)), TypeError, ("value", "dtype")),
        ("half value", lambda t: (t(3, dtype=HALF), t(3)), TypeError, ("value", "dtype")),
        ("devices", lambda t: (t(3, device="meta"), t(3)), ValueError, ("value", "device")),
        ("event_dims -1", lambda t: (t(3), t(3), {"event_dims": -1}), ValueError, ("event_dims",)),
        (
            "event_dims 2",
            lambda t: (t(3), t(3), {"event_dims": 2}),
            ValueError,
            ("event_dims", "2"),
        ),
        ("event of scalars", lambda t: (t(), t()), ValueError, ("event_dims", "1")),
        (
            "event_dims bool",
            lambda t: (t(3), t(3), {"event_dims": True}),
            TypeError,
            ("event_dims",),
        ),
        (
            "event_dims float",
            lambda t: (t(3), t(3), {"event_dims": 1.0}),
            TypeError,
            ("event_dims",),
        ),
    )
]


def _density(
    t: Make, value: Any = None, loc: Any = None, **named: Any
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    named = named or {"scale": t(3)}
    return (t(4, 3) if value is None else value, t(5, 4, 3) if loc is None else loc, named)


BAD_GAUSSIAN = [
    Bad("gaussian_log_prob", what, arguments, error, says, fake="device" not in what)
    for what, arguments, error, says in (
        ("value not a tensor", lambda t: _density(t, 1.0), TypeError, ("value", "float")),
        ("loc not a tensor", lambda t: _density(t, loc=0.0), TypeError, ("loc", "float")),
        ("scale not a tensor", lambda t: _density(t, scale=1.0), TypeError, ("scale", "float")),
        ("no scale", lambda t: (t(3), t(3)), ValueError, ("scale", "none")),
        (
            "two scales",
            lambda t: _density(t, scale=t(3), log_var=t(3)),
            ValueError,
            ("scale, log_var",),
        ),
        ("value shape", lambda t: _density(t, t(4, 2)), ValueError, ("loc", "broadcast")),
        ("scale shape", lambda t: _density(t, scale=t(2)), ValueError, ("scale",)),
        ("log_var shape", lambda t: _density(t, log_var=t(3, 3)), ValueError, ("log_var",)),
        ("integer value", lambda t: _density(t, t(4, 3, dtype=I64)), TypeError, ("value", "float")),
        ("integer loc", lambda t: _density(t, loc=t(3, dtype=I64)), TypeError, ("loc", "float")),
        ("integer scale", lambda t: _density(t, scale=t(3, dtype=I64)), TypeError, ("scale",)),
        ("value dtype", lambda t: _density(t, t(3, dtype=F64)), TypeError, ("value", "dtype")),
        (
            "scale dtype",
            lambda t: _density(t, scale=t(3, dtype=F64)),
            TypeError,
            ("scale", "dtype"),
        ),
        (
            "value device",
            lambda t: _density(t, t(3, device="meta")),
            ValueError,
            ("value", "device"),
        ),
        (
            "scale device",
            lambda t: _density(t, scale=t(3, device="meta")),
            ValueError,
            ("scale", "device"),
        ),
        (
            "event_dims 4",
            lambda t: _density(t, scale=t(3), event_dims=4),
            ValueError,
            ("event_dims", "4"),
        ),
    )
]

BAD_KL = [
    Bad("gaussian_kl", what, arguments, error, says, fake="device" not in what)
    for what, arguments, error, says in (
        ("loc not a tensor", lambda t: (0.0, t(3)), TypeError, ("loc", "float")),
        ("log_var not a tensor", lambda t: (t(3), 0.0), TypeError, ("log_var", "float")),
        ("scalars", lambda t: (t(), t()), ValueError, ("loc", "dimension")),
        ("shapes", lambda t: (t(4, 3), t(4, 2)), ValueError, ("log_var", "broadcast")),
        ("integer loc", lambda t: (t(3, dtype=I64), t(3)), TypeError, ("loc", "float")),
        ("integer log_var", lambda t: (t(3), t(3, dtype=I64)), TypeError, ("log_var",)),
        ("dtypes", lambda t: (t(3), t(3, dtype=F64)), TypeError, ("log_var", "dtype")),
        ("devices", lambda t: (t(3), t(3, device="meta")), ValueError, ("log_var", "device")),
        ("prior a tensor", lambda t: (t(3), t(3), t(2, 3)), TypeError, ("prior", "pair")),
        ("prior of three", lambda t: (t(3), t(3), (t(3),) * 3), TypeError, ("prior", "pair")),
        ("prior of numbers", lambda t: (t(3), t(3), (0.0, 1.0)), TypeError, ("prior", "loc")),
        ("prior shape", lambda t: (t(3), t(3), (t(2), t(3))), ValueError, ("prior",)),
        ("prior larger", lambda t: (t(3), t(3), (t(4, 3), t(4, 3))), ValueError, ("prior",)),
        (
            "prior dtype",
            lambda t: (t(3), t(3), (t(3), t(3, dtype=F64))),
            TypeError,
            ("prior", "dtype"),
        ),
        (
            "prior device",
            lambda t: (t(3), t(3), (t(3, device="meta"), t(3))),
            ValueError,
            ("prior", "device"),
        ),
    )
]

BAD_LEAVE_ONE_OUT = [
    Bad("leave_one_out", what, arguments, error, says)
    for what, arguments, error, says in (
        ("not a tensor", lambda t: ([1.0, 2.0],), TypeError, ("log_w", "tensor", "list")),
        ("scalar", lambda t: (t(),), ValueError, ("log_w", "dimension")),
        ("K = 0", lambda t: (t(0, 3),), ValueError, ("log_w", "two samples")),
        ("K = 1", lambda t: (t(1, 3),), ValueError, ("log_w", "two samples", "[1, 3]")),
        ("integers", lambda t: (t(3, 2, dtype=I64),), TypeError, ("log_w", "float")),
        ("booleans", lambda t: (t(3, 2, dtype=torch.bool),), TypeError, ("log_w",)),
        ("complex", lambda t: (t(3, 2, dtype=torch.cfloat),), TypeError, ("log_w",)),
    )
]


BAD_KEY = [
    Bad("new_key", what, arguments, error, says)
    for what, arguments, error, says in (
        ("device a number", lambda t: (3.5,), TypeError, ("device", "float")),
        ("device a bool", lambda t: (True,), TypeError, ("device", "bool")),
        ("device a generator", lambda t: (torch.Generator(),), TypeError, ("device", "Generator")),
        ("device unknown", lambda t: ("nonsense",), ValueError, ("device", "'nonsense'")),
        ("generator a number", lambda t: ({"generator": 3},), TypeError, ("generator", "int")),
        (
            "generator on another device",
            lambda t: ("meta", torch.Generator()),
            ValueError,
            ("generator", "meta", "cpu"),
        ),
    )
]

BAD = [
    *BAD_IWLB,
    *BAD_RSAMPLE,
    *BAD_BERNOULLI,
    *BAD_GAUSSIAN,
    *BAD_KL,
    *BAD_LEAVE_ONE_OUT,
    *BAD_KEY,
]
