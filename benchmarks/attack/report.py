"""What the attack found: statistics, a table, a conclusion and two figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure  # no pyplot: draws with Agg, without a display
from rich import box
from rich.table import Table

from benchmarks.attack.results import Row

COLOURS = ("#9a9a9a", "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # safe for all eyes


# -- statistics ------------------------------------------------------------------------


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a proportion (95% by default)."""
    p, share = successes / trials, z * z / trials
    centre = (p + share / 2) / (1 + share)
    half = z * math.sqrt(p * (1 - p) / trials + share / (4 * trials)) / (1 + share)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test; ties are left out beforehand."""
    n = wins + losses
    tail = sum(math.comb(n, i) for i in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n)


def capped_queries(rows: Sequence[Row], budget: int) -> np.ndarray:
    """Queries to the first success; a failure counts at the cap, the whole budget."""
    return np.array([row.queries if row.success else budget for row in rows])


def success_rate(rows: Sequence[Row]) -> float:
    return sum(row.success for row in rows) / len(rows)


def best_method(results: Mapping[str, Sequence[Row]], budget: int) -> str:
    """The method that spends the fewest queries per image on average."""
    return min(results, key=lambda name: capped_queries(results[name], budget).mean())


# -- words -----------------------------------------------------------------------------


def table(
    results: Mapping[str, Sequence[Row]],
    labels: Mapping[str, str],
    costs: Mapping[str, int],
    budget: int,
) -> Table:
    """One line a method."""
    out = Table(
        box=box.SIMPLE_HEAD,
        caption=f"In brackets: Wilson's 95% interval; quartiles. A failure counts as"
        f" {budget:,} queries, the budget; -: beyond it. L2 (median) and Linf (largest)"
        " of the perturbation at the first success.",
        caption_justify="left",
    )
    out.add_column("method", no_wrap=True)
    for heading in (
        "queries\na step",
        "success\nrate",
        "median queries\nto success",
        "L2",
        "Linf",
    ):
        out.add_column(heading, justify="right", no_wrap=True)

    def count(queries):
        return f"{queries:,.0f}" if queries < budget else "-"

    for name, rows in results.items():
        wins = [row for row in rows if row.success]
        low, high = wilson(len(wins), len(rows))
        first, median, third = np.percentile(capped_queries(rows, budget), (25, 50, 75))
        out.add_row(
            labels[name],
            str(costs[name]),
            f"{len(wins) / len(rows):.0%} [{low:.0%}, {high:.0%}]",
            f"{count(median)} [{count(first)}, {count(third)}]",
            f"{np.median([row.l2 for row in wins]):.2f}" if wins else "-",
            f"{max(row.linf for row in wins):.3f}" if wins else "-",
        )
    return out


def conclusion(
    results: Mapping[str, Sequence[Row]], labels: Mapping[str, str], budget: int
) -> str:
    """One sentence, computed: who spends the fewest queries, and is that clear.

    Methods are compared image by image with an exact sign test at the 5% level, divided
    by the number of comparisons (Bonferroni).
    """
    if not any(row.success for rows in results.values() for row in rows):
        return f"No method broke a digit with {budget:,} queries."
    best = best_method(results, budget)
    mean = capped_queries(results[best], budget).mean()
    text = (
        f"{labels[best]} spent the fewest queries per image, {mean:,.0f} on average"
        f" with failures at {budget:,}"
    )
    # A failure never beats a failure, whatever was left of the budget.
    spent = {
        name: np.array([row.queries if row.success else np.inf for row in rows])
        for name, rows in results.items()
    }
    clear, unclear = [], []
    for name in results:
        if name == best:
            continue
        wins = int((spent[best] < spent[name]).sum())
        losses = int((spent[best] > spent[name]).sum())
        is_clear = wins > losses and sign_test(wins, losses) < 0.05 / (len(results) - 1)
        (clear if is_clear else unclear).append(
            f"{labels[name]} (ahead on {wins}, behind on {losses})"
        )
    if clear:
        text += "; image by image clearly fewer than " + ", ".join(clear)
    if unclear:
        text += "; not clearly fewer than " + ", ".join(unclear)
    return text + "."


# -- figures ---------------------------------------------------------------------------


class Example(NamedTuple):
    """A broken digit: images f[28, 28], (prediction, confidence) before and after."""

    original: np.ndarray
    adversarial: np.ndarray
    before: tuple[int, float]
    after: tuple[int, float]
    queries: int


def examples_figure(examples: Sequence[Example], label: str, bound: float) -> Figure:
    """Originals, perturbations and attacked digits, a column each."""
    n = max(len(examples), 1)
    figure = Figure(figsize=(1.15 * n + 2.0, 4.7), layout="constrained")
    found = "the first digit of each class that it turned into the next one"
    figure.suptitle(
        f"{label}: {found if examples else 'no digit was broken'}", fontsize=11
    )
    axes = figure.subplots(3, n, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    diverging = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}
    for column, example in zip(axes.T, examples, strict=False):
        column[0].imshow(example.original, **grey)
        shown = column[1].imshow(
            example.adversarial - example.original, interpolation="nearest", **diverging
        )
        column[2].imshow(example.adversarial, **grey)
        (digit, sure), (fooled, convinced) = example.before, example.after
        column[0].set_title(f"{digit}  ({sure:.0%})", fontsize=10)
        column[2].set_xlabel(
            f"{digit} → {fooled}  ({convinced:.0%})\n{example.queries:,} queries",
            fontsize=9,
            color="#b2182b",
        )
    for axis, name in zip(
        axes[:, 0], ("original", "perturbation", "attacked"), strict=True
    ):
        axis.set_ylabel(name, fontsize=10)
    if examples:
        bar = figure.colorbar(shown, ax=list(axes[1]), ticks=[-bound, 0, bound])
        bar.set_label("change of a pixel", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure


def success_figure(
    results: Mapping[str, Sequence[Row]],
    labels: Mapping[str, str],
    budget: int,
    ceiling: float,
) -> Figure:
    """Share of images broken against queries, and the white-box share."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.axhline(100 * ceiling, color="black", linewidth=1, linestyle=(0, (4, 3)))
    axis.annotate(
        f"white-box gradient, same bounds: {ceiling:.0%}",
        (budget, 100 * ceiling),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    for colour, (name, rows) in zip(COLOURS, results.items(), strict=False):
        queries = sorted(row.queries for row in rows if row.success)
        share = 100 * np.arange(len(queries) + 1) / len(rows)
        rate = success_rate(rows)
        low, high = wilson(sum(row.success for row in rows), len(rows))
        axis.step(
            [0, *queries, budget],
            [*share, share[-1]],
            where="post",
            color=colour,
            linewidth=2,
            label=f"{labels[name]}  {rate:.0%} [{low:.0%}, {high:.0%}]",
        )
    num_images = len(next(iter(results.values())))
    axis.set(
        xlim=(0, budget),
        ylim=(0, 100),
        xlabel="queries per image",
        ylabel=f"broken, % of {num_images} digits",
        title="Targeted black-box attack at equal queries",
    )
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9, loc="upper left")
    return figure
