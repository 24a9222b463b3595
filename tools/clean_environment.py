"""A fresh virtual environment that sees torch with what torch needs, and nothing else."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

BUILDERS = ("setuptools", "pip", "wheel")


def needed_by(name: str, builders: bool) -> set[str]:
    """The distribution and all that it requires here, with or without what builds packages."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop().lower().replace("_", "-")
        if one in found or (one in BUILDERS and not builders):
            continue
        try:
            distribution = importlib.metadata.distribution(one)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(one)
        for line in distribution.requires or []:
            if "extra ==" not in line:
                waiting.append(re.split(r"[^\w.-]", line)[0])
    return found


def link_torch(links: Path, builders: bool) -> None:
    """Links to torch and what it requires: pip finds it installed, and never removes it."""
    links.mkdir()
    for name in needed_by("torch", builders):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            target = Path(str(distribution.locate_file(top)))
            if target.exists() and not (links / top).exists():
                (links / top).symlink_to(target)


def make(folder: Path, pip: bool) -> tuple[Path, Path]:
    """Make the environment; its folder, and that of its packages.

    With its own pip it has the setuptools that comes along, however old; without, that of torch.
    """
    venv, links = folder / "venv", folder / "links"
    own = [] if pip else ["--without-pip"]
    subprocess.run([sys.executable, "-m", "venv", *own, str(venv)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    link_torch(links, builders=not pip)
    (site / "torch_of_the_maker.pth").write_text(f"{links}\n")
    return venv, site
