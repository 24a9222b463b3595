"""The shapes that are measured, most wanted first, and the targets they are held to."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.ops import WORKS, pyro_vae
from benchmarks.ops.few_step import (
    CHECKPOINTED,
    FASTVI_ALL,
    FEW_STEP,
    FEW_STEP_CHUNKS,
    FORWARD_ALONE,
)
from benchmarks.ops.iwae_step import IWAE_STEP, NETWORKS
from benchmarks.ops.jax_step import JAX
from benchmarks.ops.sbn_step import SBN_STEP
from benchmarks.work import FORWARD, FORWARD_BACKWARD, MODES, Case

Sizes = Mapping[str, int]
Targets = Mapping[str, float]

# The shape that stands for the op, and what is asked of it on a CPU: the other provider's time
# over ours, at least, by mode.
HEADLINE: dict[str, tuple[Sizes, dict[str, Targets]]] = {
    "gaussian_rsample": (
        {"K": 1000, "B": 64, "D": 50},
        {
            FORWARD: {"eager": 10.0, "compile": 3.5},
            FORWARD_BACKWARD: {"eager": 6.0, "compile": 2.5},
        },
    ),
    "bernoulli_log_prob": (
        {"K": 50, "B": 64, "F": 784},
        {
            FORWARD: {"eager": 4.0, "compile": 2.5},
            FORWARD_BACKWARD: {"eager": 3.0, "compile": 1.7},
        },
    ),
    "iwlb": (
        {"K": 50_000, "B": 64},
        {
            FORWARD: {"eager": 4.0, "compile": 3.0},
            FORWARD_BACKWARD: {"eager": 3.0, "compile": 2.2},
        },
    ),
    "gaussian_log_prob": ({"K": 50, "B": 64, "F": 784}, {}),
    "gaussian_kl": ({"B": 4096, "D": 50}, {}),
    "leave_one_out": ({"K": 512, "B": 64}, {}),
    "linear_bernoulli_log_prob": (
        {"K": 1000, "B": 20, "H": 200, "F": 784},
        {FORWARD_BACKWARD: {"eager": 1.5}},
    ),
    "negative_binomial_log_prob": (
        {"K": 50, "B": 64, "F": 2000},
        {FORWARD_BACKWARD: {"eager": 4.0}},
    ),
    "laplace_rsample": ({"K": 50, "B": 64, "D": 784}, {}),
    "bernoulli_sample": ({"K": 50, "B": 64, "D": 784}, {}),
    "categorical_sample": ({"K": 500, "B": 300, "C": 3}, {}),
    "normal_distribution": ({"B": 1000, "F": 50}, {FORWARD: {"eager": 1.5}}),
    "normal_distribution_checked": ({"B": 1000, "F": 50}, {FORWARD: {"eager": 3.0}}),
}
STEPS: tuple[Sizes, ...] = ({"K": 50, "B": 20}, {"K": 500, "B": 20})
STEP_TARGETS: Targets = {"eager": 1.6, "compile": 1.0, NETWORKS: 1 / 1.15, JAX: 1.5}
STEP_NAMES = (
    IWAE_STEP.name,
    FEW_STEP.name,
    FEW_STEP_CHUNKS.name,
    SBN_STEP.name,
    *pyro_vae.NAMES,
)
# M of the K samples backward, and in chunks of C.
FEW_STEPS: tuple[tuple[str, Sizes, Targets], ...] = (
    (
        FEW_STEP.name,
        {"K": 500, "B": 20, "M": 50},
        {FASTVI_ALL: 1.9, "eager": 3.4, "compile": 2.1, NETWORKS: 1 / 0.55, JAX: 3.5},
    ),
    (
        FEW_STEP_CHUNKS.name,
        {"K": 5000, "B": 20, "M": 50, "C": 500},
        {FASTVI_ALL: 2.6, FORWARD_ALONE: 1 / 1.15},
    ),
    (
        FEW_STEP_CHUNKS.name,
        {"K": 10_000, "B": 8, "M": 50, "C": 500},
        {FASTVI_ALL: 2.6, CHECKPOINTED: 4.0},
    ),
)
SBN_SIZES: Sizes = {"K": 50, "B": 20}
SBN_TARGETS: Targets = {"eager": 1.8}

# The same step as a Pyro program.
PYRO_STEPS: tuple[tuple[str, Sizes, Targets], ...] = (
    (pyro_vae.IWLB, {"K": 50, "B": 20}, {"eager": 1.7}),
    (pyro_vae.IWLB, {"K": 500, "B": 20}, {"eager": 1.7}),
    (pyro_vae.ELBO, {"K": 50, "B": 20}, {"eager": 1.2}),
    (pyro_vae.PROBS, {"K": 50, "B": 20}, {"eager": 1.7}),
    (pyro_vae.PROBS, {"K": 500, "B": 20}, {"eager": 1.7}),
)

# What a call costs when there is next to nothing to do.
SMALL: dict[str, Sizes] = {
    "gaussian_rsample": {"K": 5, "B": 16, "D": 8},
    "bernoulli_log_prob": {"K": 5, "B": 16, "F": 8},
    "iwlb": {"K": 5, "B": 16},
    "gaussian_log_prob": {"K": 5, "B": 16, "F": 8},
    "gaussian_kl": {"B": 16, "D": 8},
    "leave_one_out": {"K": 5, "B": 16},
    "linear_bernoulli_log_prob": {"K": 5, "B": 16, "H": 8, "F": 8},
    "negative_binomial_log_prob": {"K": 5, "B": 16, "F": 8},
    "laplace_rsample": {"K": 5, "B": 16, "D": 8},
    "bernoulli_sample": {"K": 5, "B": 16, "D": 8},
    "categorical_sample": {"K": 5, "B": 16, "C": 8},
    "normal_distribution": {"B": 16, "F": 8},
    "normal_distribution_checked": {"B": 16, "F": 8},
}
SMALL_TARGETS: Targets = {"eager": 2.0}

# Other shapes that people have: one wide vector, very many narrow ones, few samples.
MORE: dict[str, tuple[Sizes, ...]] = {
    "gaussian_rsample": ({"K": 4, "B": 1, "D": 1_000_000}, {"K": 50, "B": 4096, "D": 2}),
    "iwlb": ({"K": 50, "B": 4096}, {"K": 1_000_000, "B": 1}),
    "gaussian_kl": ({"B": 1, "D": 1_000_000},),
    "categorical_sample": ({"K": 50, "B": 20, "C": 10}, {"K": 50, "B": 64, "C": 1000}),
    "negative_binomial_log_prob": ({"K": 500, "B": 64, "F": 2000},),
    # Where the [K, K] form of eager still fits: it holds several tensors of 4 GB.
    "leave_one_out": ({"K": 4096, "B": 64},),
}
MORE_TARGETS: dict[str, dict[str, Targets]] = {
    "negative_binomial_log_prob": {FORWARD_BACKWARD: {"eager": 4.0}},
}

# On a card: several times its cache, so that the time is that of memory.
LARGE: dict[str, Sizes] = {
    "gaussian_rsample": {"K": 4000, "B": 512, "D": 50},
    "bernoulli_log_prob": {"K": 500, "B": 256, "F": 784},
    "iwlb": {"K": 1_000_000, "B": 128},
    "gaussian_log_prob": {"K": 500, "B": 256, "F": 784},
    "gaussian_kl": {"B": 1_000_000, "D": 100},
    "negative_binomial_log_prob": {"K": 500, "B": 64, "F": 2000},
}
CUDA_TARGETS: Targets = {"eager": 5.0, "compile": 1.2}
# The least share of the card's copy bandwidth.
SHARE_TARGETS = {"bernoulli_log_prob": 0.85, "gaussian_log_prob": 0.85}

# Most of its time is torch's own matrix products: the targets of the others are out of reach.
PRODUCTS = ("linear_bernoulli_log_prob",)
# On a card they wait for the launch of a kernel and, with checks, for its answer.
CLASSES = ("normal_distribution", "normal_distribution_checked")


def cases(
    device: str = "cpu",
    *,
    quick: bool = False,
    only: Sequence[str] = (),
    dtypes: Sequence[str] = (),
) -> list[Case]:
    """The cases of a run, those with targets first, so that a run cut short has them.

    Unless told which, every shape is run in float32 and the headline shapes in bfloat16 too.
    """
    unknown = sorted(set(only) - set(WORKS))
    if unknown:
        raise ValueError(f"benchmarks: expected --only to be of {list(WORKS)}, got {unknown}")
    chosen = [case for case in _all(device, quick) if not only or case.op in only]
    if not dtypes:
        halves = [replace(case, dtype="bfloat16", targets={}) for case in chosen if _headline(case)]
        # The [K, K] form takes minutes at the largest of these.
        more = [case for case in chosen if case.sizes in MORE.get(case.op, ()) and not case.targets]
        rest = [case for case in chosen if case not in more]
        return chosen if quick else rest + halves + more
    return [
        case if dtype == case.dtype else replace(case, dtype=dtype, targets={})
        for dtype in dtypes
        for case in chosen
        if dtype == "float32" or case.op not in STEP_NAMES
    ]


def _all(device: str, quick: bool) -> Iterator[Case]:
    def in_modes(op: str, sizes: Sizes, targets: Mapping[str, Targets]) -> Iterator[Case]:
        for mode in MODES:
            yield Case(op, sizes, mode, device=device, targets=targets.get(mode, {}))

    cuda = device != "cpu"
    for op, (sizes, targets) in HEADLINE.items():
        if cuda:
            targets = {} if op in PRODUCTS + CLASSES else dict.fromkeys(MODES, CUDA_TARGETS)
        yield from in_modes(op, sizes, targets)
    if cuda:
        for op, sizes in LARGE.items():
            yield from in_modes(op, sizes, dict.fromkeys(MODES, CUDA_TARGETS))
    for sizes in STEPS:
        wanted = {} if cuda else STEP_TARGETS
        yield Case(IWAE_STEP.name, sizes, FORWARD_BACKWARD, device=device, targets=wanted)
    for op, sizes, wanted in FEW_STEPS:
        targets = {} if cuda else wanted
        yield Case(op, sizes, FORWARD_BACKWARD, device=device, targets=targets)
    wanted = {} if cuda else SBN_TARGETS
    yield Case(SBN_STEP.name, SBN_SIZES, FORWARD_BACKWARD, device=device, targets=wanted)
    for op, sizes, wanted in PYRO_STEPS if _has_pyro() and not cuda else ():
        yield Case(op, sizes, FORWARD_BACKWARD, device=device, targets=wanted)
    for op, sizes in SMALL.items():
        wanted = {} if cuda or op in PRODUCTS else SMALL_TARGETS
        yield from in_modes(op, sizes, dict.fromkeys(MODES, wanted))
    if not quick:
        for op, more in MORE.items():
            for sizes in more:
                yield from in_modes(op, sizes, {} if cuda else MORE_TARGETS.get(op, {}))


def _has_pyro() -> bool:
    return importlib.util.find_spec("pyro") is not None


def _headline(case: Case) -> bool:
    return case.op in HEADLINE and case.sizes == HEADLINE[case.op][0]
