"""The ELBO as a sum of terms: the latents that each depends on, and the closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from fastvi._gradients import weighed
from fastvi._modes import records_graphs
from fastvi.objectives.latent import Latent, LogJoint
from fastvi.objectives.terms import (
    Evaluated,
    closed_form,
    density_of_prior,
    evaluate,
    longest_batch,
)


@dataclass
class ELBOTerms:
    """The terms of the ELBO, [K, *batch], or [K] if they are of all data: a mean of their sum."""

    terms: list[Evaluated]
    num_samples: int
    batch: torch.Size
    num_data: int

    def share(self, term: Tensor) -> Tensor:
        r"""Return what a term adds to the bound of each example, (K, \*batch) or (K,)."""
        of_all = term.ndim == 1 and len(self.batch) > 0
        return term / self.num_data if of_all else term

    def value(self) -> Tensor:
        r"""Return the bound of each example, (\*batch,)."""
        means = [self.share(term.value).mean(0) for term in self.terms if term.value is not None]
        total = means[0]
        for mean in means[1:]:
            total = total + mean
        # If a sample is impossible, no direction improves the bound: no gradient, as in the op.
        total = total.expand(self.batch)
        return total.masked_fill(torch.isneginf(total.detach()), -torch.inf)


def elbo_terms(
    where: str,
    latents: Sequence[Latent],
    log_joint: LogJoint,
    num_data: int | None,
    kl: str,
    *,
    path: bool = False,
    beta: float = 1.0,
) -> ELBOTerms:
    """Evaluate all terms of the ELBO; ``path`` holds the parameters of log q constant.

    ``beta`` weighs the divergences, or the log-densities of the latents that stand for them.
    """
    values = {latent.name: latent.value for latent in latents}
    num_samples = len(latents[0].value)
    terms = evaluate(where, latents, values, log_joint, keep_priors=kl != "monte_carlo")
    named = {latent.name: latent for latent in latents}
    costs: list[Evaluated] = []
    closed = set()
    open_: list[str] = []
    for term in terms:
        if term.prior is None:
            costs.append(term)
            continue
        latent = named[term.name]
        later = _later(term, latent, latents)
        divergence = None if later else closed_form(where, latent, term.prior)
        if divergence is None:
            open_.append(f"{term.name!r} {_why(latent, term.prior, later)}")
            costs.append(density_of_prior(where, term, latent.value, latent.batch))
            continue
        # torch returns infinity if the supports are of two kinds.
        if not divergence.requires_grad and bool((divergence == torch.inf).any()):
            raise ValueError(
                f"{where}: expected the prior of latent {term.name!r} to allow all values of the "
                f"guide's {latent.distribution}, got {term.prior} with support "
                f"{term.prior.support}; a guide of the same support has to take its place"
            )
        if divergence.shape == latent.batch:
            divergence = divergence.expand(num_samples, *latent.batch)
        elif divergence.shape != latent.log_q.shape:
            raise ValueError(
                f"{where}: expected the divergence of latent {term.name!r} from its prior to have "
                f"shape {list(latent.batch)} or {list(latent.log_q.shape)}, got "
                f"{list(divergence.shape)}"
            )
        closed.add(term.name)
        # q is a function of the latents before it, and so is its divergence.
        depends_on = term.depends_on | parents_of(latent, latents)
        costs.append(Evaluated(f"KL of {term.name}", -divergence, depends_on - {term.name}))
    if kl == "analytic" and closed != named.keys():
        no_prior = named.keys() - closed - {term.name for term in terms if term.prior}
        open_ += [f"{name!r} has no prior of its own" for name in sorted(no_prior)]
        raise ValueError(
            f"{where}: expected a divergence in closed form for every latent, got none for "
            f"{sorted(named.keys() - closed)} ({'; '.join(open_)}); return the prior as a "
            f"distribution under the latent's name, of a kind that "
            f"torch.distributions.kl_divergence knows, or take the closed forms that there are by "
            f"kl='auto'"
        )
    for latent in latents:
        if latent.name not in closed:
            log_q = latent.log_q
            if path and records_graphs():
                log_q = _AlongPath.apply(log_q.detach(), latent.log_q_path())
            depends_on = parents_of(latent, latents) | {latent.name}
            costs.append(Evaluated(f"log q of {latent.name}", -log_q, depends_on))
    if beta != 1.0:
        of_data = {term.name for term in terms} - named.keys()
        costs = [
            cost if cost.name in of_data else replace(cost, value=weighed(beta, cost.value))
            for cost in costs
            if cost.value is not None
        ]
    batch = longest_batch([term.value for term in costs if term.value is not None])
    size = math.prod(batch)
    return ELBOTerms(costs, num_samples, batch, size if num_data is None else num_data)


class _AlongPath(torch.autograd.Function):
    """Give log q its value, in every mode of autograd, and the gradient along the path."""

    @staticmethod
    def forward(ctx: Any, log_q: Tensor, along_path: Tensor) -> Tensor:  # type: ignore[override]
        return log_q.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def _later(term: Evaluated, latent: Latent, latents: Sequence[Latent]) -> frozenset[str]:
    """Return the latents that its prior depends on, and that are drawn given this one.

    A closed form is a mean over this latent with all others constant. These are not constant.
    """
    assert term.prior is not None
    if len(term.prior.batch_shape) <= len(latent.batch):
        return frozenset()
    return term.depends_on & (touched_by(latent, latents) - {latent.name})


def _why(latent: Latent, prior: Distribution, later: frozenset[str]) -> str:
    if later:
        return f"has a prior that depends on {sorted(later)}, drawn given it"
    if latent.distribution is None:
        return "is of no distribution that the guide gives"
    return f"is a {type(latent.distribution).__name__} with prior {type(prior).__name__}"


def parents_of(latent: Latent, latents: Sequence[Latent]) -> frozenset[str]:
    """Return the names of the latents that its q may depend on."""
    if latent.parents is not None:
        return frozenset(latent.parents)
    names = [other.name for other in latents]
    return frozenset(names[: names.index(latent.name)])


def moves_with_samples(latent: Latent, latents: Sequence[Latent]) -> bool:
    """Return whether its log q has a gradient through its own samples, or those of its parents."""
    reparameterised = {other.name for other in latents if other.reparameterised}
    return bool((parents_of(latent, latents) | {latent.name}) & reparameterised)


def check_paths(where: str, latents: Sequence[Latent]) -> None:
    """Refuse a density that depends on other latents too: the default path is wrong for it."""
    reparameterised = {other.name for other in latents if other.reparameterised}
    for latent in latents:
        given = parents_of(latent, latents) & reparameterised
        if given and latent.path is None:
            raise ValueError(
                f"{where}: expected path to be given for latent {latent.name!r}, which is drawn "
                f"given {sorted(given)}: its log q by all samples, the guide's parameters held "
                f"constant; or parents=() if it is not"
            )


def touched_by(latent: Latent, latents: Sequence[Latent]) -> frozenset[str]:
    """Return the names of the latent, and of all that are drawn given it, directly or not."""
    touched = {latent.name}
    for other in latents:
        if parents_of(other, latents) & touched:
            touched.add(other.name)
    return frozenset(touched)
