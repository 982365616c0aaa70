"""The error of one estimate by number of directions, and by number of calls of f.

Figures 2 and 3 of arXiv 2510.19975 compare samplers at equal directions; a two-point
estimate also asks f(theta), so that equal calls are shown beside them.
"""

import functools

import jax
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.study import Cell, Row, Study, Tables, Tick, lines
from benchmarks.synthetic.estimates import METHODS, PROBLEMS, measure

QUICK_SIZES = (2, 8, 32, 128)
FULL_SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
SHOWN = 32  # in the printed tables
COUNTS = {"num_directions": "directions", "queries": "calls of f"}
DRAWN = (
    *("gaussian", "sphere", "rademacher", "coordinate", "dap-gaussian"),
    *("dap-refined", "dap-average", "orthogonal", "simplex", "rademacher-loo"),
)


def estimate(problem: str, name: str, full: bool, seed: int, tick: Tick) -> list[Row]:
    """All sizes, in both ways of counting."""
    method = METHODS[name]
    sizes = FULL_SIZES if full else QUICK_SIZES
    counts = {n for size in sizes for n in (size, size - method.extra_queries)}
    counts = sorted(n for n in counts if method.accepts(n))
    found = measure(PROBLEMS[problem], method, counts, jax.random.key(seed))
    return [{"problem": problem, "method": name} | row for row in found]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each objective and method."""
    return {
        f"{problem}/{name}": functools.partial(estimate, problem, name, full, seed)
        for problem in PROBLEMS
        for name in METHODS
    }


def tables(frame: pd.DataFrame) -> Tables:
    """One a problem and way of counting, at SHOWN directions or calls.

    Of the errors on the large entries and on all the mean, its standard error and the
    closed form; of tau-MSE and cosine the median.
    """
    stats = ["mean", "standard_error", "theory"]
    columns = [("tau_mse", "median")]
    columns += [(m, stat) for m in ("tau_error", "error") for stat in stats]
    columns += [("cosine", "median")]
    wide = {"index": "method", "columns": "measure", "sort": False}
    return {
        f"{problem}, {SHOWN} {words}": part[part[counted_by] == SHOWN]
        .pivot_table([*stats, "median"], **wide)
        .swaplevel(axis=1)
        .reindex(columns=columns)
        for problem, part in frame.groupby("problem")
        for counted_by, words in COUNTS.items()
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """How the closed forms fared, and what two stages cost at equal calls."""
    checked = frame[frame["z"].notna()]
    beyond = checked[checked["z"] > 3]
    again = checked[checked["trials"] > checked["trials"].min()]
    text = [
        f"{len(checked)} cells have a closed form: {len(beyond)} lie beyond 3 standard"
        f" errors, the farthest at {checked['z'].max():.1f}"
        f" ({len(again)} were measured again with ten times the trials)."
    ]
    errors = frame[frame["measure"].isin(("error", "tau_error"))]
    equal = errors[errors["queries"] == SHOWN]
    for (problem, name), part in equal.groupby(["problem", "measure"]):
        mean = part.set_index("method")["mean"]
        ratio = mean / mean["sphere"]
        text.append(
            f"{problem}, {SHOWN} calls, {name} against the sphere's: refined DAP"
            f" {ratio['dap-refined']:.2f}, averaged DAP {ratio['dap-average']:.2f},"
            f" Rademacher {ratio['rademacher']:.2f}, exact DAP (needs the gradient)"
            f" {ratio['dap-gaussian']:.2f}."
        )
    return text


def figure(frame: pd.DataFrame) -> Figure:
    """Errors by size: a row for each objective, a column for each way of counting."""
    panels = (
        ("num_directions", "tau_error", "entries ≥ τ, equal directions"),
        ("queries", "tau_error", "entries ≥ τ, equal calls of f"),
        ("queries", "error", "all entries, equal calls of f"),
    )
    drawn = frame[frame["method"].isin(DRAWN)]
    parts = []
    for counted_by, name, title in panels:
        part = drawn[(drawn["measure"] == name) & drawn[counted_by].isin(FULL_SIZES)]
        part = part.assign(size=part[counted_by], panel=title)
        tall = part.melt(
            ["problem", "method", "size", "panel"],
            ["mean", "theory"],
            var_name="",
            value_name="error",
        )
        parts.append(tall[tall["error"] > 1e-6])  # below: exact to rounding
    axes = {"x": "size", "y": "error", "hue": "method", "style": "", "col": "panel"}
    both = pd.concat(parts, ignore_index=True)
    return lines(both, "xy", **axes, row="problem")


STUDY = Study(
    "Variance of one estimate (arXiv 2510.19975, Figures 2 and 3)",
    cells,
    tables,
    findings,
    figure,
)
