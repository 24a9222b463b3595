"""Every face that evaluates a bound or a model, each as a function of nothing but torch's seed.

A face is built once, with parameters, data and log-weights of its own, and called in each mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

import fastvi
from fastvi import distributions, guides, objectives

FEATURES, LATENT, BATCH, SAMPLES = 6, 3, 4, 8
Face = Callable[[], Any]


@contextlib.contextmanager
def enabled_in_inference_mode() -> Iterator[None]:
    with torch.inference_mode(), torch.enable_grad():
        yield


MODES = {
    "no grad": torch.no_grad,
    "inference": torch.inference_mode,
    "enabled in inference": enabled_in_inference_mode,
}


def evaluated(face: Any) -> list[Tensor]:
    torch.manual_seed(7)
    found = face()
    found = found if isinstance(found, tuple) else (found,)
    return [torch.as_tensor(x).detach() for x in found]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def data() -> Tensor:
    return torch.rand(BATCH, FEATURES, generator=torch.Generator().manual_seed(2)).round()


def small_vae(**options: Any) -> fastvi.VAE:
    return fastvi.VAE(nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES), **options)


def deep_vae(*kinds: str) -> fastvi.HierarchicalVAE:
    layers, width = [], FEATURES
    for kind in kinds:
        outputs = 2 * LATENT if kind == "gaussian" else LATENT
        above = None if kind == kinds[-1] else nn.Linear(LATENT, outputs)
        layers.append(
            fastvi.StochasticLayer(kind, LATENT, guide=nn.Linear(width, outputs), model=above)
        )
        width = LATENT
    return fastvi.HierarchicalVAE(layers, nn.Linear(LATENT, FEATURES))


# ---- losses -------------------------------------------------------------------------------------
ESTIMATORS = ["dreg", "iwae", "stl", "rws", "rws_dreg"]
LOSSES: dict[str, Callable[..., nn.Module]] = {
    **{
        f"iwlb {name}": lambda name=name, **o: fastvi.IWLBLoss(SAMPLES, name, **o)
        for name in ESTIMATORS
    },
    "renyi": lambda **o: fastvi.IWLBLoss(SAMPLES, "dreg", alpha=0.5, **o),
    "elbo": lambda **o: fastvi.ELBOLoss(SAMPLES, kl="analytic", **o),
    "elbo sampled": lambda **o: fastvi.ELBOLoss(SAMPLES, "monte_carlo", estimator="stl", **o),
    "miwae": lambda **o: fastvi.MIWAELoss(4, 2, **o),
    "piwae": lambda **o: fastvi.PIWAELoss(4, 2, **o),
    "ciwae": lambda **o: fastvi.CIWAELoss(SAMPLES, 0.3, **o),
    "jackknife": lambda **o: fastvi.JackknifeLoss(SAMPLES, **o),
}
CHUNKS: dict[str, dict] = {"whole": {}, "chunks": {"chunk_size": 3}, "auto": {"chunk_size": "auto"}}


def loss_face(name: str, **options: Any) -> Face:
    vae, x, loss = small_vae(), data(), LOSSES[name](**options)
    return lambda: vae.loss(x, loss)


# ---- objectives over latents --------------------------------------------------------------------
OBJECTIVES: dict[str, Callable[..., objectives.Objective]] = {
    **{
        f"IWLB {name}": lambda name=name, **o: objectives.IWLB(SAMPLES, name, **o)
        for name in ("dreg", "iwae", "stl", "rws")
    },
    "IWLB alpha": lambda **o: objectives.IWLB(SAMPLES, alpha=0.5, **o),
    "ELBO": lambda **o: objectives.ELBO(SAMPLES, **o),
    "ELBO sampled": lambda **o: objectives.ELBO(SAMPLES, "monte_carlo", estimator="stl", **o),
    "VIMCO": lambda **o: objectives.VIMCO(SAMPLES, **o),
    "Reinforce": lambda **o: objectives.Reinforce(SAMPLES, **o),
    "wake-sleep": lambda **o: objectives.IWLB(SAMPLES, "rws", **o),
}
LAYERS = {
    "gaussian": ("gaussian", "gaussian"),
    "bits": ("bernoulli", "gaussian"),
}


def deep_face(name: str, layers: str, **options: Any) -> Face:
    vae, x, objective = deep_vae(*LAYERS[layers]), data(), OBJECTIVES[name](**options)
    return lambda: vae.bound(x, objective)


def svi_face(name: str, **options: Any) -> Face:
    encoder, decoder, x = nn.Linear(FEATURES, 2 * LATENT), nn.Linear(LATENT, FEATURES), data()

    def guide(x: Tensor) -> Independent:
        loc, log_scale = encoder(x).chunk(2, -1)
        return Independent(Normal(loc, log_scale.exp()), 1)

    def model(z: Tensor, x: Tensor) -> Tensor:
        prior = Independent(Normal(torch.zeros(LATENT), torch.ones(LATENT)), 1).log_prob(z)
        return prior + Independent(Bernoulli(logits=decoder(z)), 1).log_prob(x)

    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])
    svi = fastvi.SVI(model, guide, optimizer, OBJECTIVES[name](**options))
    return lambda: svi.evaluate(x)


def of_weights() -> dict[str, Callable[[], Face]]:
    """The bounds that are functions of log-weights."""

    def log_w() -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(4)
        return tuple(torch.randn(SAMPLES, BATCH, generator=g) for _ in "ab")  # type: ignore[return-value]

    def face(function: Callable[..., Any], two: bool = False) -> Callable[[], Face]:
        def make() -> Face:
            first, second = log_w()
            return lambda: function(first, second) if two else function(first)

        return make

    o = objectives
    return {
        "elbo": face(o.elbo),
        "iwlb": face(o.iwlb),
        "renyi": face(lambda w: o.renyi(w, 0.5)),
        "jackknife": face(o.jackknife),
        "miwae": face(lambda w: o.miwae(w.reshape(4, 2, BATCH))),
        "piwae": face(lambda w: torch.stack(o.piwae(w.reshape(4, 2, BATCH)))),
        "ciwae": face(lambda w: o.ciwae(w, 0.3)),
        "vimco": face(o.vimco, two=True),
        "reinforce": face(o.reinforce, two=True),
        "reweighted wake-sleep": face(o.reweighted_wake_sleep, two=True),
        "path weights": face(lambda w: o.path_weights(w, "dreg")),
        "effective sample size": face(fastvi.effective_sample_size),
        "pareto k": face(fastvi.pareto_k),
        "evidence gap": face(fastvi.evidence_gap),
    }


def diagnosed(vae: fastvi.VAE, x: Tensor) -> tuple[Tensor, ...]:
    found = fastvi.diagnose(vae, x, num_samples=64, snr_samples=(3,), snr_draws=4)
    noise = [row[name] for row in found.snr.values() for name in row]
    return found.bounds, torch.tensor(noise)


# ---- models and guides --------------------------------------------------------------------------
def of_models() -> dict[str, Callable[[], Face]]:
    def vae_face(function: Callable[..., Any], **options: Any) -> Callable[[], Face]:
        def make() -> Face:
            vae, x = small_vae(**options), data()
            return lambda: function(vae, x)

        return make

    def deep(function: Callable[..., Any]) -> Callable[[], Face]:
        def make() -> Face:
            vae, x = deep_vae("bernoulli", "gaussian"), data()
            return lambda: function(vae, x)

        return make

    def guide_face(kind: str, function: Callable[..., Any]) -> Callable[[], Face]:
        def make() -> Face:
            rank = {"rank": 2} if kind == "LowRankGaussian" else {}
            guide = getattr(guides, kind)({"w": (3,)}, **rank)
            return lambda: function(guide)

        return make

    faces = {
        "VAE.log_evidence": vae_face(lambda v, x: v.log_evidence(x, SAMPLES)),
        "VAE.log_evidence chunks": vae_face(lambda v, x: v.log_evidence(x, SAMPLES, chunk_size=3)),
        "VAE.log_weights": vae_face(lambda v, x: v.log_weights(x, SAMPLES)),
        "VAE.sample": vae_face(lambda v, x: v.sample(5)),
        "VAE.reconstruct": vae_face(lambda v, x: v.reconstruct(x)),
        "VAE gaussian": vae_face(lambda v, x: v.log_evidence(x, 3), likelihood="gaussian"),
        "diagnose": vae_face(diagnosed),
        "deep log_evidence": deep(lambda v, x: v.log_evidence(x, SAMPLES)),
        "deep log_evidence chunks": deep(lambda v, x: v.log_evidence(x, SAMPLES, chunk_size=3)),
        "deep log_weights": deep(lambda v, x: v.log_weights(x, SAMPLES)),
        "deep sample": deep(lambda v, x: v.sample(5)),
        "deep reconstruct": deep(lambda v, x: v.reconstruct(x)),
    }
    for kind in ("MeanFieldGaussian", "LowRankGaussian"):
        faces[f"{kind}.sample"] = guide_face(kind, lambda g: g.sample(5)["w"])
        faces[f"{kind}.quantiles"] = guide_face(kind, lambda g: g.quantiles([0.1, 0.5])["w"])
        faces[f"{kind}.median"] = guide_face(kind, lambda g: g.median()["w"])
    return faces


def of_distributions() -> dict[str, Callable[[], Face]]:
    """Densities and draws by key; parameters may be leaves that train."""

    def face(name: str, **parameters: float) -> Callable[[], Face]:
        def make() -> Face:
            given = {key: nn.Parameter(torch.full((BATCH,), v)) for key, v in parameters.items()}
            p = getattr(distributions, name)(**given)
            value = torch.ones(BATCH)

            def evaluate() -> tuple[Tensor, ...]:
                found = [p.log_prob(value)]
                for how in ("rsample_and_log_prob", "sample_and_log_prob"):
                    found += getattr(p, how)(2) if hasattr(p, how) else ()
                return tuple(found)

            return evaluate

        return make

    return {
        "Normal": face("Normal", loc=0.3, scale=2.0),
        "Laplace": face("Laplace", loc=0.3, scale=2.0),
        "Bernoulli": face("Bernoulli", logits=0.3),
        "Bernoulli probs": face("Bernoulli", probs=0.3),
        "Poisson": face("Poisson", rate=0.3),
        "NegativeBinomial": face("NegativeBinomial", mean=3.0, dispersion=2.0),
        "NegativeBinomial logits": face("NegativeBinomial", total_count=3.0, logits=2.0),
        "NegativeBinomial extreme": face("NegativeBinomial", total_count=3.0, logits=200.0),
    }


def all_faces() -> dict[str, Callable[[], Face]]:
    faces: dict[str, Callable[[], Face]] = {}
    for how, options in CHUNKS.items():
        for name in LOSSES:
            faces[f"{name}, {how}"] = lambda n=name, o=options: loss_face(n, **o)
        for name in OBJECTIVES:
            for layers in LAYERS:
                if layers == "gaussian" or name in ("VIMCO", "Reinforce", "wake-sleep"):
                    label = f"{name}, {layers}, {how}"
                    faces[label] = lambda n=name, s=layers, o=options: deep_face(n, s, **o)
            faces[f"SVI {name}, {how}"] = lambda n=name, o=options: svi_face(n, **o)
    return faces | of_weights() | of_models() | of_distributions()
