"""The folder that ``fastvi diagnose`` writes: a page, pictures, and the numbers."""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fastvi.app.axes import Target
from fastvi.app.diagnosis_plots import (
    draw_bound_against_k,
    draw_effective_sample_size,
    draw_pareto_k,
    draw_snr,
    draw_tail,
)
from fastvi.app.page import Picture, Section, Table, render, render_markdown
from fastvi.chunks.few import GROWTH
from fastvi.diagnostics.diagnosis import GOOD_K, USABLE_K, Diagnosis
from fastvi.files import saved as files

FOLDER = "diagnosis"
PAGE, TEXT, TABLE, SNR_TABLE = "diagnosis.html", "diagnosis.md", "diagnosis.csv", "snr.csv"
BOUND_AGAINST_K, PARETO_K, ESS, SNR = "bound_against_k.png", "pareto_k.png", "ess.png", "snr.png"
TAIL = "tail.png"
_PICTURES: dict[str, Callable[..., None]] = {
    BOUND_AGAINST_K: draw_bound_against_k,
    TAIL: draw_tail,
    PARETO_K: draw_pareto_k,
    ESS: draw_effective_sample_size,
    SNR: draw_snr,
}
FILES = (PAGE, TEXT, TABLE, SNR_TABLE, *_PICTURES)
TITLE = "Diagnosis of a run"
_WORST = 10


def png_of(draw: Callable[[Target], None]) -> bytes:
    """Return a picture as the content of a file."""
    file = io.BytesIO()
    draw(file)
    return file.getvalue()


def refuse_if_there(folder: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError if a diagnosis exists that is not to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is not a folder; move it away")
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds a diagnosis already. Replace it with --overwrite")


def write_report(
    folder: Path,
    found: Diagnosis,
    facts: Mapping[str, object],
    *,
    overwrite: bool,
    advice: Sequence[str] | None = None,
    more: Sequence[Section] = (),
) -> None:
    """Write page, pictures and tables; files of other names do not change.

    Args:
        folder: of the diagnosis.
        found: the diagnosis that the page shows.
        facts: the facts at the head of the page.
        overwrite: replace an existing diagnosis.
        advice: advice for the page; ``None`` takes that of ``found``.
        more: sections that follow those of ``found``.

    Raises:
        FileExistsError: there is a diagnosis in it, and ``overwrite`` is false.
    """
    refuse_if_there(folder, overwrite=overwrite)
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    _write_csv(folder / TABLE, _rows_of_data(found))
    _write_csv(folder / SNR_TABLE, _rows_of_snr(found))
    drawn = {name: png_of(functools.partial(draw, found=found)) for name, draw in _PICTURES.items()}
    for name, content in drawn.items():
        files.replace(folder / name, content)
    to_do = Section("What to do", [list(found.advice() if advice is None else advice)])
    sections = [to_do, *_sections(found, drawn), *more]
    files.replace(folder / TEXT, render_markdown(TITLE, facts, sections).encode())
    # The page is written last, so that the other files exist if it does.
    files.replace(folder / PAGE, render(TITLE, facts, sections).encode())


def _write_csv(path: Path, rows: Iterator[list[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    files.replace(path, text.getvalue().encode())


def _rows_of_data(found: Diagnosis) -> Iterator[list[object]]:
    names = ["row", "pareto_k", "ess", "max_weight", "gap", "log_evidence"]
    columns = [found.pareto_k, found.ess, found.max_weight, found.gap, found.log_evidence]
    if found.backward_samples is not None:
        names.append("backward_samples")
        columns.append(found.backward_samples[-1])
    yield [*names, *(f"L_{k}" for k in found.ladder)]
    for row in range(len(found.ess)):
        yield [
            row,
            *(f"{column[row].item():.6g}" for column in columns),
            *(f"{value:.4f}" for value in found.bounds[:, row].tolist()),
        ]


def _rows_of_snr(found: Diagnosis) -> Iterator[list[object]]:
    yield ["estimator", "group", "num_samples", "snr"]
    for estimator, groups in found.snr.items():
        for group, values in groups.items():
            for k, value in zip(found.snr_samples, values, strict=True):
                yield [estimator, group, k, f"{value:.6g}"]


def summary(found: Diagnosis) -> list[tuple[str, ...]]:
    """Return the rows (quantity, median example, 5% to 95% of the data)."""
    rows: list[tuple[str, ...]] = []
    few = found.backward_samples
    for name, values, digits in (
        ("k-hat", found.pareto_k, 2),
        ("ESS", found.ess, 1),
        ("share of the largest weight", found.max_weight, 3),
        (f"L_{found.num_samples}, nats", found.bounds[-1], 2),
        ("estimated log p − L_K, nats", found.gap, 4),
        *([] if few is None else [("samples that have to run backward", few[-1], 0)]),
    ):
        known = values[~values.isnan()]
        if len(known):
            # The nearest example is taken: interpolation between infinities would be NaN.
            ends = (known.quantile(at, interpolation="nearest") for at in (0.05, 0.95))
            low, middle, high = (
                f"{value.item():.{digits}f}" for value in sorted([*ends, known.median()])
            )
            rows.append((name, middle, f"{low} to {high}"))
        else:
            rows.append((name, "undefined", ""))
    return rows


def bounds_table(found: Diagnosis) -> list[tuple[str, ...]]:
    """Return (K, mean of the finite bounds) for each K, then the estimated log p."""
    finite = found.finite
    means = found.bounds[:, finite].mean(1).tolist()
    rows: list[tuple[str, ...]] = [
        (f"{k:,}", f"{mean:.3f}") for k, mean in zip(found.ladder, means, strict=True)
    ]
    return [*rows, ("log p, estimated", f"{found.log_evidence[finite].mean().item():.3f}")]


FEW_HEAD = ("K", "m that is enough", "of K", "time of a step", "quicker by")


def few_table(found: Diagnosis) -> list[tuple[str, ...]]:
    """Return for each K above 1 how many samples have to run backward, and what that saves."""
    if found.backward_samples is None:
        return []
    rows: list[tuple[str, ...]] = []
    means = found.backward_samples.nanmean(1).tolist()
    for k, mean, factor in zip(found.ladder, means, found.backward_speedup.tolist(), strict=True):
        if k > 1 and not math.isnan(mean):
            rows.append(
                (f"{k:,}", f"{mean:.1f}", f"{mean / k:.0%}", f"{1 / factor:.0%}", f"{factor:.2f} ×")
            )
    return rows


def snr_table(found: Diagnosis) -> list[tuple[str, ...]]:
    """Return (group, estimator, a ratio for each K); shared groups have one row."""
    rows: list[tuple[str, ...]] = []
    for estimator, groups in found.snr.items():
        for group, values in groups.items():
            if group == "encoder" or estimator == "iwae":
                name = estimator if group == "encoder" else "any"
                rows.append((group, name, *(f"{value:.3g}" for value in values)))
    return sorted(rows, key=lambda row: row[0] != "encoder")


def _sections(found: Diagnosis, drawn: Mapping[str, bytes]) -> Iterator[Section]:
    """Return the sections on weights and gradients, with their pictures."""

    def picture(file: str, title: str, look: str, do: str) -> Picture:
        return Picture(title, drawn[file], look, do, file)

    few, good = found.num_samples, int(found.reliable.sum())
    yield Section(
        "The bound against K",
        [
            picture(
                BOUND_AGAINST_K,
                "Mean bound for each K, and the estimated log p",
                "a line that has levelled off at the dashed estimate of log p; the dotted line is "
                "where 1/K would take it.",
                "if it still rises at the K of training, train with more samples; if K = 1 is near "
                "the estimate already, the ELBO will do.",
            ),
            Table(("K", "mean L_K, nats"), bounds_table(found)),
            "Each L_K is a mean over disjoint groups of the same weights. The estimate of log p "
            f"adds the jackknife's estimate of what L_{few} lacks; it holds for data with k-hat "
            f"up to {USABLE_K}, which is {good} of {len(found.ess)}.",
        ],
    )
    order = found.pareto_k.nan_to_num(nan=-9e9, posinf=9e9, neginf=-8e9)
    worst = order.argsort(descending=True)[:_WORST].tolist()
    rows = [
        (
            str(row),
            f"{found.pareto_k[row]:.2f}",
            f"{found.ess[row]:.1f}",
            f"{found.max_weight[row]:.1%}",
            f"{found.bounds[-1, row]:.2f}",
        )
        for row in worst
    ]
    yield Section(
        "The weights",
        [
            Table(("", "median datum", "5% to 95% of data"), summary(found)),
            picture(
                PARETO_K,
                "Histogram of k-hat",
                f"k-hat, the shape of the weights' tail, below {GOOD_K}: there their variance is "
                f"finite, and the error of L_K falls as 1/K; up to {USABLE_K} it falls more "
                "slowly.",
                f"above {USABLE_K} no K that one can afford makes the estimate reliable: widen the "
                "guide, or lower the number of latent features.",
            ),
            picture(
                TAIL,
                "The largest weights of three data, and the fitted Pareto tails",
                "points that follow their line and fall steeply; a flat line is a tail in which "
                "the weights that matter have not been drawn yet.",
                "trust the bound of data whose points fall faster than 1/w²; look at the others "
                "one by one, by their rows.",
            ),
            picture(
                ESS,
                "Histogram of ESS / K",
                "ESS, the number of equal weights that would be as good: near K, the guide is the "
                "posterior; near 1, a single sample decides.",
                "near K, take fewer samples; near 1, improve the guide before taking more.",
            ),
            f"The data with the largest k-hat (all in {TABLE}):",
            Table(("row", "k-hat", "ESS", "largest weight", "L_K, nats"), rows),
        ],
    )
    if enough := few_table(found):
        yield Section(
            "Samples that run backward",
            [
                "A sample of little weight hardly moves the gradient. With backward_samples = m "
                "only m of the K samples run backward, chosen by their weights so that the mean of "
                "the gradient stays. The table has the m, a mean over the data, with which its "
                f"variance over the samples is at most {GROWTH:g} times that of all K.",
                Table(FEW_HEAD, enough),
                "Look at the row of the K that you train with: where m is below half of K, "
                "backward_samples='auto' pays; else leave it. The time is that of the networks, "
                "as a share of a step with all samples; a forward pass counts as 1, a backward "
                "pass as 2, so it is 1 + 3 m / K instead of 3. Near the beginning of a training "
                "the weights are often more alike, and m is larger.",
            ],
        )
    if found.snr:
        head = ("part", "estimator", *(f"K = {k}" for k in found.snr_samples))
        yield Section(
            "The gradients",
            [
                picture(
                    SNR,
                    "Signal-to-noise ratio against K",
                    "lines that rise with K, and lie above 1: the norm of the mean gradient over "
                    "its standard deviation, for a fixed batch.",
                    "take the estimator whose line of the encoder is the higher one at your K; "
                    "below 0.3, larger batches or a smaller learning rate.",
                ),
                Table(head, snr_table(found)),
                "0 is a mean that does not stand out of the noise of measuring it. Estimators "
                "differ in the encoder alone.",
            ],
        )
