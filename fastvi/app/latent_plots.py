"""Pictures of the latent features: a map, traversals, divergences and the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvi.app.axes import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    MUTED,
    WARM,
    Target,
    figure,
    one_panel,
    panel,
    save_figure,
)
from fastvi.app.plots import draw_rows
from fastvi.diagnostics.latents import ACTIVE, LatentFeatures
from fastvi.models.vae import VAE

_MOST_ROWS, _MOST_CURVES, _MOST_BARS = 8, 6, 64
_STEPS = 7
_CELL = (2.6, 2.1)  # inches, of a curve
_FAR = 3.0  # standard deviations of the prior


def draw_latent_map(path: Target, found: LatentFeatures, labels: Tensor | None) -> None:
    """Draw the means of q of two features, or along the two directions that vary most."""
    drawing = figure(7.0, 5.6)
    points, names, shares = _on_a_plane(found)
    axes = panel(drawing, (0.11, 0.11, 0.68, 0.78), "Means of q, one point for each datum", *names)
    axes.grid(axis="x", color="#e4e8ec", linewidth=0.8)
    if labels is None or len(labels.unique()) > len(COLOURS):
        axes.scatter(*points.T.tolist(), s=14, color=BLUE, alpha=0.6, linewidths=0)
    else:
        for label, colour in zip(labels.unique().tolist(), COLOURS, strict=False):
            own = points[labels == label]
            axes.scatter(
                *own.T.tolist(), s=16, color=colour, alpha=0.75, linewidths=0, label=str(label)
            )
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, title="label",
            labelcolor=INK, borderaxespad=0, handletextpad=0.2,
        )  # fmt: skip
    if shares:
        _draw_prior(axes)
    axes.set_aspect("equal", adjustable="datalim")
    save_figure(path, drawing)


def _on_a_plane(found: LatentFeatures) -> tuple[Tensor, tuple[str, str], bool]:
    """Return points [N, 2], the names of the axes, and whether the prior is standard on them."""
    z = (found.loc - found.prior_loc) / found.prior_scale
    features = z.shape[1]
    if features == 1:
        # The second coordinate is the standard deviation, the only other number of an example.
        return torch.cat((z, found.scale), 1), ("feature 0", "its standard deviation in q"), False
    if features == 2:
        return z, ("feature 0", "feature 1"), True
    centred = z - z.mean(0)
    _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    if len(directions) < 2:  # one example
        directions = torch.eye(features, dtype=z.dtype)[:2]
    total = singular.square().sum().clamp(min=1e-300)
    shares = [f"{value:.0%}" for value in (singular.square() / total).tolist()[:2]] + ["0%"]
    names = [f"direction {n + 1} ({shares[n]} of the variance)" for n in range(2)]
    # The means are not centred, so that the centre of the prior stays at zero.
    return z @ directions.T, (names[0], names[1]), True


def _draw_prior(axes: object) -> None:
    """Draw the circles of one, two and three standard deviations of the prior."""
    turn = torch.linspace(0, 2 * math.pi, 181)
    for radius in (1, 2, 3):
        x, y = (radius * turn.cos()).tolist(), (radius * turn.sin()).tolist()
        axes.plot(x, y, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)  # type: ignore
        axes.annotate(  # type: ignore
            f"{radius}", (0, radius), color=MUTED, fontsize=8, ha="center", va="bottom"
        )


@torch.no_grad()
def draw_traversals(
    path: Target, vae: VAE, found: LatentFeatures, shape: tuple[int, int], row: int = 0
) -> None:
    """Draw the decoder's images for an example's mean, with one feature moved over the prior."""
    device = next(vae.parameters()).device
    steps = torch.linspace(-_FAR, _FAR, _STEPS, dtype=torch.float64)
    rows = []
    for feature in found.order[:_MOST_ROWS]:
        z = found.loc[row].repeat(_STEPS, 1)
        z[:, feature] = found.prior_loc[feature] + steps * found.prior_scale[feature]
        images = vae.likelihood.mean(vae.decode(z.float().to(device))).clamp(0, 1)
        rows.append((f"feature {feature}\n{found.kl[:, feature].mean():.2f} nats", images))
    heads = [f"{step:+.2g}".replace("-", "\N{MINUS SIGN}") if step else "0" for step in steps]
    title = f"One feature at a time, from the mean of q of datum {row}"
    draw_rows(path, rows, shape, title=title, heads=heads)


def draw_kl(path: Target, found: LatentFeatures) -> None:
    """Draw the mean divergence of each feature, and which features are active."""
    active = found.active
    count = f"{int(active.sum())} of {len(active)} active"
    title = f"KL(q(z given x) || p(z)) of each feature, {count}"
    drawing, axes = one_panel(title, "latent feature", "nats, mean over the data")
    order = found.order[:_MOST_BARS]
    means, marginal = found.kl.mean(0)[order].tolist(), found.marginal_kl[order].tolist()
    colours = [BLUE if active[feature] else GREY for feature in order]
    axes.bar(range(len(order)), means, 0.72, color=colours)
    # It is below the whole divergence in theory; here it is measured on some of the data.
    axes.plot(
        range(len(order)), marginal, linewidth=0, marker="_", markersize=min(14, 240 / len(order)),
        markeredgewidth=2, color=WARM,
    )  # fmt: skip
    every = -(-len(order) // 24)
    axes.set_xticks(range(0, len(order), every), [str(f) for f in order[::every]], fontsize=8)
    axes.set_xlim(-0.7, len(order) - 0.3)
    # Room for the words above the bars.
    axes.set_ylim(min(0.0, *marginal), 1.4 * max(*means, *marginal, 1e-3))
    words = [
        ("active", BLUE),
        (f"inactive: mean varies by less than {ACTIVE:g}", GREY),
        ("of it, KL(q(z) || p(z)): the aggregated posterior's", WARM),
    ]
    for line, (text, colour) in enumerate(words):
        axes.text(
            0.99, 0.96 - 0.07 * line, text, transform=axes.transAxes, ha="right", va="top",
            color=colour, fontsize=9,
        )  # fmt: skip
    save_figure(path, drawing)


def draw_aggregated(path: Target, found: LatentFeatures) -> None:
    """Draw the aggregated posterior of the most informative features over the prior."""
    order = found.order[:_MOST_CURVES]
    columns = min(3, len(order))
    lines = -(-len(order) // columns)
    width, height = max(0.2 + _CELL[0] * columns, 4.0), 0.5 + _CELL[1] * lines
    drawing = figure(width, height)
    drawing.text(
        0.2 / width, 1 - 0.26 / height, "Aggregated posterior and prior", fontsize=11, color=INK,
        va="center",
    )  # fmt: skip
    for n, feature in enumerate(order):
        line, column = divmod(n, columns)
        bottom = 0.45 + (lines - 1 - line) * _CELL[1]
        box = (
            (0.2 + column * _CELL[0]) / width,
            bottom / height,
            (_CELL[0] - 0.35) / width,
            (_CELL[1] - 0.8) / height,
        )
        loc, scale = found.prior_loc[feature].item(), found.prior_scale[feature].item()
        low = min(loc - 4 * scale, found.loc[:, feature].min().item())
        high = max(loc + 4 * scale, found.loc[:, feature].max().item())
        z = torch.linspace(low, high, 400, dtype=torch.float64)
        prior = torch.exp(-0.5 * ((z - loc) / scale).square()) / (scale * math.sqrt(2 * math.pi))
        title = f"feature {feature}: KL {found.marginal_kl[feature]:.3f} nats"
        axes = panel(drawing, box, "", "", "")
        axes.set_title(title, loc="left", fontsize=9, color=INK, pad=5)
        axes.fill_between(z.tolist(), found.density(feature, z).tolist(), color=BLUE, alpha=0.22)
        axes.plot(z.tolist(), found.density(feature, z).tolist(), color=BLUE, linewidth=1.6)
        axes.plot(z.tolist(), prior.tolist(), color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_yticks([])
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
    save_figure(path, drawing)
