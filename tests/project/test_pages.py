"""The pages that are made from the code say what the code says."""

from __future__ import annotations

import pytest

pytest.importorskip("pyro")
pytest.importorskip("lightning")
pytest.importorskip("zuko")

from pages import PAGES, ROOT  # noqa: E402


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p == "families.md" else p for p in PAGES],
)
def test_page_is_up_to_date(page: str):
    told = f"docs/{page} is not what the code says; run python tests/support/pages.py"
    assert (ROOT / "docs" / page).read_text() == PAGES[page](), told
