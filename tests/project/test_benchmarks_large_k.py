"""The benchmark of very many samples: the same gradient by all, and rows and ratios that fit."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.large_k import __main__ as large_k
from benchmarks.large_k.step import (
    CHECKPOINTED,
    EAGER,
    FASTVI,
    FASTVI_AT_ONCE,
    FASTVI_FEW,
    loss_of,
)
from benchmarks.ops.iwae_step import DATA, Networks
from benchmarks.rows import read

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.mark.parametrize("provider", [FASTVI_AT_ONCE, FASTVI_FEW, CHECKPOINTED, EAGER])
def test_every_provider_computes_the_bound(provider: str):
    """Of many samples, so that the noise of each provider's own draws is small."""
    networks = Networks()
    x = torch.zeros(2, DATA)
    with torch.no_grad():
        values = [loss_of(name, networks, 50)(x, 400) for name in (FASTVI, provider)]
    torch.testing.assert_close(values[0], values[1], rtol=0.0, atol=1.0)
    assert values[0] > 0.5 * DATA * math.log(2)


@pytest.mark.parametrize("provider", [FASTVI, FASTVI_FEW, CHECKPOINTED])
def test_a_step_is_measured_in_a_process_of_its_own(provider: str):
    found = large_k.measure(provider, 20, 2, 10)
    assert len(found["times"]) == 3
    assert all(seconds > 0 for seconds in found["times"])
    assert found["peak"] > found["bytes"] >= 0


def test_rows_chart_and_ratios(tmp_path, monkeypatch, capsys):
    image = pytest.importorskip("matplotlib.image")

    def measure(provider: str, samples: int, batch: int, chunk: int, device: str) -> dict:
        slow = 2.0 if provider == CHECKPOINTED else 1.0
        seconds = slow * 1e-4 * samples
        return {"times": [seconds, 3 * seconds], "bytes": 2**20 * slow, "peak": 2**28}

    monkeypatch.setattr(large_k, "measure", measure)
    large_k.main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "checkpointed by hand over streamed, K 2000: 2.00 (target >= 1.8)" in printed
    assert "checkpointed by hand over streamed, K 100000, memory: 2.00 (target >= 1)" in printed
    assert "checkpointed by hand over few, K 100000: 2.00 (target >= 4)" in printed
    assert "few, K 1000000: -30 MiB beside the log-weights (target <= 64)" in printed
    assert "time per sample, K 1000000 over K 10 000: 1.00" in printed
    [file], [chart] = tmp_path.glob("*.csv"), tmp_path.glob("*.png")
    rows = [row for row in read(file) if row.metric == "time"]
    assert len(rows) == len(set((*large_k.COMPARED, *large_k.CHART)))
    first = next(row for row in rows if row.provider == FASTVI and row.shape == "K2000xB20xC200")
    assert (first.p20, first.p50, first.p80) == pytest.approx((200.0, 400.0, 600.0))
    assert image.imread(chart).std() > 0
