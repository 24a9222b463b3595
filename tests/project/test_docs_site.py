"""The documentation site: what its pages show runs, and what there is stands on a page."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pages import PLACES, public

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
SHOWN = sorted(
    page
    for pages in ("use/*.md", "concepts/*.md", "coming_from/*.md", "backward_samples.md")
    for page in DOCS.glob(pages)
    if "\n```python\n" in page.read_text()
)
TUTORIALS = ("drop_in", "large_k", "discrete", "bayesian", "counts")


def by_name(pages: list[Path]) -> list:
    return [pytest.param(page, id=str(page.relative_to(DOCS))) for page in pages]


@pytest.mark.slow
@pytest.mark.parametrize("page", by_name(SHOWN))
def test_code_of_a_page_runs(page: Path):
    if "pyro" in (text := page.read_text()):
        pytest.importorskip("pyro")
    names: dict = {}
    for index, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
        exec(compile(block, f"{page.name}, block {index}", "exec"), names)


@pytest.mark.parametrize("place", PLACES)
def test_every_public_name_is_in_the_reference(place: str):
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        pytest.skip(str(error))
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"auto(?:class|function):: (\w+)", text))
    kinds = {name: getattr(module, name) for name in public(module)}
    wanted = {name for name, kind in kinds.items() if not isinstance(kind, (ModuleType, str))}
    assert wanted - shown == set()


def links(page: Path) -> set[str]:
    """The pages that a page leads to: links, cards and its tables of contents."""
    text = page.read_text()
    found = set(re.findall(r"\]\(([\w./-]+)\.md", text) + re.findall(r":link: (\S+)", text))
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, re.S):
        found |= {line for line in tree.splitlines() if line and not line.startswith(":")}
    targets = [DOCS / f"{to[1:]}.md" if to[0] == "/" else page.parent / f"{to}.md" for to in found]
    return {str(target.resolve().relative_to(ROOT)) for target in targets}


def test_every_page_is_reached():
    reached, new = set(), {"docs/index.md"}
    while new:
        reached |= new
        found = set().union(*(links(ROOT / page) for page in new))
        new = {page for page in found if (ROOT / page).exists()} - reached
    assert {str(page.relative_to(ROOT)) for page in PAGES} - reached == set()


@pytest.mark.parametrize("tutorial", TUTORIALS)
def test_a_tutorial_is_one_click_away(tutorial: str):
    page = f"docs/tutorials/{tutorial}.md"
    assert page in links(DOCS / "index.md")
    text = (ROOT / page).read_text()
    assert text.count("```{code-cell} ipython3") >= 4 and "plt.show()" in text


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    for module in ("sphinx", "furo", "myst_nb", "sphinx_design", "sphinx_copybutton", "ziamath"):
        pytest.importorskip(module)
    pytest.importorskip("scvi", reason="the reference of fastvi.integrations.scvi needs it")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for tutorial in TUTORIALS:
        html = (tmp_path / "html/tutorials" / f"{tutorial}.html").read_text()
        assert html.count("image/svg") + html.count(".svg") >= 3
