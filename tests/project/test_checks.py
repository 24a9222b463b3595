"""Each check of an argument is written once: no error of two places reads the same."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def errors(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The words of each TypeError and ValueError that says what was expected, with its line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        if ast.unparse(node.exc.func) not in ("TypeError", "ValueError") or not node.exc.args:
            continue
        words = _words(node.exc.args[0])
        # Who raises it, and of which argument, is no difference.
        expected = re.sub(r"^.*?: expected ", "expected ", words)
        expected = re.sub(r"^expected [^ ]+ to ", "expected {} to ", expected)
        # The words of a helper come from elsewhere.
        if expected.startswith("expected ") and "{} to be {}, got" not in expected:
            yield node.lineno, expected


def _words(message: ast.expr) -> str:
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join("{}" if not isinstance(v, ast.Constant) else v.value for v in message.values)
    return ""


def twins(sources: dict[str, str]) -> list[list[str]]:
    places = defaultdict(list)
    for name, source in sources.items():
        for line, words in errors(ast.parse(source)):
            places[words].append(f"{name}:{line}: {words}")
    return [found for found in places.values() if len(found) > 1]


def test_no_check_has_a_twin():
    paths = sorted((ROOT / "fastvi").rglob("*.py"))
    assert twins({str(path.relative_to(ROOT)): path.read_text() for path in paths}) == []


def test_a_planted_twin_is_found():
    check = 'raise TypeError(f"{{{0}}}: expected x to be a tensor, got {{type(x).__name__}}")'
    other = 'raise TypeError(f"VAE: expected x to be a tensor, got {type(x).__name__}")'
    assert len(twins({"a.py": check.format("where"), "b.py": other})) == 1
    assert twins({"a.py": check.format("where"), "b.py": 'raise ValueError("expected y")'}) == []
