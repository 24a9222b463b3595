"""The part of a diagnosis on the model: latent features, training and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from fastvi.app.axes import Target
from fastvi.app.diagnosis_report import png_of
from fastvi.app.images import Images
from fastvi.app.latent_plots import draw_aggregated, draw_kl, draw_latent_map, draw_traversals
from fastvi.app.page import Picture, Section, Table
from fastvi.app.run_folder import BOUND, RECONSTRUCTIONS, SAMPLES
from fastvi.app.run_report import pictures
from fastvi.app.settings import Settings
from fastvi.callbacks import Epoch
from fastvi.diagnostics.latents import LatentFeatures
from fastvi.models.vae import VAE

_MOST_FEATURES = 16  # in the table
_FAR = 0.1  # nats: the report mentions an aggregated posterior above this


def latent_advice(found: LatentFeatures) -> Iterator[str]:
    """Return advice on the latent features, one or two sentences for each finding."""
    active, features = int(found.active.sum()), len(found.active)
    if len(found.loc) < 2:
        return
    if active == 0:
        yield (
            f"None of the {features} latent features is active: the posterior has collapsed to the "
            "prior. Train longer, raise the weight of the divergence slowly from zero, or make the "
            "decoder weaker."
        )
    elif active < features:
        yield (
            f"{active} of {features} latent features are active: about {active} would give the "
            "same bound in less time."
        )
    else:
        yield f"{active} of {features} latent features are active: try more of them."
    far = [d for d in found.order if found.active[d] and found.marginal_kl[d] > _FAR]
    if far:
        most = max(far, key=lambda d: found.marginal_kl[d].item())
        yield (
            f"The aggregated posterior of {len(far)} of the features is more than {_FAR} nats from "
            f"the prior, most of feature {most}: samples of the prior reach places that the "
            "decoder has not seen. A learned prior would fit."
        )


def sections(
    vae: VAE,
    found: LatentFeatures,
    images: Images,
    pixels: Tensor,
    settings: Settings,
    history: Sequence[Epoch],
) -> Iterator[Section]:
    """Return the sections about the latent features, and about training and images.

    Args:
        vae: the model.
        found: the measures of its latent features on ``pixels``.
        images: of the run.
        pixels: the first held-out images of ``images``, as the model takes them.
        settings: of the run.
        history: its epochs; empty if they are unknown.
    """
    labels = None if images.held_out_labels is None else images.held_out_labels[: len(pixels)]

    def drawn(draw: Callable[[Target], None], title: str, look: str, do: str) -> Picture:
        return Picture(title, png_of(draw), look, do)

    projected = "the two directions that vary most" if found.loc.shape[1] > 2 else "the features"
    yield Section(
        "The latent features",
        [
            drawn(
                lambda file: draw_kl(file, found),
                "Divergence of each latent feature from the prior",
                "features near 0 nats: they tell nothing about the datum, and the decoder does "
                "without them.",
                "if many are grey, take fewer latent features; if all are blue, try more.",
            ),
            drawn(
                lambda file: draw_latent_map(file, found, labels),
                f"Map of the latent means, along {projected}",
                "points that fill the dashed circles of the prior's 1, 2 and 3 standard deviations"
                + (", and labels that form groups." if labels is not None else ", and groups."),
                "groups far apart, or holes, make poor samples in between: a learned prior, or "
                "more data there.",
            ),
            drawn(
                lambda file: draw_aggregated(file, found),
                "Aggregated posterior of the most telling features, and the prior",
                "blue areas that lie under the dashed prior: then samples of the prior are what "
                "the decoder was trained on.",
                "where blue is narrower, shifted or in pieces, take a learned prior, or train "
                "longer.",
            ),
            drawn(
                lambda file: draw_traversals(file, vae, found, images.shape),
                "Traversals of the latent features",
                "rows that change in one way each: a feature from −3 to 3 standard deviations of "
                "the prior, with the others held.",
                "a row that does not change is a feature to do without; a row that changes "
                "everything asks for more features.",
            ),
            Table(
                ("feature", "KL, nats", "variance of the mean", "active", "KL of q(z), nats"),
                [
                    (
                        str(d),
                        f"{found.kl[:, d].mean():.3f}",
                        f"{found.activity[d]:.3f}",
                        "yes" if found.active[d] else "no",
                        f"{found.marginal_kl[d]:.3f}",
                    )
                    for d in found.order[:_MOST_FEATURES]
                ],
            ),
            "The divergences add up to that of the ELBO where the prior and q are diagonal. A "
            "feature is active if its mean varies over the data by more than 0.01. q(z) is the "
            "mean of q over the data; what KL(q(z given x) || p(z)) has more than KL(q(z) || p(z)) "
            "is information about the datum.",
        ],
    )
    words = {
        BOUND: (
            "The bound against the epoch",
            "lines that level off together; a held-out line that falls while training rises is "
            "overfitting.",
            "if it still rises at the end, train longer; if it falls, stop earlier, or make the "
            "hidden layers smaller.",
        ),
        RECONSTRUCTIONS: (
            "Held-out images and their reconstructions",
            "reconstructions that keep what makes each image itself.",
            "if they are blurred or alike, the latent features tell too little: more of them, or "
            "longer training.",
        ),
        SAMPLES: (
            "Means of p(x given z) for z from the prior",
            "images that could be data, and differ from each other.",
            "if the reconstructions are good and these are not, the aggregated posterior is not "
            "the prior: see above.",
        ),
    }
    draws = pictures(vae, images, pixels, settings, history)
    shown = [name for name in words if history or name != BOUND]
    yield Section(
        "Training and images",
        [drawn(draws[name], *words[name]) for name in shown],
    )
