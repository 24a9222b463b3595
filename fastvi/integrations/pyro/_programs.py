"""Runs of a Pyro model and guide for some samples at once, and checks of their traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.distributions import Rejector
from pyro.infer.util import is_validation_enabled
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor

from fastvi.distributions.constant_parameters import check_score, kind_of
from fastvi.integrations.pyro._draws import ALONE, Draws
from fastvi.integrations.pyro._masks import masked_log_prob

WHERE = "Trace_IWLB"
# The outermost plate, of the samples.
PARTICLES = "num_particles_vectorized"
# A message of Pyro, as a trace keeps it.
Site = Any
Program = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """A model and a guide, with the arguments of their call."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Traces:
    """The sample sites of one run of the pair, without those of sub-sampling."""

    model: poutine.Trace
    guide: poutine.Trace

    def sites(self) -> Iterator[Site]:
        yield from sites(self.model)
        yield from sites(self.guide)


def sites(trace: poutine.Trace) -> Iterator[Site]:
    """Return the sample sites, without the indices that a plate draws."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield site


def latents(trace: poutine.Trace) -> Iterator[Site]:
    for site in sites(trace):
        if not site["is_observed"]:
            yield site


def plates_of(site: Site) -> dict[str, Any]:
    """Return the plates around the site, except for the plate of the samples."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES}


def counts(site: Site) -> bool:
    """Return whether the site has a density, unlike a site of ``pyro.deterministic``."""
    return not site["infer"].get("_deterministic", False)


# ---- running ------------------------------------------------------------------------------------
def vectorized(program: Program, num_samples: int, nesting: int) -> Program:
    """Return the program in an outermost plate of samples, left of ``nesting`` other plates."""
    if num_samples == 1:
        return program
    return _Particles(PARTICLES, num_samples, dim=-1 - nesting)(program)


class _Particles(IndepMessenger):
    """A plate of samples only: it draws no indices, and does not change parameters."""

    def _process_message(self, msg: Any) -> None:
        if msg["type"] == "sample":
            super()._process_message(msg)
            msg[ALONE] = msg["fn"]
            BroadcastMessenger._pyro_sample(msg)


def run_guide(call: Call, num_samples: int, nesting: int, draws: Draws) -> poutine.Trace:
    guide = vectorized(call.guide, num_samples, nesting)
    with draws:
        return poutine.trace(guide).get_trace(*call.args, **call.kwargs)


def run_model(call: Call, num_samples: int, nesting: int, guide: poutine.Trace) -> poutine.Trace:
    model = vectorized(call.model, num_samples, nesting)
    replayed = poutine.replay(model, trace=guide)
    return poutine.trace(replayed).get_trace(*call.args, **call.kwargs)


def run_both(call: Call, num_samples: int, nesting: int) -> tuple[poutine.Trace, poutine.Trace]:
    """Run a guide that is a messenger around the model; return (model, guide)."""
    guide = vectorized(call.guide, num_samples, nesting)
    guide(*call.args, **call.kwargs)
    messenger: Any = poutine.unwrap(call.guide)
    return messenger.get_traces()


def is_messenger(guide: Program) -> bool:
    return isinstance(poutine.unwrap(guide), poutine.messenger.Messenger)


def check_match(model: poutine.Trace, guide: poutine.Trace, nesting: int) -> None:
    """Check the two traces as Pyro does, and that their latents are the same."""
    check_same_latents(model, guide)
    if is_validation_enabled():
        check_model_guide_match(model, guide, nesting + 1)
        check_if_enumerated(guide)


def evaluate_log_prob(
    trace: poutine.Trace, site: Site, nesting: int, fused: bool, *, score: bool = False
) -> Tensor:
    """Return the log-density of a site without scale and mask: masked elements are only finite.

    With ``score`` it is the density of the sample itself, even if it is masked.
    """
    log_prob = site.get("unscaled_log_prob")
    if log_prob is None:
        mask = None if score else site["mask"]
        try:
            log_prob = masked_log_prob(
                site["fn"], site["value"], mask, fused, *site["args"], **site["kwargs"]
            )
        except ValueError as error:
            shapes = trace.format_shapes(last_site=site["name"])
            raise ValueError(
                f"Error while computing log_prob at site '{site['name']}':\n{error}\n{shapes}"
            ) from error
        site["unscaled_log_prob"] = log_prob
    if is_validation_enabled():
        site["log_prob"] = log_prob
        check_site_shape(site, nesting + 1)
    return log_prob


# ---- checks -------------------------------------------------------------------------------------
def check_same_latents(model: poutine.Trace, guide: poutine.Trace) -> None:
    of_model = {site["name"] for site in latents(model)}
    of_guide = {site["name"] for site in latents(guide)}
    auxiliary = {site["name"] for site in latents(guide) if site["infer"].get("is_auxiliary")}
    if missing := sorted(of_model - of_guide):
        raise ValueError(
            f"{WHERE}: expected the guide to sample every latent of the model, but it has no site "
            f"{_quoted(missing)}; add it to the guide, or give the model's an obs"
        )
    if extra := sorted(of_guide - of_model - auxiliary):
        observed = [name for name in extra if name in model.nodes]
        why = "; the model observes it" if observed else ""
        raise ValueError(
            f"{WHERE}: expected the model to sample every latent of the guide, but it has no "
            f"latent site {_quoted(extra)}{why}; add it to the model, or mark it in the guide with "
            f"infer={{'is_auxiliary': True}}"
        )


def check_reparameterized(guide: poutine.Trace, estimator: str) -> None:
    for site in sites(guide):
        if needs_score(site):
            raise ValueError(
                f"{WHERE}: expected every guide site to be reparameterised for estimator "
                f"{estimator!r}, got site {site['name']!r} of {kind_of(site['fn'])}, whose samples "
                f"have no derivative; use estimator='iwae' (VIMCO for such sites, the total "
                f"derivative for the others) or 'rws'"
            )
        check_score(WHERE, f"guide site {site['name']!r}", site["fn"])


def needs_score(site: Site) -> bool:
    """Return whether a guide site's samples have no derivative. A factor is no sample."""
    fn = site["fn"]
    if isinstance(getattr(fn, "base_dist", fn), Rejector):
        raise NotImplementedError(
            f"{WHERE}: expected guide sites to be reparameterised or not, got site "
            f"{site['name']!r} of {kind_of(fn)}, which is partly"
        )
    return not fn.has_rsample


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
