"""Methods compared: how many images they break, and with how many queries."""

import base64
import functools
import io
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import seaborn
from matplotlib import image as png
from matplotlib.figure import Figure
from scipy.stats import binomtest

from benchmarks.attack import engine, victim
from benchmarks.attack.engine import BOUND, GOALS, METHODS
from benchmarks.study import COLOURS, Cell, Row, Study, Tables, Tick

# Images, goals and methods: by default what a newcomer should see in a minute.
QUICK = 50, ["targeted"], ["vanilla", "mean-rademacher", "zoar", "dap"]
FULL = 100, list(GOALS), list(METHODS)
PAPER_RATE = 0.01


LogProbs = Callable[[jax.Array], jax.Array]


def problem(log_probs: LogProbs, victims: victim.Images, goal: str) -> tuple:
    """What an attack takes: the loss, the images, and the classes that it is about."""
    loss = engine.objective(GOALS[goal], lambda image: log_probs(image[None])[0])
    asked = GOALS[goal].asked(victims.labels)
    return loss, jnp.asarray(victims.images), jnp.asarray(asked)


def measure(
    log_probs: LogProbs,
    victims: victim.Images,
    white_box: np.ndarray,
    names: dict,
    options: dict,
    seed: int,
    tick: Tick,
) -> list[Row]:
    """A row for each learning rate and image, some of them with a picture."""
    method = METHODS[names["method"]]
    loss, images, asked = problem(log_probs, victims, names["goal"])
    # A key for each image: independent trials, with one noise for all methods.
    noise_key, places = jax.random.fold_in(jax.random.key(seed), 2), victims.rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(noise_key, jnp.asarray(places))
    state = engine.attack(method, loss, images, asked, keys, **options, tick=tick)
    each = {"image": places, "label": victims.labels, "white_box": white_box}
    rates = pd.DataFrame({"learning_rate": options["learning_rates"]})
    frame = rates.merge(pd.DataFrame(each), how="cross").assign(
        **names,
        queries=np.where(state.success, state.queries, np.inf).T.ravel(),
        cost=method.cost,
        budget=options["queries"],
    )
    broken = tuned(frame).query("queries < inf")
    for place in broken.groupby("label").head(1).index:
        rate, image = divmod(place, len(images))
        attacked = engine.perturb(state.theta[image, rate], images[image])
        frame.loc[place, "said"] = int(log_probs(attacked[None]).argmax())
        frame.loc[place, "picture"] = picture(victims.images[image], attacked)
    return frame.to_dict("records")


def picture(image: np.ndarray, attacked: jax.Array) -> str:
    """Original, change and attacked image, as text: a cell is a CSV file."""
    change = 0.5 + (attacked - image) / (2 * BOUND)
    strip, file = np.concatenate([image, change, attacked]).clip(0, 1), io.BytesIO()
    png.imsave(file, np.broadcast_to(strip, (*strip.shape[:2], 3)), format="png")
    return base64.b64encode(file.getvalue()).decode()


# -- what is shown ---------------------------------------------------------------------


def capped(frame: pd.DataFrame) -> pd.Series:
    """Queries to the first success; of a failure the whole budget."""
    return frame["queries"].clip(upper=frame["budget"])


def tuned(frame: pd.DataFrame) -> pd.DataFrame:
    """A row an image, its learning rate chosen on images that are not counted with it.

    The images are dealt into two halves; each takes the learning rate with which the
    other half needs the fewest queries on average.
    """
    case, rate = ["goal", "method"], "learning_rate"
    half = frame.groupby([*case, rate]).cumcount() % 2
    others = frame.assign(half=1 - half, capped=capped(frame))
    means = others.groupby([*case, "half", rate])["capped"].mean()
    best = means.groupby([*case, "half"]).idxmin().str[-1].rename("best")
    joined = frame.assign(half=half).join(best, on=[*case, "half"])
    return joined[joined[rate] == joined["best"]]


def panels(frame: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """A row an image and method, by goal and by how the learning rate is chosen."""
    paper = frame[frame["learning_rate"] == PAPER_RATE]
    chosen = {"chosen on other images": tuned(frame), "the paper's, 0.01": paper}
    return {
        (goal, rate): rows
        for rate, some in chosen.items()
        for goal, rows in some.groupby("goal", sort=False)
    }


def share(queries: pd.Series) -> str:
    """The share that is broken, with Wilson's 95% interval."""
    broken = int((queries < np.inf).sum())
    found = binomtest(broken, len(queries)).proportion_ci(method="wilson")
    low, high = 100 * found.low, 100 * found.high
    return f"{broken / len(queries):.0%} [{low:.0f}, {high:.0f}]"


def tables(frame: pd.DataFrame) -> Tables:
    """A row a method, a table for each goal and choice of the learning rate."""
    out = {}
    for (goal, rate), rows in panels(frame.assign(capped=capped(frame))).items():
        methods = rows.groupby("method", sort=False)
        # Of what was observed, nothing in between.
        median = methods["queries"].quantile(0.5, interpolation="lower")
        columns = {
            "queries a step": methods["cost"].first(),
            "least rate": methods["learning_rate"].min(),
            "largest rate": methods["learning_rate"].max(),
            "broken [95%]": methods["queries"].agg(share),
            "median queries": median.replace(np.inf, np.nan),
            "mean, failures at budget": methods["capped"].mean().round(),
        }
        title = f"{goal.capitalize()}: {GOALS[goal].words}; learning rate {rate}"
        out[title] = pd.DataFrame(columns)
    return out


def conclusion(rows: pd.DataFrame) -> str:
    """Who spends the fewest queries per image, and is that clear?

    Methods are compared image by image with an exact sign test at the 5% level, divided
    by the number of pairs of methods (Bonferroni), since the best is chosen among all.
    """
    budget = rows["budget"].iloc[0]
    means = capped(rows).groupby(rows["method"], sort=False).mean()
    best, pairs = means.idxmin(), math.comb(len(means), 2)
    if means[best] == budget:
        return f"no method broke an image with {budget:,} queries"
    # A failure never beats a failure, whatever was left of the budget.
    spent = rows.pivot(index="image", columns="method", values="queries")
    verdicts = {"clearly": [], "not clearly": []}
    for name in means.index.drop(best):
        wins = int((spent[best] < spent[name]).sum())
        losses = int((spent[best] > spent[name]).sum())
        clear = wins > losses and binomtest(wins, wins + losses).pvalue < 0.05 / pairs
        line = f"{name} (ahead on {wins}, behind on {losses})"
        verdicts["clearly" if clear else "not clearly"].append(line)
    lead = f"{best} spent the fewest queries per image, {means[best]:,.0f} on average"
    told = [f"{how} fewer than {', '.join(x)}" for how, x in verdicts.items() if x]
    return "; ".join([f"{lead} with failures at {budget:,}", *told])


def findings(frame: pd.DataFrame) -> list[str]:
    """The victim, what exact gradients break, and a conclusion for each table."""
    accuracy, number = frame["accuracy"].iloc[0], frame["image"].nunique()
    out = [
        f"The classifier knows {accuracy:.1%} of held-out digits, {number} attacked."
    ]
    for goal, ceiling in frame.groupby("goal", sort=False)["white_box"].mean().items():
        words = "50 signed steps along exact gradients break"
        out.append(f"{goal}: {words} {ceiling:.0%} within the same bounds (+-{BOUND}).")
    for (goal, rate), rows in panels(frame).items():
        words = "one classifier, one seed"
        out.append(f"{goal}, learning rate {rate}, {words}: {conclusion(rows)}.")
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Share of images broken against queries, and the best method's examples."""
    parts = pd.concat(panels(frame), names=["goal", "rate"]).drop(columns="goal")
    budget, methods = frame["budget"].iloc[0], frame["method"].nunique()
    # Failures end beyond what is shown.
    ends = parts.replace({"queries": np.inf}, 2 * budget).reset_index()
    grid = seaborn.displot(
        ends,
        x="queries",
        hue="method",
        row="goal",
        col="rate",
        kind="ecdf",
        stat="percent",
        palette=list(COLOURS[:methods]),
        facet_kws={"xlim": (0, budget), "ylim": (0, 103)},
    )
    for (goal, _), axes in grid.axes_dict.items():
        ceiling = ends.loc[ends["goal"] == goal, "white_box"].mean()
        axes.axhline(100 * ceiling, color="black", linestyle=":")
    grid.set_axis_labels("queries (dotted: exact gradients)", "broken, %")
    best = capped(tuned(frame)).groupby(frame["method"], sort=False).mean().idxmin()
    shown = frame[frame["method"] == best].dropna(subset="picture")
    if len(shown):
        width, height = grid.figure.get_size_inches()
        grid.figure.set_size_inches(width, height + 3)  # room below for the examples
        grid.figure.subplots_adjust(bottom=3.6 / (height + 3))
        axes = grid.figure.add_axes((0.05, 0.6 / (height + 3), 0.9, 2 / (height + 3)))
        axes.set(title=f"{best}: original, change, attacked", yticks=[])
        files = [io.BytesIO(base64.b64decode(text)) for text in shown["picture"]]
        strips = [png.imread(file) for file in files]
        axes.imshow(np.concatenate(strips, axis=1))
        axes.set_xticks(
            strips[0].shape[1] * (0.5 + np.arange(len(shown))),
            [f"{r.label} → {r.said:.0f}\n{r.queries:,.0f}" for r in shown.itertuples()],
            fontsize=8,
        )
    return grid.figure


def study(goals, methods, images, queries, learning_rate, start) -> Study:
    """The comparison with these options; None leaves one to the size of the run."""
    options = {"queries": queries, "learning_rates": learning_rate, "start": start}

    def cells(full: bool, seed: int) -> dict[str, Cell]:
        number, all_goals, all_methods = FULL if full else QUICK
        training, held_out = victim.load()
        log_probs = victim.train(training, seed)
        right = np.asarray(log_probs(held_out.images).argmax(-1)) == held_out.labels
        victims = victim.Images(*(leaf[right][: images or number] for leaf in held_out))
        found = {}
        for goal in goals or all_goals:
            ceiling = engine.white_box(*problem(log_probs, victims, goal))
            for method in methods or all_methods:
                names = {"goal": goal, "method": method, "accuracy": right.mean()}
                found[f"{goal}/{method}"] = functools.partial(
                    measure, log_probs, victims, ceiling, names, options, seed
                )
        return found

    return Study("Black-box attack", cells, tables, findings, figure)
