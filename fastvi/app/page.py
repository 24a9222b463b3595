"""A self-contained page, without scripts, files and fonts from elsewhere."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Rows = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Picture:
    """Hold a picture with its two sentences: what to look for, and what to do.

    ``file`` is its name beside the page, for a page of plain text.
    """

    title: str
    png: bytes
    look: str
    do: str
    file: str = ""


@dataclass(frozen=True)
class Table:
    """Hold the heads of a table and its rows; the numbers begin in the second column."""

    heads: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Section:
    """Hold a heading and the paragraphs, lists, tables and pictures under it."""

    title: str
    blocks: Sequence[str | list[str] | Table | Picture]


# The page can load nothing, and nothing in it can run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; color: #1f2933;
  background: #fff; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid #e4e8ec; }
p, ul { max-width: 46rem; }
.facts { color: #52606d; margin: 0; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
a { color: #1d6fb8; }
.advice li { margin: .4rem 0; }
.beside { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; border: 1px solid #e4e8ec; border-radius: .5rem; padding: .75rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: .5rem; font-size: .95rem; }
figcaption p { margin: .35rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; overflow-wrap: normal; }
th, td { padding: .25rem .75rem .25rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e4e8ec; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
th { color: #52606d; font-weight: 600; }
"""


def render(title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> str:
    """Return the page as HTML; all given text is escaped."""
    return "\n".join(_lines(title, facts, sections)) + "\n"


def _lines(title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> Iterator[str]:
    say = html.escape
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{say(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>"
    yield f"<h1>{say(title)}</h1>"
    line = "; ".join(f"{name}: {value}" for name, value in facts.items())
    yield f'<p class="facts">{say(line)}.</p>'
    links = (f'<a href="#s{n}">{say(part.title)}</a>' for n, part in enumerate(sections))
    yield f"<nav>{' '.join(links)}</nav>"
    for number, section in enumerate(sections):
        yield f'<section>\n<h2 id="s{number}">{say(section.title)}</h2>'
        for beside, blocks in itertools.groupby(section.blocks, _stands_beside):
            if beside:
                yield '<div class="beside">'
            for block in blocks:
                yield from _block(block)
            if beside:
                yield "</div>"
        yield "</section>"
    yield "</body>\n</html>"


def _stands_beside(block: str | list[str] | Table | Picture) -> bool:
    """Return whether a block shares its line with the next one, if there is room."""
    return isinstance(block, (Table, Picture))


def _block(block: str | list[str] | Table | Picture) -> Iterator[str]:
    if isinstance(block, str):
        yield f"<p>{html.escape(block)}</p>"
    elif isinstance(block, list):
        items = "".join(f"<li>{html.escape(item)}</li>" for item in block)
        yield f'<ul class="advice">{items}</ul>'
    elif isinstance(block, Table):
        yield from _table(block)
    else:
        yield from _picture(block)


def _picture(picture: Picture) -> Iterator[str]:
    data = base64.b64encode(picture.png).decode()
    alt = html.escape(picture.title)
    yield f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
    yield f"<figcaption><p><b>Look for:</b> {html.escape(picture.look)}</p>"
    yield f"<p><b>Do:</b> {html.escape(picture.do)}</p></figcaption></figure>"


def _table(table: Table) -> Iterator[str]:
    yield '<div class="wide"><table>'
    yield "<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in table.heads) + "</tr>"
    for row in table.rows:
        yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></div>"


def render_markdown(title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> str:
    """Return the page as Markdown, with the pictures that have a file of their own."""
    lines = [f"# {title}", "", "; ".join(f"{name}: {value}" for name, value in facts.items()) + "."]
    for section in sections:
        shown = [b for b in section.blocks if not isinstance(b, Picture) or b.file]
        if shown:
            lines += ["", f"## {section.title}"]
        for block in shown:
            lines.append("")
            if isinstance(block, str):
                lines.append(block)
            elif isinstance(block, list):
                lines += [f"- {item}" for item in block]
            elif isinstance(block, Table):
                lines.append(f"| {' | '.join(block.heads)} |")
                lines.append(f"|{'---|' * len(block.heads)}")
                lines += [f"| {' | '.join(row)} |" for row in block.rows]
            else:
                lines += [f"![{block.title}]({block.file})", "", f"{block.look} {block.do}"]
    return "\n".join(lines) + "\n"
