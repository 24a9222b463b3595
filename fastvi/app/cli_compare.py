"""``fastvi compare``: runs side by side, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastvi._optional import need
from fastvi.app.comparison import draw_runs, read_runs, table
from fastvi.files.saved import check_place

if TYPE_CHECKING:
    import typer
else:
    typer = need("typer", "the command line")

_RUNS_BESIDE = 3  # in a line of a terminal
_PICTURES = (".png", ".svg", ".pdf")


def compare_command(
    run: Annotated[list[Path], typer.Argument(help="Folders of runs, e.g. runs/a runs/b.")],
    output: Annotated[Path, typer.Option(help="The picture: a .png, .svg or .pdf.")] = Path(
        "compare.png"
    ),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a picture of the same name.")
    ] = False,
) -> None:
    """Compare runs on the same data: bounds against step and time, and the last ones with errors.

    Runs on different data, or with different kinds of pixels, are refused by name.
    """
    if output.suffix not in _PICTURES:
        raise ValueError(
            f"expected --output to end in {', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}, "
            f"got {output}"
        )
    need("matplotlib", "drawing pictures")
    console = need("rich.console", "the tables").Console(markup=False)
    runs = read_runs(run)
    check_place("fastvi compare", "--output", output)
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists already. Replace it with --overwrite")
    draw_runs(output, runs)
    tables, box = need("rich.table", "the tables"), need("rich.box", "the tables")
    heads, rows = table(runs)
    console.print("Held-out bounds in nats per image ± standard error, the best run first")
    for first in range(1, len(heads), _RUNS_BESIDE):
        columns = [0, *range(first, min(first + _RUNS_BESIDE, len(heads)))]
        grid = tables.Table(box=box.SIMPLE_HEAD)
        for column in columns:
            grid.add_column(heads[column], justify="right" if column else "left", overflow="fold")
        for row in rows:
            grid.add_row(*(row[column] for column in columns))
        console.print(grid)
    console.print(f"Written to {output}.", soft_wrap=True)
