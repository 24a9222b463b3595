"""The folder that ``fastvi diagnose`` writes: a page, four pictures, and the numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastvi.app.diagnosis_plots import (
    draw_bound_against_k,
    draw_effective_sample_size,
    draw_pareto_k,
    draw_snr,
)
from fastvi.diagnostics.diagnosis import GOOD_K, USABLE_K, Diagnosis
from fastvi.files import saved as files

FOLDER = "diagnosis"
PAGE, TABLE, SNR_TABLE = "diagnosis.md", "diagnosis.csv", "snr.csv"
BOUND_AGAINST_K, PARETO_K, ESS, SNR = "bound_against_k.png", "pareto_k.png", "ess.png", "snr.png"
_PICTURES = {
    BOUND_AGAINST_K: draw_bound_against_k,
    PARETO_K: draw_pareto_k,
    ESS: draw_effective_sample_size,
    SNR: draw_snr,
}
FILES = (PAGE, TABLE, SNR_TABLE, *_PICTURES)
_WORST = 10

Rows = list[tuple[str, ...]]


def refuse_if_there(folder: Path, *, overwrite: bool) -> None:
    """Raise FileExistsError if there is a diagnosis already and it is not to be replaced."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is not a folder; move it away")
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds a diagnosis already. Replace it with --overwrite")


def write_report(
    folder: Path, found: Diagnosis, facts: Mapping[str, object], *, overwrite: bool
) -> None:
    """Write page, pictures and tables; files of another name are left alone.

    Raises:
        FileExistsError: there is a diagnosis in it, and ``overwrite`` is false.
    """
    refuse_if_there(folder, overwrite=overwrite)
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    _write_csv(folder / TABLE, _rows_of_data(found))
    _write_csv(folder / SNR_TABLE, _rows_of_snr(found))
    for name, draw in _PICTURES.items():
        draw(folder / name, found)
    files.replace(folder / PAGE, "\n".join(_page(found, facts)).encode())


def _write_csv(path: Path, rows: Iterator[list[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    files.replace(path, text.getvalue().encode())


def _rows_of_data(found: Diagnosis) -> Iterator[list[object]]:
    names = ["row", "pareto_k", "ess", "max_weight", "gap", "log_evidence"]
    yield [*names, *(f"L_{k}" for k in found.ladder)]
    columns = (found.pareto_k, found.ess, found.max_weight, found.gap, found.log_evidence)
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


def summary(found: Diagnosis) -> Rows:
    """Return the rows (quantity, median datum, 5% to 95% of the data)."""
    rows: Rows = []
    for name, values, digits in (
        ("k-hat", found.pareto_k, 2),
        ("ESS", found.ess, 1),
        ("share of the largest weight", found.max_weight, 3),
        (f"L_{found.num_samples}, nats", found.bounds[-1], 2),
        ("estimated log p − L_K, nats", found.gap, 4),
    ):
        known = values[~values.isnan()]
        if len(known):
            # The nearest of the data: interpolation between infinities would be NaN.
            ends = (known.quantile(at, interpolation="nearest") for at in (0.05, 0.95))
            low, middle, high = (
                f"{value.item():.{digits}f}" for value in sorted([*ends, known.median()])
            )
            rows.append((name, middle, f"{low} to {high}"))
        else:
            rows.append((name, "undefined", ""))
    return rows


def bounds_table(found: Diagnosis) -> Rows:
    """Return (K, mean of the finite bounds) for each K, then the estimated log p."""
    finite = found.finite
    means = found.bounds[:, finite].mean(1).tolist()
    rows: Rows = [(f"{k:,}", f"{mean:.3f}") for k, mean in zip(found.ladder, means, strict=True)]
    return [*rows, ("log p, estimated", f"{found.log_evidence[finite].mean().item():.3f}")]


def snr_table(found: Diagnosis) -> Rows:
    """Return (group, estimator, a ratio for each K); shared groups have one row."""
    rows: Rows = []
    for estimator, groups in found.snr.items():
        for group, values in groups.items():
            if group == "encoder" or estimator == "iwae":
                name = estimator if group == "encoder" else "any"
                rows.append((group, name, *(f"{value:.3g}" for value in values)))
    return sorted(rows, key=lambda row: row[0] != "encoder")


def _markdown(head: tuple[str, ...], rows: Rows) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _page(found: Diagnosis, facts: Mapping[str, object]) -> Iterator[str]:
    yield "# Diagnosis of the importance weights"
    yield ""
    yield "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."
    yield ""
    yield "## What to do"
    yield ""
    yield from (f"- {sentence}" for sentence in found.advice())
    yield ""
    yield "## The bound against K"
    yield ""
    yield f"![Mean bound for each K, and the estimated log p]({BOUND_AGAINST_K})"
    yield ""
    yield from _markdown(("K", "mean L_K, nats"), bounds_table(found))
    yield (
        "Each L_K is a mean over disjoint groups of the same weights. The estimate of log p adds "
        f"the jackknife's estimate of what L_{found.num_samples} lacks; it holds for data with "
        f"k-hat up to {USABLE_K}, which is {int(found.reliable.sum())} of {len(found.ess)}."
    )
    yield ""
    yield "## The weights"
    yield ""
    yield from _markdown(("", "median datum", "5% to 95% of data"), summary(found))
    yield f"![Histogram of k-hat]({PARETO_K})"
    yield ""
    yield (
        f"k-hat is the shape of the tail of the weights. Below {GOOD_K} their variance is finite "
        f"and the error of L_K falls as 1/K; up to {USABLE_K} it falls more slowly; above, no K "
        "that one can afford makes the estimate reliable."
    )
    yield ""
    yield f"![Histogram of ESS / K]({ESS})"
    yield ""
    yield (
        "ESS is the number of equal weights that would be as good. Near K, the guide is the "
        "posterior, and fewer samples do; near 1, a single sample decides."
    )
    yield ""
    yield f"The data with the largest k-hat (all in {TABLE}):"
    yield ""
    order = found.pareto_k.nan_to_num(nan=-9e9, posinf=9e9, neginf=-8e9)
    worst = order.argsort(descending=True)[:_WORST].tolist()
    rows: Rows = [
        (
            str(row),
            f"{found.pareto_k[row]:.2f}",
            f"{found.ess[row]:.1f}",
            f"{found.max_weight[row]:.1%}",
            f"{found.bounds[-1, row]:.2f}",
        )
        for row in worst
    ]
    yield from _markdown(("row", "k-hat", "ESS", "largest weight", "L_K, nats"), rows)
    if found.snr:
        yield "## The gradients"
        yield ""
        yield f"![Signal-to-noise ratio against K]({SNR})"
        yield ""
        head = ("part", "estimator", *(f"K = {k}" for k in found.snr_samples))
        yield from _markdown(head, snr_table(found))
        yield (
            "The norm of the mean gradient over its standard deviation, for a fixed batch and "
            "independent noise; 0 is a mean that does not stand out of the noise of measuring it. "
            "Estimators differ in the encoder alone."
        )
        yield ""
