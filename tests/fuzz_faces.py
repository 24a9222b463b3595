"""Losses, objectives, models and guides on drawn settings: one bound in every way of asking for it.

A setting has networks in float64. Two ways of asking differ by roundings alone, so what they differ
by is counted in units in the last place of the largest number that goes into the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fuzz_rounding import assert_equal_up_to_rounding
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal

import fastvi
from fastvi import objectives, ops

DOUBLE = torch.float64
ESTIMATORS = ("iwae", "stl", "dreg", "rws", "rws_dreg")
MODES = ("no_grad", "inference", "deterministic", "func_grad", "vmap", "functional_call")


# ---- losses -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Setting:
    """A Gaussian posterior, a decoder, and a loss that is taken of them."""

    loss: str
    estimator: str
    alpha: float
    num_samples: int
    chunk: int | str
    batch: tuple[int, ...]
    latent: int
    prior: bool
    spread: float
    reduction: str
    likelihood: str
    mode: str
    seed: int

    @property
    def chunk_size(self) -> int | str:
        return self.chunk if isinstance(self.chunk, str) else min(self.chunk, self.num_samples)


settings = st.builds(
    Setting,
    st.sampled_from(("iwlb", "elbo", "elbo analytic", "miwae", "piwae", "ciwae", "jackknife")),
    st.sampled_from(ESTIMATORS),
    st.sampled_from((0.0, 0.5, 1.0, 2.0)),
    st.sampled_from((1, 2, 3, 7, 12)),
    st.one_of(st.integers(1, 13), st.just("auto")),
    st.sampled_from(((1,), (3,), (2, 2), (5,))),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from((0.0, -2.0, 1.0, -30.0, 4.0)),
    st.sampled_from(("mean", "sum", "none")),
    st.sampled_from(("bernoulli", "gaussian", "poisson")),
    st.sampled_from(MODES),
    st.integers(0, 1000),
)
_FEATURES = 4


class Model:
    """The numbers of a setting."""

    def __init__(self, case: Setting) -> None:
        torch.manual_seed(case.seed)
        self.case = case
        shape = (*case.batch, case.latent)
        self.loc = torch.randn(shape, dtype=DOUBLE).requires_grad_()
        self.log_var = (0.3 * torch.randn(shape, dtype=DOUBLE) + case.spread).requires_grad_()
        self.decoder = nn.Sequential(
            nn.Linear(case.latent, 5), nn.Tanh(), nn.Linear(5, _FEATURES)
        ).to(DOUBLE)
        self.x = torch.rand(*case.batch, _FEATURES, dtype=DOUBLE).round()
        self.prior = None
        if case.prior:
            self.prior = tuple(
                (0.3 * torch.randn(case.latent, dtype=DOUBLE)).requires_grad_() for _ in "ab"
            )
        self.key = torch.tensor([case.seed, 7])

    @property
    def leaves(self) -> list[Tensor]:
        return [self.loc, self.log_var, *self.decoder.parameters(), *(self.prior or ())]

    def log_px(self, z: Tensor, decoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        out = (decoder or self.decoder)(z)
        if self.case.likelihood == "bernoulli":
            return ops.bernoulli_log_prob(self.x, out)
        if self.case.likelihood == "poisson":
            return ops.poisson_log_prob(self.x, log_rate=out)
        return ops.gaussian_log_prob(self.x, out, log_scale=torch.zeros((), dtype=DOUBLE))

    def criterion(self, chunk: int | str | None) -> Callable[..., Tensor] | None:
        """None where the loss is not one of so many samples, or of that estimator."""
        case, k = self.case, self.case.num_samples
        named: dict[str, Any] = {"chunk_size": chunk, "reduction": case.reduction}
        try:
            if case.loss == "iwlb":
                return fastvi.IWLBLoss(k, case.estimator, alpha=case.alpha, **named)
            if case.loss == "elbo":
                estimator = "stl" if case.estimator == "stl" else "total"
                return fastvi.ELBOLoss(k, "monte_carlo", 0.7, estimator=estimator, **named)
            if case.loss == "elbo analytic":
                return fastvi.ELBOLoss(k, "analytic", case.alpha, **named)
            if case.loss in ("miwae", "piwae"):
                groups = 3 if k % 3 == 0 else 1
                cls = fastvi.MIWAELoss if case.loss == "miwae" else fastvi.PIWAELoss
                return cls(k, groups, **named)
            if case.loss == "ciwae":
                return fastvi.CIWAELoss(k, beta=0.3, **named)
            return fastvi.JackknifeLoss(k, case.estimator, **named)
        except ValueError as error:
            assert "expected" in str(error)
            return None

    def value(self, criterion: Any, loc: Tensor, log_var: Tensor, log_px: Any = None) -> Tensor:
        return criterion(loc, log_var, log_px or self.log_px, key=self.key, prior=self.prior)

    def run(self, criterion: Any) -> list[Tensor]:
        loss = self.value(criterion, self.loc, self.log_var)
        grads = torch.autograd.grad(loss.sum(), self.leaves, allow_unused=True)
        zeros = (torch.zeros_like(leaf) for leaf in self.leaves)
        return [loss.detach(), *(z if g is None else g for g, z in zip(grads, zeros, strict=False))]


def check_loss(case: Setting) -> None:
    """In chunks as whole, in every mode as eager, and by hand from the same noise."""
    model = Model(case)
    whole = model.criterion(None)
    if whole is None:
        return
    expected = model.run(whole)
    if not all(part.isfinite().all() for part in expected):
        # A rate of e^89: overflow in the decoder is no fault of the loss.
        assert case.likelihood == "poisson", expected
        return
    terms = case.num_samples * math.prod(case.batch)
    again = model.run(whole)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=False)), (
        "the same key, other bits"
    )
    assert_equal_up_to_rounding(
        model.run(model.criterion(case.chunk_size)), expected, terms, f"chunks of {case.chunk_size}"
    )
    _check_mode(case, model, whole, expected, terms)
    _check_by_hand(case, model, expected, terms)


def _check_mode(
    case: Setting, model: Model, whole: Any, expected: list[Tensor], terms: int
) -> None:
    value = expected[0]
    if case.mode in ("no_grad", "inference"):
        for criterion in (whole, model.criterion(case.chunk_size)):
            with torch.no_grad() if case.mode == "no_grad" else torch.inference_mode():
                got = model.value(criterion, model.loc, model.log_var).clone()
            assert_equal_up_to_rounding([got], [value], terms, case.mode)
    elif case.mode == "deterministic":
        torch.use_deterministic_algorithms(True)
        try:
            assert_equal_up_to_rounding(model.run(whole), expected, terms, case.mode)
        finally:
            torch.use_deterministic_algorithms(False)
    elif case.mode == "functional_call":
        parameters = {
            n: p.detach().clone().requires_grad_() for n, p in model.decoder.named_parameters()
        }

        def log_px(z: Tensor) -> Tensor:
            return model.log_px(
                z, lambda z: torch.func.functional_call(model.decoder, parameters, (z,))
            )

        for criterion in (whole, model.criterion(case.chunk_size)):
            loss = model.value(criterion, model.loc, model.log_var, log_px)
            grads = torch.autograd.grad(loss.sum(), list(parameters.values()))
            assert_equal_up_to_rounding(grads, expected[3:7], terms, case.mode)
    elif case.estimator in ("iwae", "stl", "dreg") or case.loss != "iwlb":
        # The estimators of the wake phase are refused under transforms, as documented.
        def function(loc: Tensor, log_var: Tensor) -> Tensor:
            return model.value(whole, loc, log_var)

        try:
            if case.mode == "vmap":
                same = (
                    torch.stack([model.loc.detach()] * 2),
                    torch.stack([model.log_var.detach()] * 2),
                )
                got = [torch.func.vmap(function)(*same)[1]]
                parts = [value]
            else:
                got = torch.func.grad(lambda a, b: function(a, b).sum(), argnums=(0, 1))(
                    model.loc.detach(), model.log_var.detach()
                )
                parts = expected[1:3]
        except (ValueError, RuntimeError, NotImplementedError) as error:
            said = ("expected", "do not work under torch.func transforms")
            assert any(words in str(error) for words in said), error
            return
        # The twin's noise is made by torch's own functions.
        assert_equal_up_to_rounding(got, parts, terms, case.mode)


def _check_by_hand(case: Setting, model: Model, expected: list[Tensor], terms: int) -> None:
    """Plain torch.distributions on the noise of the key, and the estimators as in their papers."""
    k = case.num_samples
    zero = torch.zeros_like(model.loc.detach())
    eps = ops.gaussian_rsample(zero, scale=zero + 1, num_samples=k, key=model.key)[0]
    scale = torch.exp(0.5 * model.log_var)
    z = model.loc + scale * eps
    path = case.estimator in ("stl", "dreg") and case.loss == "iwlb"
    path = path or (case.loss == "elbo" and case.estimator == "stl")
    held = (lambda x: x.detach()) if path else (lambda x: x)
    log_q = Normal(held(model.loc), held(scale), validate_args=False).log_prob(z).sum(-1)
    prior = model.prior or (torch.zeros((), dtype=DOUBLE), torch.zeros((), dtype=DOUBLE))
    law = Normal(prior[0], torch.exp(0.5 * prior[1]))

    def log_p(z: Tensor) -> Tensor:
        return law.log_prob(z).sum(-1)

    log_w = model.log_px(z) + log_p(z) - log_q
    c = 1 - case.alpha
    if case.loss == "iwlb":
        bound = log_w.mean(0) if c == 0 else (torch.logsumexp(c * log_w, 0) - math.log(k)) / c
    elif case.loss == "elbo":
        bound = (model.log_px(z) + 0.7 * (log_p(z) - log_q)).mean(0)
    elif case.loss == "elbo analytic":
        closed = torch.distributions.kl_divergence(Normal(model.loc, scale), law).sum(-1)
        bound = model.log_px(z).mean(0) - case.alpha * closed
    else:
        return
    of = {"mean": lambda x: x.mean(), "sum": lambda x: x.sum(), "none": lambda x: x}
    loss = -of[case.reduction](bound)
    # (z - loc) / sigma of a narrow posterior loses what is rounded in z.
    narrow = math.ceil(1 + math.exp(-case.spread / 2))
    assert_equal_up_to_rounding([loss.detach()], expected[:1], terms * narrow, "by hand")
    if case.loss == "iwlb" and case.estimator in ("rws", "rws_dreg"):
        return
    grads = list(
        torch.autograd.grad(loss.sum(), model.leaves, retain_graph=True, allow_unused=True)
    )
    if case.loss == "iwlb" and case.estimator == "dreg":
        # The path of each sample gets alpha w + (1 - alpha) w^2 in the place of w.
        w = torch.softmax(c * log_w.detach(), 0)
        weights = case.alpha * w + c * w * w
        outer = torch.autograd.grad(loss.sum(), bound)[0] if case.reduction != "none" else -1.0
        surrogate = (outer * (weights * log_w).sum(0)).sum()
        grads[:2] = torch.autograd.grad(surrogate, [model.loc, model.log_var])
    grads = [
        torch.zeros_like(x) if g is None else g for g, x in zip(grads, model.leaves, strict=False)
    ]
    # And its derivative is that over sigma once more.
    assert_equal_up_to_rounding(grads, expected[1:], terms * narrow * narrow, "gradient by hand")


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
    st.sampled_from(("ELBO", "IWLB", "VIMCO", "Reinforce", "ReweightedWakeSleep")),
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
    return named | ({"kl": "sampled"} if case.objective in ("ELBO", "Reinforce") else {})


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
    build = getattr(objectives, case.objective)

    def run(chunk: int | None) -> list[Tensor]:
        loss = network.loss(x, build(case.num_samples, **_options(case, chunk)), key)
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
            values = [network.loss(x, objective, key).clone()]
            evidence = network.log_evidence(x, case.num_samples, key=key).clone()
            parts = network.log_evidence(
                x, case.num_samples, min(case.chunk, case.num_samples), key=key
            ).clone()
            log_w = network.log_weights(x, case.num_samples, key=key).clone()
        assert_equal_up_to_rounding(values, expected[:1], terms, case.mode)
        assert_equal_up_to_rounding([parts], [evidence], terms, "the evidence in chunks")
        by_hand = torch.logsumexp(log_w, 0) - math.log(case.num_samples)
        assert_equal_up_to_rounding([evidence], [by_hand], terms, "the evidence by hand")
    elif case.mode == "functional_call":
        parameters = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
        plain = build(case.num_samples, **_options(case, None))
        loss = torch.func.functional_call(network, parameters, (x, plain, key))
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
    st.sampled_from(("ELBO", "IWLB", "VIMCO", "Reinforce", "ReweightedWakeSleep")),
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

        objective = getattr(objectives, case.objective)(case.num_samples, **_options(case, chunk))
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
