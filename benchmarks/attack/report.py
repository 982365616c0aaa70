"""What the attack found: statistics, a table, a conclusion and two figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure  # no pyplot: draws with Agg, without a display
from rich import box
from rich.table import Table

from benchmarks.attack.results import Row, capped_queries
from benchmarks.study import COLOURS

FAMILIES = dict(
    zip(("mean", "zoar", "dap", "simplex", "vanilla"), COLOURS, strict=False)
)

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


def success_rate(rows: Sequence[Row]) -> float:
    return sum(row.success for row in rows) / len(rows)


def best_method(results: Mapping[str, Sequence[Row]], budget: int) -> str:
    """The method that spends the fewest queries per image on average."""
    return min(results, key=lambda name: capped_queries(results[name], budget).mean())


# -- words -----------------------------------------------------------------------------


def _count(queries: float) -> str:
    return f"{queries:,.0f}" if np.isfinite(queries) else "-"


def _to_success(rows: Sequence[Row]) -> list[float]:
    """Queries to the first success; a failure is beyond the budget."""
    return [row.queries if row.success else np.inf for row in rows]


def row(rows: Sequence[Row], budget: int) -> str:
    """A method in a line, as it ends."""
    low, high = wilson(sum(row.success for row in rows), len(rows))
    median = np.percentile(_to_success(rows), 50, method="inverted_cdf")
    needed = _count(median) if np.isfinite(median) else f"over {budget:,}"
    share = f"{success_rate(rows):.0%} [{low:.0%}, {high:.0%}] broken"
    return f"{share}, {needed} queries for half of the images"


def table(
    title: str,
    results: Mapping[str, Sequence[Row]],
    labels: Mapping[str, str],
    budget: int,
) -> Table:
    """One line a method, a row an image."""
    out = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        caption="Success: in brackets Wilson's 95% interval. Queries to the first"
        " success: median, in brackets quartiles; -: beyond the budget,"
        f" {budget:,}. L2 (median) and Linf (largest) at that success.",
        caption_justify="left",
    )
    out.add_column("method", no_wrap=True)
    for heading in ("step", "success", "queries", "L2", "Linf"):
        out.add_column(heading, justify="right", no_wrap=True)

    for name, rows in results.items():
        wins = [row for row in rows if row.success]
        low, high = wilson(len(wins), len(rows))
        # Of what was observed, nothing in between.
        spent = _to_success(rows)
        first, median, third = np.percentile(spent, (25, 50, 75), method="inverted_cdf")
        rates = sorted({row.learning_rate for row in rows})
        out.add_row(
            labels[name],
            "/".join(f"{rate:g}" for rate in rates),
            f"{len(wins) / len(rows):.0%} [{low:.0%}, {high:.0%}]",
            f"{_count(median)} [{_count(first)}, {_count(third)}]",
            f"{np.median([row.l2 for row in wins]):.2f}" if wins else "-",
            f"{max(row.linf for row in wins):.3f}" if wins else "-",
        )
    return out


def conclusion(
    results: Mapping[str, Sequence[Row]], labels: Mapping[str, str], budget: int
) -> str:
    """One sentence, computed: who spends the fewest queries, and is that clear.

    Methods are compared image by image with an exact sign test at the 5% level, divided
    by the number of pairs of methods (Bonferroni).
    """
    if not any(row.success for rows in results.values() for row in rows):
        return f"No method broke an image with {budget:,} queries."
    best = best_method(results, budget)
    mean = capped_queries(results[best], budget).mean()
    text = (
        f"{labels[best]} spent the fewest queries per image, {mean:,.0f} on average"
        f" with failures at {budget:,}"
    )
    # A failure never beats a failure, whatever was left of the budget.
    spent = {name: np.array(_to_success(rows)) for name, rows in results.items()}
    pairs = math.comb(len(results), 2)  # the best one was chosen among all
    clear, unclear = [], []
    for name in results:
        if name == best:
            continue
        wins = int((spent[best] < spent[name]).sum())
        losses = int((spent[best] > spent[name]).sum())
        is_clear = wins > losses and sign_test(wins, losses) < 0.05 / pairs
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
    """A broken image: f[h, w, c], (prediction, confidence) before and after."""

    original: np.ndarray
    adversarial: np.ndarray
    before: tuple[int, float]
    after: tuple[int, float]
    queries: int


def examples_figure(examples: Sequence[Example], title: str, bound: float) -> Figure:
    """Originals, perturbations and attacked images, a column each."""
    n = max(len(examples), 1)
    figure = Figure(figsize=(1.15 * n + 2.0, 4.7), layout="constrained")
    found = "the first image of each class that it broke"
    figure.suptitle(
        f"{title}: {found if examples else 'no image was broken'}", fontsize=11
    )
    axes = figure.subplots(3, n, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    diverging = {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}

    def show(axis, image, style):
        """Colour images as they are; a change of colour by its mean over channels."""
        is_grey = image.shape[-1] == 1 or style is diverging
        image = image.mean(axis=-1) if is_grey else image
        return axis.imshow(image, **style, interpolation="nearest")

    for column, example in zip(axes.T, examples, strict=False):
        show(column[0], example.original, grey)
        shown = show(column[1], example.adversarial - example.original, diverging)
        show(column[2], example.adversarial, grey)
        (label, sure), (fooled, convinced) = example.before, example.after
        column[0].set_title(f"{label}  ({sure:.0%})", fontsize=10)
        column[2].set_xlabel(
            f"{label} → {fooled}  ({convinced:.0%})\n{example.queries:,} queries",
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


def _style(name: str) -> dict[str, str]:
    """A colour for each estimator, a line for each sampler."""
    family, _, sampler = name.partition("-")
    lines = {"": "-", "sphere": "--", "rademacher": ":"}
    return {"color": FAMILIES[family], "linestyle": lines[sampler]}


def success_figure(
    panels: Mapping[str, Mapping[str, Sequence[Row]]],
    labels: Mapping[str, str],
    budget: int,
    ceiling: float,
    title: str,
) -> Figure:
    """Share of images broken against queries, and the white-box share.

    Args:
      panels: rows of each method, by the title of a panel.
      labels: of the methods.
      budget: queries of an attack.
      ceiling: share that the white-box attack breaks.
      title: of the figure.
    """
    figure = Figure(figsize=(6.3 * len(panels), 5.8), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (panel, results) in zip(axes, panels.items(), strict=True):
        axis.axhline(100 * ceiling, color="black", linewidth=1, linestyle=(0, (4, 3)))
        axis.annotate(
            f"white-box gradient, same bounds: {ceiling:.0%}",
            (budget, 100 * ceiling),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
        for name, rows in results.items():
            queries = sorted(row.queries for row in rows if row.success)
            share = 100 * np.arange(len(queries) + 1) / len(rows)
            axis.step(
                [0, *queries, budget],
                [*share, share[-1]],
                where="post",
                linewidth=1.8,
                label=f"{labels[name]}  {success_rate(rows):.0%}",
                **_style(name),
            )
        axis.set(xlim=(0, budget), ylim=(0, 103), xlabel="queries per image")
        axis.set_title(panel, fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(
            frameon=False,
            fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=3,
        )
    num_images = len(next(iter(next(iter(panels.values())).values())))
    axes[0].set_ylabel(f"broken, % of {num_images} images")
    return figure
