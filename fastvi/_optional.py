"""Imports of optional packages, with an error that says how to install them."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, purpose: str, extra: str = "demo") -> Any:
    """Import a module of an optional extra, or raise an ImportError that names the extra."""
    package = module.split(".")[0]
    # pip does not change an installed fastvi, so this command builds nothing.
    install = f"pip install 'fastvi[{extra}]'"
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package:
            raise ImportError(
                f"{purpose} needs {package}, which is part of the optional extra {extra!r}: "
                f"{install}"
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImportError(
            f"{purpose} needs {package}, which is there but cannot be imported ({reason}); what it "
            f"is known to work with comes with {install}"
        ) from error
