"""Deep models, guides and SVI on drawn settings: one bound in chunks, in modes, and by steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from fuzz_faces import DOUBLE, assert_equal_up_to_rounding
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal

import fastvi
from fastvi import objectives, ops


# ---- objectives over any latents ----------------------------------------------------------------
@dataclass(frozen=True)
class Deep:
    """A deep network of drawn layers, or a guide, and an objective of it."""

    families: tuple[str, ...]
    objective: str
    num_samples: int
    chunk: int
    batch: int
    mode: str
    seed: int


deep_settings = st.builds(
    Deep,
    st.lists(st.sampled_from(("gaussian", "bernoulli", "categorical")), min_size=1, max_size=3).map(
        tuple
    ),
    st.sampled_from(("ELBO", "IWLB", "VIMCO", "Reinforce", "wake-sleep")),
    st.sampled_from((2, 3, 7)),
    st.integers(1, 8),
    st.sampled_from((1, 3)),
    st.sampled_from(("no_grad", "inference", "deterministic", "functional_call")),
    st.integers(0, 1000),
)


def _options(case: Any, chunk: int | None) -> dict[str, Any]:
    """What makes a bound the same in chunks, which do without divergences in closed form."""
    named: dict[str, Any] = {"chunk_size": chunk and min(chunk, case.num_samples)}
    if case.objective == "Reinforce":
        named["baseline"] = "leave_one_out"
    if case.objective == "wake-sleep":
        named["estimator"] = "rws"
    return named | ({"kl": "monte_carlo"} if case.objective in ("ELBO", "Reinforce") else {})


def _objective(case: Any) -> Any:
    return (
        objectives.IWLB if case.objective == "wake-sleep" else getattr(objectives, case.objective)
    )


def _network(case: Deep) -> fastvi.HierarchicalVAE:
    torch.manual_seed(case.seed)
    sizes = [3, 2, 4][: len(case.families)]
    layers, below = [], 5
    for n, (family, size) in enumerate(zip(case.families, sizes, strict=False)):
        out = 2 * size if family == "gaussian" else size
        top = n == len(sizes) - 1
        model = None if top else nn.Linear(sizes[n + 1], out)
        layers.append(
            fastvi.StochasticLayer(family, size, guide=nn.Linear(below, out), model=model)
        )
        below = size
    return fastvi.HierarchicalVAE(layers, decoder=nn.Linear(sizes[0], 5)).to(DOUBLE)


def check_deep(case: Deep) -> None:
    """Chunks, modes and a second call of the same key give one bound and one gradient."""
    discrete = any(family != "gaussian" for family in case.families)
    network = _network(case)
    x = torch.rand(case.batch, 5, dtype=DOUBLE).round()
    key = torch.tensor([case.seed, 3])
    build = _objective(case)

    def run(chunk: int | None) -> list[Tensor]:
        loss = network.loss(x, build(case.num_samples, **_options(case, chunk)), key=key)
        leaves = list(network.parameters())
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        return [
            loss.detach(),
            *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, leaves, strict=False)),
        ]

    try:
        expected = run(None)
    except (ValueError, TypeError) as error:
        # Discrete latents have no path, and a wake phase has no other gradient.
        assert "expected" in str(error) and (discrete or case.objective == "VIMCO"), error
        return
    terms = case.num_samples * case.batch * 8
    assert all(torch.equal(a, b) for a, b in zip(run(None), expected, strict=False))
    assert_equal_up_to_rounding(run(case.chunk), expected, terms, f"chunks of {case.chunk}")
    objective = build(case.num_samples, **_options(case, case.chunk))
    if case.mode in ("no_grad", "inference"):
        with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
            values = [network.loss(x, objective, key=key).clone()]
            evidence = network.log_evidence(x, case.num_samples, key=key).clone()
            parts = network.log_evidence(
                x, case.num_samples, chunk_size=min(case.chunk, case.num_samples), key=key
            ).clone()
            log_w = network.log_weights(x, case.num_samples, key=key).clone()
        assert_equal_up_to_rounding(values, expected[:1], terms, case.mode)
        assert_equal_up_to_rounding([parts], [evidence], terms, "the evidence in chunks")
        by_hand = torch.logsumexp(log_w, 0) - math.log(case.num_samples)
        assert_equal_up_to_rounding([evidence], [by_hand], terms, "the evidence by hand")
    elif case.mode == "functional_call":
        parameters = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
        plain = build(case.num_samples, **_options(case, None))
        loss = torch.func.functional_call(network, parameters, (x, plain), {"key": key})
        assert_equal_up_to_rounding([loss.detach()], expected[:1], terms, case.mode)


# ---- SVI and guides -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Fit:
    guide: str
    objective: str
    num_samples: int
    chunk: int
    rows: int
    steps: int
    seed: int


fits = st.builds(
    Fit,
    st.sampled_from(("MeanFieldGaussian", "LowRankGaussian", "BernoulliGuide", "CategoricalGuide")),
    st.sampled_from(("ELBO", "IWLB", "VIMCO", "Reinforce", "wake-sleep")),
    st.sampled_from((2, 5)),
    st.integers(1, 6),
    st.sampled_from((1, 4)),
    st.integers(1, 3),
    st.integers(0, 1000),
)


def check_fit(case: Fit) -> None:
    """A few steps, twice: in chunks as whole, evaluation moves nothing, and all stays finite."""
    torch.manual_seed(case.seed)
    x = torch.rand(case.rows, 3, dtype=DOUBLE).round()

    def parameters(chunk: int | None) -> list[Tensor] | None:
        torch.manual_seed(case.seed + 1)
        if case.guide in ("MeanFieldGaussian", "LowRankGaussian"):
            # Some of the sites are constrained.
            named = {"rank": 1} if case.guide == "LowRankGaussian" else {}
            guide = getattr(fastvi.guides, case.guide)(
                {"z": (2,), "scale": ()},
                {"scale": torch.distributions.constraints.positive},
                **named,
            )
        else:
            size = {"BernoulliGuide": 2}.get(case.guide, 3)
            guide = getattr(fastvi.guides, case.guide)(nn.Linear(3, size))
        guide = guide.to(DOUBLE)
        network = nn.Linear(2 if case.guide != "CategoricalGuide" else 3, 3).to(DOUBLE)

        def model(z: Any, x: Tensor) -> Any:
            value = z["z"] if isinstance(z, dict) else z
            if value.shape[-1:] != (network.in_features,):
                value = nn.functional.one_hot(value.long(), network.in_features).to(DOUBLE)
            if isinstance(z, dict):
                prior = Normal(torch.zeros(2, dtype=DOUBLE), 1.0).log_prob(value).sum(-1)
                rate = z["scale"]
                prior = prior - rate
                logits = network(value) * rate[..., None]
                return prior + ops.bernoulli_log_prob(x, logits[..., None, :]).sum(-1)
            return ops.bernoulli_log_prob(x, network(value))

        objective = _objective(case)(case.num_samples, **_options(case, chunk))
        fitted = [*guide.parameters(), *network.parameters()]
        try:
            svi = fastvi.SVI(model, guide, torch.optim.SGD(fitted, lr=0.05), objective)
            for _ in range(case.steps):
                assert svi.step(x).isfinite().all()
        except (ValueError, TypeError) as error:
            assert "expected" in str(error), error
            return None
        before = [p.detach().clone() for p in fitted]
        assert svi.evaluate(x).isfinite().all()
        assert all(torch.equal(a, b) for a, b in zip(before, fitted, strict=False))
        return before

    whole = parameters(None)
    chunks = parameters(case.chunk)
    if whole is not None and chunks is not None:
        terms = case.num_samples * case.rows * case.steps * 8
        assert_equal_up_to_rounding(chunks, whole, terms, f"chunks of {case.chunk}")
