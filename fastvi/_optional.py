"""Optional packages: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, purpose: str, extra: str = "demo") -> Any:
    """Import a module of an optional extra, or raise an ImportError that names the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(
            f"{purpose} needs {package}, which is part of the optional extra {extra!r}: "
            f"pip install 'fastvi[{extra}]'"
        ) from error
