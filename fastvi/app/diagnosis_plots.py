"""Pictures of a diagnosis: bound against K, weights' tail, k-hat, effective size, gradients."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastvi.app.axes import (
    BLUE,
    GREEN,
    INK,
    LINE,
    MINUS,
    MUTED,
    WARM,
    Target,
    histogram,
    label_ends,
    log_x,
    one_panel,
    save_figure,
    say,
    signed,
)
from fastvi.diagnostics.diagnosis import GOOD_K, USABLE_K, Diagnosis
from fastvi.diagnostics.measures import fit_pareto

# The range of k-hat in the picture; values outside are counted in the last bin.
_LOW_K, _HIGH_K = -0.5, 1.5
_BEYOND = 10  # times K: the end of the extrapolation


def draw_bound_against_k(path: Target, found: Diagnosis) -> None:
    """Draw the mean bound for every K of the ladder, the estimated log p, and the extrapolation."""
    finite = found.finite
    title = f"Lower bound against K, mean of {int(finite.sum())} data"
    drawing, axes = one_panel(title, "K, importance samples", "$L_K$, nats per datum", right=0.2)
    if not bool(finite.any()):
        say(axes, "no datum has a finite bound")
        save_figure(path, drawing)
        return
    means = found.bounds[:, finite].mean(1).tolist()
    evidence = found.log_evidence[finite].mean().item()
    axes.plot(found.ladder, means, color=BLUE, clip_on=False, zorder=3, **LINE)
    last, end = found.ladder[-1], found.ladder[-1]
    places = []
    if math.isfinite(evidence):
        end = _BEYOND * last
        # The gap of the bound falls as 1/K if the weights have a variance.
        further = [last * _BEYOND ** (step / 40) for step in range(41)]
        way = [evidence - (evidence - means[-1]) * last / k for k in further]
        axes.plot(further, way, color=BLUE, linewidth=1.4, linestyle=(0, (1, 1.6)))
        axes.axhline(evidence, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        doubtful = not bool(found.reliable.all())
        name = "log p, estimate" + ("\n(see k-hat)" if doubtful else "")
        places.append((evidence, MUTED, f"{name}\n{signed(evidence)}"))
    log_x(axes, found.ladder[0], max(end, 2))
    axes.annotate(
        f"$L_{{{last}}}$ = {signed(means[-1])}",
        (last, means[-1]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        color=BLUE,
        fontsize=9,
    )
    # Room for these words below the line.
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.08 * (high - low), high)
    label_ends(axes, places, apart=0.2)
    save_figure(path, drawing)


def draw_tail(path: Target, found: Diagnosis) -> None:
    """Draw the largest weights of three data, and the Pareto distributions fitted to them."""
    title = f"Tail of the weights, K = {found.num_samples}"
    drawing, axes = one_panel(title, "w / mean of w", "share of weights above w", right=0.2)
    places = []
    for row, name, colour in _of_three(found):
        assert found.tail is not None
        weights = found.tail[:, row].exp().flip(0)
        excess = weights[1:] - weights[0]
        size = len(excess)
        share = [(size - n) / found.num_samples for n in range(size)]
        axes.plot(
            weights[1:].tolist(), share, color=colour, marker="o", markersize=3, linewidth=0,
            alpha=0.55,
        )  # fmt: skip
        k, sigma = (value.item() for value in fit_pareto(excess[:, None]))
        # The points have equal ratios of their excess, from the smallest one on.
        first = max(excess[0].item(), 1e-12 * excess[-1].item())
        x = torch.logspace(math.log10(first), math.log10(excess[-1].item()), 200).double()
        above = (1 + k * x / sigma).clamp(min=1e-12) ** (-1 / k) * (size / found.num_samples)
        axes.plot((weights[0] + x).tolist(), above.tolist(), color=colour, linewidth=1.6)
        places.append((share[-1], colour, f"{name}: row {row}\nk-hat {signed(k, 2)}"))
    if places:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6 / found.num_samples)
        low, high = axes.get_xlim()
        if high < 1000 * low:
            axes.xaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        label_ends(axes, places, apart=0.17)
    else:
        say(axes, "no tail to show: k-hat needs at least 25 samples that differ")
    save_figure(path, drawing)


def _of_three(found: Diagnosis) -> list[tuple[int, str, str]]:
    """Return the data with the smallest, the middle and the largest k-hat, if they have a tail."""
    if found.tail is None or len(found.tail) < 2:
        return []
    rows = [row for row in found.pareto_k.argsort().tolist() if found.pareto_k[row].isfinite()]
    names = (
        (0, "smallest", GREEN),
        (len(rows) // 2, "middle", BLUE),
        (len(rows) - 1, "largest", WARM),
    )
    chosen = {rows[at]: (name, colour) for at, name, colour in names} if rows else {}
    return [(row, name, colour) for row, (name, colour) in chosen.items()]


def draw_pareto_k(path: Target, found: Diagnosis) -> None:
    """Draw the histogram of k-hat, with the lines below which it is good and usable."""
    k = found.pareto_k[~found.pareto_k.isnan()]
    title = f"Shape of the weights' tail, {len(k)} data, K = {found.num_samples}"
    drawing, axes = one_panel(title, "k-hat", "data")
    if len(k):
        histogram(axes, k.clamp(_LOW_K, _HIGH_K), _LOW_K, _HIGH_K)
    else:
        say(axes, "k-hat needs at least 25 samples")
    axes.set_xlim(_LOW_K, _HIGH_K)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, 1.16 * top)
    for at, colour in ((GOOD_K, GREEN), (USABLE_K, WARM)):
        axes.axvline(at, color=colour, linewidth=1.4)
    spans = (
        ((_LOW_K + GOOD_K) / 2, "good", GREEN),
        ((GOOD_K + USABLE_K) / 2, "usable", MUTED),
        ((USABLE_K + _HIGH_K) / 2, "more samples do not help", WARM),
    )
    for at, text, colour in spans:
        axes.text(at, 1.09 * top, text, ha="center", va="center", color=colour, fontsize=9)
    ticks = [_LOW_K + 0.25 * index for index in range(9)]
    names = [f"{tick:.2f}".replace("-", MINUS) for tick in ticks]
    if bool((k < _LOW_K).any()):
        names[0] = f"\N{LESS-THAN OR EQUAL TO} {names[0]}"
    if bool((k > _HIGH_K).any()):
        names[-1] = f"\N{GREATER-THAN OR EQUAL TO} {names[-1]}"
    axes.set_xticks(ticks, names)
    save_figure(path, drawing)


def draw_effective_sample_size(path: Target, found: Diagnosis) -> None:
    """Draw the histogram of ESS / K on a logarithmic axis, from 1 / K to 1."""
    ess = found.ess[found.ess > 0]
    title = f"Effective sample size, {len(ess)} data, K = {found.num_samples}"
    drawing, axes = one_panel(title, "ESS / K", "data")
    if len(ess) and found.num_samples > 1:
        low = -math.log10(found.num_samples)
        histogram(axes, torch.log10(ess / found.num_samples).clamp(low, 0.0), low, 0.0)
        middle = (ess / found.num_samples).median().item()
        axes.axvline(math.log10(middle), color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        top = axes.get_ylim()[1]
        axes.set_ylim(0, 1.12 * top)
        left = math.log10(middle) > 0.5 * low
        axes.annotate(
            f"median {middle:.2g}: ESS {middle * found.num_samples:.3g} of {found.num_samples}",
            (math.log10(middle), 1.07 * top),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=MUTED,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        powers = range(math.ceil(low), 1)
        axes.set_xticks(list(powers), [f"{10.0**power:g}" for power in powers])
        axes.set_xlim(low, 0.02 * -low)
    else:
        say(axes, "no weights to compare")
    save_figure(path, drawing)


def draw_snr(path: Target, found: Diagnosis) -> None:
    """Draw the signal-to-noise ratio of the gradients against K, on logarithmic axes."""
    title = "Signal-to-noise ratio of the gradients"
    drawing, axes = one_panel(
        title, "K, importance samples", "|mean| / standard deviation", right=0.2
    )
    places, lost = [], []
    for name, colour, style, values in _snr_lines(found):
        points = list(zip(found.snr_samples, values, strict=True))
        shown = [point for point in points if 0 < point[1] < math.inf]
        lost += [(k, colour) for k, value in points if value == 0]
        if shown:
            x, y = zip(*shown, strict=True)
            axes.plot(x, y, color=colour, linestyle=style, clip_on=False, zorder=3, **LINE)
            places.append((shown[-1][1], colour, name))
    if places:
        log_x(axes, found.snr_samples[0], max(found.snr_samples[-1], 2))
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / (high / low) ** 0.08, high)
        axes.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.tick_params(which="both", length=0)
        label_ends(axes, places, apart=0.09)
    else:
        say(axes, "no gradients were measured")
    for k, colour in lost if places else ():
        axes.plot(
            [k],
            [0.025],
            transform=axes.get_xaxis_transform(),
            color=colour,
            marker="v",
            fillstyle="none",
            clip_on=False,
        )
    if lost and places:
        axes.set_xlabel("K, importance samples (open triangle: lost in the noise)", color=INK)
    save_figure(path, drawing)


def _snr_lines(found: Diagnosis) -> list[tuple[str, str, Any, tuple[float, ...]]]:
    """Return the encoder's line for each estimator, and one line for each other group."""
    lines: list[tuple[str, str, Any, tuple[float, ...]]] = []
    colours = {"iwae": WARM, "dreg": BLUE}
    for estimator, groups in found.snr.items():
        for name, values in groups.items():
            if name == "encoder":
                lines.append((f"encoder, {estimator}", colours[estimator], "-", values))
            elif estimator == "iwae":
                lines.append((name, MUTED, (0, (4, 2)), values))
    return lines
