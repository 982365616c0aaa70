"""A task that is a list of studies: its command, its run, what a resumed run keeps."""

import importlib
import io
import os
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import zojax
from benchmarks import chosen, folder
from benchmarks.study import Cell, Row, Study, printed
from benchmarks.threads import run_all

SEEDS = click.IntRange(0, 10**8)  # a run uses a few for each, and they are 32-bit


def command(
    package: str,
    names: Sequence[str],
    on_demand: Mapping[str, str] | None = None,
    options: Sequence[click.Option] = (),
    prepare: Callable[..., None] = lambda **options: None,
) -> click.Command:
    """The command of a task.

    Args:
      package: of the task; a study is a module of it with a ``STUDY`` or, where the
        task has options of its own, a function ``study(**options)``.
      names: of the studies, which are those of their modules.
      on_demand: further ones that run only when asked for, with what to say of them.
      options: of the task's own.
      prepare: is called with them before anything is written.
    """
    on_demand = on_demand or {}
    task = package.rpartition(".")[2]
    also = "".join(f"; also {name}, which {what}" for name, what in on_demand.items())
    option = lambda name, help, **kind: click.Option([f"--{name}"], help=help, **kind)
    which = f"which to run, separated by commas{also}"
    jobs = {"type": click.IntRange(1), "default": min(os.cpu_count() or 1, 4)}
    where = f"folder; by default results/{task}, or results/{task}-full"
    kept = "keep the cells that the folder has; otherwise it is overwritten"
    shared = [
        option("studies", which, default=",".join(names)),
        option("full", "the papers' sizes and more seeds; resumable", is_flag=True),
        option("seed", "of noise and random objectives", type=SEEDS, default=0),
        option("jobs", "cells at a time; studies that measure time run alone", **jobs),
        option("output", where, type=click.Path(path_type=Path)),
        option("resume", kept, is_flag=True),
    ]

    def run(studies, full, seed, jobs, output, resume, **own):
        wanted = chosen("--studies", studies, [*names, *on_demand])
        prepare(**own)
        found = {}
        for name in wanted:
            module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
            found[name] = module.study(**own) if own else module.STUDY
        output = output or Path("results") / (task + ("-full" if full else ""))
        _run(found, full, seed, jobs, output, resume, own)

    about = importlib.import_module(package).__doc__
    return click.Command(
        task,
        callback=run,
        params=[*shared, *options],
        help=about,
        context_settings={"show_default": True},
    )


def _run(
    studies: dict[str, Study],
    full: bool,
    seed: int,
    jobs: int,
    output: Path,
    resume: bool,
    own: dict[str, Any],
) -> None:
    """Runs the studies, one after the other; reports each as it ends."""
    settings = {"full": full, "seed": seed, "zojax": zojax.__version__} | own
    for name in studies:
        old = ("cells", f"{name}.csv", f"{name}.png")
        folder.begin(output / name, settings, old, resume)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a file has room for the widest table
        console.width = 120
    cells = {name: study.cells(full, seed) for name, study in studies.items()}
    try:
        for name, study in studies.items():
            workers = 1 if study.timed else jobs
            _measure(study.title, cells[name], workers, output / name, console)
            _show(
                name, study, _rows(cells[name], output / name), output / name, console
            )
    except KeyboardInterrupt:
        kept = [
            f"{name} {len(of) - len(_missing(of, output / name))}/{len(of)}"
            for name, of in cells.items()
        ]
        raise KeyboardInterrupt(
            f"cells kept in {output}: {', '.join(kept)}; the same command with"
            " --resume goes on"
        ) from None


def _path(where: Path, cell: str) -> Path:
    return where / "cells" / f"{urllib.parse.quote(cell, safe=' ,=()+')}.csv"


def _kept(where: Path, cell: str) -> pd.DataFrame | None:
    """The rows of a cell, if its file is there and whole."""
    try:
        text = _path(where, cell).read_text(encoding="utf-8")
        rows = pd.read_csv(io.StringIO(text), dtype={"cell": str})
    except (OSError, ValueError):
        return None
    whole = text.endswith("\n") and len(rows) and set(rows.get("cell", ())) == {cell}
    return rows if whole else None


def _missing(cells: dict[str, Cell], where: Path) -> dict[str, Cell]:
    return {name: cell for name, cell in cells.items() if _kept(where, name) is None}


def _rows(cells: dict[str, Cell], where: Path) -> pd.DataFrame:
    """The rows of all cells, in their order, whatever the order in which they ended."""
    found = [_kept(where, name) for name in cells]
    return pd.concat(found, ignore_index=True)


def _measure(
    title: str, cells: dict[str, Cell], jobs: int, where: Path, console: Console
) -> None:
    """Runs the cells that are missing; each has a file, written as it ends."""
    missing = _missing(cells, where)
    bars = Progress(
        TextColumn(f"{title:<44.44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    bar = bars.add_task("", total=len(cells), completed=len(cells) - len(missing))

    def work(cell: Cell) -> Callable[[Callable[[], None]], list[Row]]:
        def compute(check: Callable[[], None]) -> list[Row]:
            seen = 0.0

            def tick(share: float) -> None:
                nonlocal seen
                check()
                bars.advance(bar, share - seen)
                seen = share

            rows = cell(tick)
            bars.advance(bar, 1 - seen)
            return rows

        return compute

    def keep(name: str, rows: list[Row]) -> None:
        table = pd.DataFrame(rows).assign(cell=name)
        folder.save(_path(where, name), table.to_csv(index=False))

    with bars:
        run_all({name: work(cell) for name, cell in missing.items()}, jobs, keep)


def _show(
    name: str, study: Study, frame: pd.DataFrame, where: Path, console: Console
) -> None:
    """Prints and draws what the rows say, and puts them into one file."""
    folder.save(where / f"{name}.csv", frame.to_csv(index=False))
    for table in printed(study.tables(frame)):
        console.print(table)
    # In a pipe each of these is one line.
    say = lambda text: console.print(text, soft_wrap=not console.is_terminal)
    for sentence in study.findings(frame):
        say(f"- {sentence}")
    folder.draw(where / f"{name}.png", study.figure(frame))
    say(f"Written: {where / f'{name}.csv'}, {where / f'{name}.png'}\n")
