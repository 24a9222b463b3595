"""A choice of products that is the test's own, and layers that oneDNN runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from layers import watched
from products import Products, own_products


@pytest.fixture
def products(tmp_path: Path) -> Iterator[Products]:
    with own_products(tmp_path) as own:
        yield own


@pytest.fixture
def calls(products: Products, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """oneDNN is forced; the layers that it runs."""
    products.restart("onednn")
    return watched(monkeypatch)
