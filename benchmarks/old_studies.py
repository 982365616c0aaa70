"""A task that is a list of studies: its options, its run, what a resumed run keeps."""

from __future__ import annotations

import argparse
import importlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
from benchmarks import UsageError, names_of, whole_number
from benchmarks.old_folder import Folder
from benchmarks.study import Cell, Row, Study
from benchmarks.threads import run_all

LARGEST_SEED = 10**8  # a run uses a few seeds for each, and they are 32-bit


def add_arguments(
    parser: argparse.ArgumentParser,
    studies: Mapping[str, str],
    also: Mapping[str, str] | None = None,
) -> None:
    """Declares the options of a task.

    Args:
      parser: the task's.
      studies: module of each study, by name.
      also: those that run only when asked for, with what to say of them.
    """
    also = also or {}
    add = parser.add_argument
    add(
        "--studies",
        type=names_of("study", studies),
        default=",".join(name for name in studies if name not in also),
        help="which to run, separated by commas"
        + "".join(f"; also {name}, which {what}" for name, what in also.items()),
    )
    add(
        "--full",
        action="store_true",
        help="the papers' sizes and more seeds; resumable",
    )
    add(
        "--seed", type=whole_number(0), default=0, help="of noise and random objectives"
    )
    add(
        "--jobs",
        type=whole_number(1),
        default=min(os.cpu_count() or 1, 4),
        help="cells at a time; studies that measure time run alone",
    )
    add(
        "--output",
        type=Path,
        help="folder; by default results/TASK, or results/TASK-full",
    )
    add(
        "--resume",
        action="store_true",
        help="keep the cells that the folder has; otherwise it is overwritten",
    )


def run(args: argparse.Namespace, studies: Mapping[str, str], **options: Any) -> None:
    """Runs the studies asked for, one after the other; reports each as it ends.

    Modules hold a STUDY or, where a task has options of its own, study(**options).
    """
    if args.seed > LARGEST_SEED:
        raise UsageError(f"--seed must be at most {LARGEST_SEED}, got {args.seed}")
    if args.output is None:
        args.output = Path("results") / (args.task + ("-full" if args.full else ""))
    settings = {"full": args.full, "seed": args.seed, "zojax": zojax.__version__}
    settings |= options
    load = importlib.import_module
    chosen: dict[str, Study] = {
        name: load(module).study(**options) if options else load(module).STUDY
        for name, module in studies.items()
        if name in args.studies
    }
    folders = {name: Folder(args.output / name) for name in chosen}
    for name, folder in folders.items():
        old = [folder.path / f"{name}.{end}" for end in ("csv", "png")]
        folder.begin(settings, old, args.resume)
    console = Console(highlight=False)
    try:
        for name, study in chosen.items():
            frame = _measure(name, study, args, folders[name], console)
            _show(name, study, frame, folders[name], console)
    except KeyboardInterrupt:
        kept = []
        for name, study in chosen.items():
            cells = study.cells(args.full, args.seed)
            rows = _load(folders[name].path / f"{name}.csv", cells)
            found = 0 if rows is None else rows["cell"].nunique()
            kept.append(f"{name} {found}/{len(cells)}")
        raise KeyboardInterrupt(
            f"cells kept in {args.output}: {', '.join(kept)}; the same command with"
            " --resume goes on"
        ) from None


def _load(path: Path, cells: dict[str, Cell]) -> pd.DataFrame | None:
    """The rows of a study that are there and belong to its cells."""
    try:
        text = path.read_text(encoding="utf-8")
        frame = pd.read_csv(io.StringIO(text))
        frame = frame[frame["cell"].isin(cells)]
    except (OSError, ValueError, KeyError):
        return None
    if len(frame) and not text.endswith("\n"):  # cut off: the last cell is not whole
        frame = frame[frame["cell"] != frame["cell"].iloc[-1]]
    return frame if len(frame) else None


def _measure(
    name: str, study: Study, args: argparse.Namespace, folder: Folder, console: Console
) -> pd.DataFrame:
    """Runs the cells that are missing; the CSV is replaced after each."""
    cells = study.cells(args.full, args.seed)
    path = folder.path / f"{name}.csv"
    frames = []
    if args.resume and (kept := _load(path, cells)) is not None:
        frames.append(kept)
    done = set() if not frames else set(frames[0]["cell"])
    bars = Progress(
        TextColumn(f"{study.title:<44.44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    bar = bars.add_task("", total=len(cells), completed=len(done))

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

    def keep(cell_name: str, rows: list[Row]) -> None:
        found = pd.DataFrame(rows).assign(cell=cell_name)
        folder.save(path, pd.concat([*frames, found]).to_csv(index=False).encode())
        frames.append(found)

    missing = {name: work(cell) for name, cell in cells.items() if name not in done}
    with bars:
        run_all(missing, 1 if study.timed else args.jobs, keep)
    # In the order of the study, whatever the order in which cells ended.
    frame = pd.concat(frames)
    order = {cell: i for i, cell in enumerate(cells)}
    frame = frame.sort_values("cell", key=lambda c: c.map(order), kind="stable")
    folder.save(path, frame.to_csv(index=False).encode())
    return frame.reset_index(drop=True)


def _show(
    name: str, study: Study, frame: pd.DataFrame, folder: Folder, console: Console
) -> None:
    for table in study.tables(frame):
        console.print(table)
    # In a pipe each of these is one line.
    say = lambda text: console.print(text, soft_wrap=not console.is_terminal)
    for sentence in study.findings(frame):
        say(f"- {sentence}")
    path = folder.path / f"{name}.png"
    folder.draw(path, study.figure(frame))
    say(f"Written: {folder.path / f'{name}.csv'}, {path}\n")
