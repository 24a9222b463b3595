"""Losses on drawn settings: one bound in every way of asking for it.

A setting has networks in float64. Two ways of asking differ by roundings alone, so what they differ
by is counted in units in the last place of the largest number that goes into the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal

import fastvi
from fastvi import ops

DOUBLE = torch.float64
# The layers of a decoder, forward and backward, a density, a bound over K and the mean over data:
# so many roundings of numbers as large as the largest, for each number that is added up.
ROUNDINGS = 512
ESTIMATORS = ("iwae", "stl", "dreg", "rws", "rws_dreg")
MODES = ("no_grad", "inference", "deterministic", "func_grad", "vmap", "functional_call")


def assert_equal_up_to_rounding(
    got: Sequence[Tensor], expected: Sequence[Tensor], terms: int, what: str
) -> None:
    assert len(got) == len(expected), what
    largest = max((x.abs().amax().item() for x in expected if x.numel()), default=0.0)
    assert math.isfinite(largest), f"{what}: {expected}"
    for number, (a, b) in enumerate(zip(got, expected, strict=False)):
        assert a.shape == b.shape, f"{what}, part {number}: shape {a.shape}, expected {b.shape}"
        allowed = ROUNDINGS * terms * 2.0**-52 * (1 + largest)
        gap = (a.double() - b.double()).abs()
        assert (gap <= allowed).all(), f"{what}, part {number}: {gap.max()} off, may be {allowed}"


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
                estimator = "stl" if case.estimator == "stl" else "iwae"
                return fastvi.ELBOLoss(k, "monte_carlo", beta=0.7, estimator=estimator, **named)
            if case.loss == "elbo analytic":
                return fastvi.ELBOLoss(k, "analytic", beta=case.alpha, **named)
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
