"""Formulas as MathML: a page shows them without a script, and without anything from elsewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import latex2mathml.converter
import ziamath
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

# TeX leaves a thin space beside the name of a function; MathML leaves it to the writer.
SPACE = '<mspace width="0.1667em"/>'
FUNCTION = re.compile(
    r"(?P<before></m\w+>|&#x02202;</mo>)?(?P<name><mi>(?:log|exp|ln|max|min)</mi>)"
)
FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"


def with_spaces(mathml: str) -> str:
    def spaced(found: re.Match[str]) -> str:
        before = found["before"] or ""
        space = SPACE if before and not before.endswith("</mo>") or "2202" in before else ""
        bracket = mathml[found.end() :].startswith(("<mo stretchy", "<mrow><mo stretchy"))
        return f"{before}{space}{found['name']}{'' if bracket else SPACE}"

    return FUNCTION.sub(spaced, mathml)


def with_norms(mathml: str) -> str:
    """Keep bars of a norm as high as a letter."""
    bar = '<mo stretchy="false" form="prefix" lspace="0" rspace="0">&#x02016;</mo>'
    return mathml.replace("<mo>&#x02016;</mo>", bar)


def converted(node: nodes.Element, display: str) -> str:
    try:
        mathml = latex2mathml.converter.convert(node.astext().strip(), display=display)
        return with_norms(with_spaces(mathml))
    except Exception as error:
        logger = logging.getLogger(__name__)
        logger.warning("a formula cannot be read: %s", error, location=node)
        return f"<code>{node.astext()}</code>"


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(converted(node, "inline"))
    raise nodes.SkipNode


def visit_display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math-block"))
    if node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(converted(node, "block"))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def copy_font(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        shutil.copy(FONT, Path(app.outdir) / "_static" / FONT.name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("build-finished", copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
