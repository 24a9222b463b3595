"""What a bound and its gradient are, in plain PyTorch in float64: formulas of explicit log-weights.

Nothing here knows how fastvi draws, weighs, cuts or differentiates. The noise is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BATCH, FEATURES, LATENT = 3, 4, 2
SAMPLES, GROUPS = 8, 2  # all K samples, of which MIWAE and PIWAE make groups
ALPHA, BETA = 0.4, 0.3

Parameters = dict[str, Tensor]


def parameters(kind: str) -> Parameters:
    """Leaves: of the guide, of the model, captured by its likelihood, and of the prior."""
    generator = torch.Generator().manual_seed(5)

    def leaf(*shape: int, scale: float = 0.6) -> Tensor:
        values = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    width = 2 * LATENT if kind == "gaussian" else LATENT
    found = {
        "guide": leaf(FEATURES, width),
        "decoder": leaf(LATENT, FEATURES, scale=1.0),
        "captured": leaf(FEATURES),
    }
    names = ("prior loc", "prior log_var") if kind == "gaussian" else ("prior logits",)
    return found | {name: leaf(LATENT) for name in names}


def data() -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)


def normal(x: Tensor, loc: Tensor, log_var: Tensor) -> Tensor:
    each = -0.5 * ((x - loc).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi))
    return each.sum(-1)


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return (x * logits - torch.nn.functional.softplus(logits)).sum(-1)


@dataclass(frozen=True)
class Pair:
    """A model and a guide: Gaussian latents, given by their noise, or bits, given as they are."""

    kind: str
    noise: Tensor  # [K, B, D]

    def samples(self, p: Parameters, x: Tensor) -> Tensor:
        if self.kind != "gaussian":
            return self.noise
        loc, log_var = (x @ p["guide"]).chunk(2, -1)
        return loc + torch.exp(0.5 * log_var) * self.noise

    def log_q(self, p: Parameters, x: Tensor, z: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return normal(z, *(x @ p["guide"]).chunk(2, -1))
        return bernoulli(z, x @ p["guide"])

    def log_joint(self, p: Parameters, x: Tensor, z: Tensor) -> Tensor:
        log_px = normal(x, z @ p["decoder"] + p["captured"], torch.zeros(()).double())
        if self.kind == "gaussian":
            return log_px + normal(z, p["prior loc"], p["prior log_var"])
        return log_px + bernoulli(z, p["prior logits"])


# ---- bounds, from log-weights [K, B] ------------------------------------------------------------
Formula = Callable[[Tensor], Tensor]


def elbo(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


def iwlb(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def renyi(log_w: Tensor) -> Tensor:
    return iwlb((1.0 - ALPHA) * log_w) / (1.0 - ALPHA)


def miwae(log_w: Tensor) -> Tensor:
    return torch.stack([iwlb(group) for group in log_w.chunk(GROUPS)]).mean(0)


def ciwae(log_w: Tensor) -> Tensor:
    return BETA * elbo(log_w) + (1.0 - BETA) * iwlb(log_w)


def jackknife(log_w: Tensor) -> Tensor:
    count = len(log_w)
    without = [iwlb(torch.cat([log_w[:k], log_w[k + 1 :]])) for k in range(count)]
    return count * iwlb(log_w) - (count - 1) / count * torch.stack(without).sum(0)


def thermodynamic(log_w: Tensor) -> Tensor:
    temperatures = [j / 5 for j in range(5)]
    return sum((torch.softmax(t * log_w, 0) * log_w).sum(0) for t in temperatures) / 5


@dataclass(frozen=True)
class Bound:
    """What is reported and given to the model, and what the guide ascends."""

    model: Formula
    guide: Formula

    @classmethod
    def of(cls, formula: Formula) -> Bound:
        return cls(formula, formula)


BOUNDS = {
    "ELBO": Bound.of(elbo),
    "IWLB": Bound.of(iwlb),
    "Renyi": Bound.of(renyi),
    "MIWAE": Bound.of(miwae),
    "PIWAE": Bound(iwlb, miwae),
    "CIWAE": Bound.of(ciwae),
    "Jackknife": Bound.of(jackknife),
    "VIMCO": Bound.of(iwlb),
    "Reinforce": Bound.of(elbo),
    "wake-sleep": Bound.of(iwlb),
    "thermodynamic": Bound.of(thermodynamic),
}


# ---- weights ------------------------------------------------------------------------------------
def slopes(formula: Formula, log_w: Tensor) -> Tensor:
    """The derivative of the bound of each datum by its own log-weights, [K, B]."""
    log_w = log_w.detach().requires_grad_()
    return torch.autograd.grad(formula(log_w).sum(), log_w)[0]


def curvatures(formula: Formula, log_w: Tensor) -> Tensor:
    """The second derivative by each log-weight, [K, B]."""
    rows = []
    for k in range(len(log_w)):
        leaf = log_w.detach().requires_grad_()
        (first,) = torch.autograd.grad(formula(leaf).sum(), leaf, create_graph=True)
        second = (0.0,)
        if first.requires_grad:
            second = torch.autograd.grad(first[k].sum(), leaf, allow_unused=True)
        rows.append(torch.zeros_like(log_w[0]) if second[0] is None else second[0][k])
    return torch.stack(rows)


def without_each(formula: Formula, log_w: Tensor) -> Tensor:
    """The bound with each log-weight replaced by the mean of the others', [K, B]."""
    rows = []
    for k in range(len(log_w)):
        others = torch.cat([log_w[:k], log_w[k + 1 :]]).mean(0)
        rows.append(formula(torch.cat([log_w[:k], others[None], log_w[k + 1 :]])))
    return torch.stack(rows)


# What reaches the guide through the samples and through log q: (path, score) from a formula and
# log-weights. A total derivative has the path and the score with the bound's own weights.
Share = Callable[[Formula, Tensor], tuple[Tensor, Tensor]]


def _total(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    weights = slopes(formula, log_w)
    return weights, -weights


def _path(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    weights = slopes(formula, log_w)
    return weights, torch.zeros_like(weights)


def _doubly(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of weight times score is the mean of its derivative times the path."""
    weights = slopes(formula, log_w)
    return weights - curvatures(formula, log_w), torch.zeros_like(weights)


def _wake(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    weights = slopes(formula, log_w)
    return torch.zeros_like(weights), weights


def _wake_doubly(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    weights = slopes(formula, log_w)
    return curvatures(formula, log_w), torch.zeros_like(weights)


def _credit(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """The total derivative, and the score of what a sample alone has changed of the bound."""
    path, score = _total(formula, log_w)
    return path, score + formula(log_w) - without_each(formula, log_w)


def _plain_score(formula: Formula, log_w: Tensor) -> tuple[Tensor, Tensor]:
    path, score = _total(formula, log_w)
    return path, score + log_w / len(log_w)


SHARES: dict[str, Share] = {
    "total": _total,
    "iwae": _total,
    "stl": _path,
    "dreg": _doubly,
    "rws": _wake,
    "rws_dreg": _wake_doubly,
    "credit": _credit,
    "plain score": _plain_score,
}


def answer(
    pair: Pair, bound: Bound, share: str, p: Parameters, x: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean bound over the data, and the gradient of it by every parameter."""
    held = {name: value.detach() for name, value in p.items()}
    z = pair.samples(p, x)
    fixed = z.detach()
    log_w = (pair.log_joint(held, x, fixed) - pair.log_q(held, x, fixed)).detach()
    path, score = SHARES[share](bound.guide, log_w)
    ascended = slopes(bound.model, log_w) * pair.log_joint(p, x, fixed)
    if z.requires_grad:
        ascended = ascended + path * (pair.log_joint(held, x, z) - pair.log_q(held, x, z))
    ascended = ascended + score * pair.log_q(p, x, fixed)
    value = bound.model(log_w).mean()
    grads = torch.autograd.grad(ascended.sum(0).mean(), list(p.values()))
    return value, dict(zip(p, grads, strict=True))
