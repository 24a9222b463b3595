"""The four pictures of a diagnosis: bound against K, k-hat, effective sample size, gradients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvi.app.plots import _GRID, _HELD_OUT, _INK, _MUTED, _figure, save_figure
from fastvi.diagnostics.diagnosis import GOOD_K, USABLE_K, Diagnosis

_WARM, _GREEN = "#c4541b", "#2b7a4b"
_BINS = 30
# The range of k-hat that is drawn; what lies outside is counted in the last bin.
_LOW_K, _HIGH_K = -0.5, 1.5
_LINE = {"linewidth": 1.8, "marker": "o", "markersize": 4}
_MINUS = "\N{MINUS SIGN}"


def _axes(title: str, x: str, y: str, *, right: float = 0.04) -> tuple[Any, Any]:
    figure = _figure(7.0, 4.2)
    axes = figure.add_axes((0.12, 0.14, 0.88 - right, 0.72))
    axes.set_title(title, loc="left", fontsize=11, color=_INK, pad=12)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_MUTED, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    return figure, axes


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", _MINUS)


def draw_bound_against_k(path: str | Path, found: Diagnosis) -> None:
    """Draw the mean bound for every K of the ladder, and the estimated log p."""
    finite = found.finite
    title = f"Lower bound against K, mean of {int(finite.sum())} data"
    figure, axes = _axes(title, "K, importance samples", "$L_K$, nats per datum", right=0.2)
    if not bool(finite.any()):
        _say(axes, "no datum has a finite bound")
        save_figure(path, figure)
        return
    means = found.bounds[:, finite].mean(1).tolist()
    evidence = found.log_evidence[finite].mean().item()
    axes.plot(found.ladder, means, color=_HELD_OUT, clip_on=False, zorder=3, **_LINE)
    _log_x(axes, found.ladder[0], max(found.ladder[-1], 2))
    places = [(means[-1], _HELD_OUT, f"$L_K$\n{_signed(means[-1])}")]
    if math.isfinite(evidence):
        axes.axhline(evidence, color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        doubtful = not bool(found.reliable.all())
        name = "log p, estimate" + ("\n(see k-hat)" if doubtful else "")
        places.append((evidence, _MUTED, f"{name}\n{_signed(evidence)}"))
    _label_ends(axes, places, apart=0.2)
    save_figure(path, figure)


def _log_x(axes: Any, first: float, last: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(first, last)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _label_ends(axes: Any, places: list[tuple[float, str, str]], apart: float) -> None:
    """Write at the right ends of lines, in their order, ``apart`` of the axis from each other."""
    axes.get_ylim()  # settles the limits, which the transform does not
    to_axes = axes.transData - axes.transAxes
    heights = [to_axes.transform((axes.get_xlim()[1], value))[1] for value, _, _ in places]
    order = sorted(range(len(places)), key=lambda index: heights[index])
    shown: list[float] = []
    for index in order:
        shown.append(max(heights[index], shown[-1] + apart) if shown else heights[index])
    # Those that were pushed up go down again by half of it, so that no label is far from its line.
    shift = sum(a - heights[index] for a, index in zip(shown, order, strict=True)) / len(order)
    for height, index in zip(shown, order, strict=True):
        _, colour, text = places[index]
        axes.annotate(
            text,
            (1.0, height - shift),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def draw_pareto_k(path: str | Path, found: Diagnosis) -> None:
    """Draw the histogram of k-hat, with the lines below which it is good and usable."""
    k = found.pareto_k[~found.pareto_k.isnan()]
    title = f"Shape of the weights' tail, {len(k)} data, K = {found.num_samples}"
    figure, axes = _axes(title, "k-hat", "data")
    if len(k):
        _histogram(axes, k.clamp(_LOW_K, _HIGH_K), _LOW_K, _HIGH_K)
    else:
        _say(axes, "k-hat needs at least 25 samples")
    axes.set_xlim(_LOW_K, _HIGH_K)
    top = axes.get_ylim()[1]
    axes.set_ylim(0, 1.16 * top)
    for at, colour in ((GOOD_K, _GREEN), (USABLE_K, _WARM)):
        axes.axvline(at, color=colour, linewidth=1.4)
    spans = (
        ((_LOW_K + GOOD_K) / 2, "good", _GREEN),
        ((GOOD_K + USABLE_K) / 2, "usable", _MUTED),
        ((USABLE_K + _HIGH_K) / 2, "more samples do not help", _WARM),
    )
    for at, text, colour in spans:
        axes.text(at, 1.09 * top, text, ha="center", va="center", color=colour, fontsize=9)
    ticks = [_LOW_K + 0.25 * index for index in range(9)]
    names = [f"{tick:.2f}".replace("-", _MINUS) for tick in ticks]
    if bool((k < _LOW_K).any()):
        names[0] = f"\N{LESS-THAN OR EQUAL TO} {names[0]}"
    if bool((k > _HIGH_K).any()):
        names[-1] = f"\N{GREATER-THAN OR EQUAL TO} {names[-1]}"
    axes.set_xticks(ticks, names)
    save_figure(path, figure)


def draw_effective_sample_size(path: str | Path, found: Diagnosis) -> None:
    """Draw the histogram of ESS / K on a logarithmic axis, from 1 / K to 1."""
    ess = found.ess[found.ess > 0]
    title = f"Effective sample size, {len(ess)} data, K = {found.num_samples}"
    figure, axes = _axes(title, "ESS / K", "data")
    if len(ess) and found.num_samples > 1:
        low = -math.log10(found.num_samples)
        _histogram(axes, torch.log10(ess / found.num_samples).clamp(low, 0.0), low, 0.0)
        middle = (ess / found.num_samples).median().item()
        axes.axvline(math.log10(middle), color=_MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
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
            color=_MUTED,
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
        powers = range(math.ceil(low), 1)
        axes.set_xticks(list(powers), [f"{10.0**power:g}" for power in powers])
        axes.set_xlim(low, 0.02 * -low)
    else:
        _say(axes, "no weights to compare")
    save_figure(path, figure)


def _histogram(axes: Any, values: Tensor, low: float, high: float) -> None:
    counts = torch.histc(values, _BINS, low, high).tolist()
    width = (high - low) / _BINS
    lefts = [low + index * width for index in range(_BINS)]
    axes.bar(lefts, counts, 0.92 * width, align="edge", color=_HELD_OUT)
    axes.yaxis.get_major_locator().set_params(integer=True)


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", transform=axes.transAxes, color=_MUTED)
    axes.set_yticks([])


def draw_snr(path: str | Path, found: Diagnosis) -> None:
    """Draw the signal-to-noise ratio of the gradients against K, on logarithmic axes."""
    title = "Signal-to-noise ratio of the gradients"
    figure, axes = _axes(title, "K, importance samples", "|mean| / standard deviation", right=0.2)
    places, lost = [], []
    for name, colour, style, values in _snr_lines(found):
        points = list(zip(found.snr_samples, values, strict=True))
        shown = [point for point in points if 0 < point[1] < math.inf]
        lost += [(k, colour) for k, value in points if value == 0]
        if shown:
            x, y = zip(*shown, strict=True)
            axes.plot(x, y, color=colour, linestyle=style, clip_on=False, zorder=3, **_LINE)
            places.append((shown[-1][1], colour, name))
    if places:
        _log_x(axes, found.snr_samples[0], max(found.snr_samples[-1], 2))
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low / (high / low) ** 0.08, high)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.tick_params(which="both", length=0)
        _label_ends(axes, places, apart=0.09)
    else:
        _say(axes, "no gradients were measured")
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
        axes.set_xlabel("K, importance samples (open triangle: lost in the noise)", color=_INK)
    save_figure(path, figure)


def _snr_lines(found: Diagnosis) -> list[tuple[str, str, Any, tuple[float, ...]]]:
    """Return the encoder's line for each estimator, and one line for each other group."""
    lines: list[tuple[str, str, Any, tuple[float, ...]]] = []
    colours = {"iwae": _WARM, "dreg": _HELD_OUT}
    for estimator, groups in found.snr.items():
        for name, values in groups.items():
            if name == "encoder":
                lines.append((f"encoder, {estimator}", colours[estimator], "-", values))
            elif estimator == "iwae":
                lines.append((name, _MUTED, (0, (4, 2)), values))
    return lines
