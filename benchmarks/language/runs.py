"""What studies of tuning share: a problem that many runs start from, their rows."""

import functools
import time

import pandas as pd

from benchmarks.language import problem, training
from benchmarks.language.problem import Floors, Problem, Source
from benchmarks.language.recipe import Recipe
from benchmarks.study import Row, Tick, mean_error

SEEDS = 3
# Settings in which runs of one problem may differ.
OF_RUNS = (
    *("estimator", "sampler", "directions", "smoothing", "history"),
    *("objective", "learning_rate", "steps", "seed", "late_batch", "shaping", "clip"),
)
HeldOut = tuple[int | None, int | None]  # sentences to validate and to test, or all
TEST = ["test_accuracy", "test_cross_entropy"]


@functools.lru_cache(maxsize=1)  # runs of one problem follow each other
def _made(recipe: Recipe, held_out: HeldOut) -> tuple[Problem, Floors]:
    source, (validation, test) = Source(), held_out
    splits = problem.load_splits(source)
    splits = splits._replace(
        validation=splits.validation[:validation], test=splits.test[:test]
    )
    made = problem.make(recipe, problem.load_model(source, recipe.dtype), splits)
    return made, problem.floors(made)


def ready(recipe: Recipe, held_out: HeldOut = (None, None)) -> tuple[Problem, Floors]:
    """A run's problem, and what the untuned model scores."""
    shared = {name: getattr(Recipe(), name) for name in OF_RUNS}
    made, floors = _made(recipe.replace(**shared), held_out)
    return problem.with_seed(made, recipe), floors


def measure(
    name: str,
    recipe: Recipe,
    tick: Tick,
    every: int | None = None,
    held_out: HeldOut = (None, None),
) -> list[Row]:
    """A row for each validation of a run; the last has the scores on test sentences."""
    begin = time.monotonic()
    made, floors = ready(recipe, held_out)
    common = {"name": name, "prepared": time.monotonic() - begin}
    common |= recipe.model_dump()
    common |= {f"floor_{key}": value for key, value in floors._asdict().items()}
    run, params = training.trained(recipe, made, tick, every)
    test = problem.evaluate(made, params, made.test)
    # What was run once: texts and the layers below, where a recipe keeps these.
    sentences = len(made.train.labels)
    once = sentences if recipe.top or recipe.after_text else 0
    rows = [
        common | row | {"sentence_passes": once + row["passes"] * recipe.batch}
        for row in run.curve
    ]
    last = rows[-1]
    last |= {"test_accuracy": test.accuracy, "test_cross_entropy": test.cross_entropy}
    if recipe.head == "after":  # one more pass over each sentence
        tuned = made.params | {"adapter": run.tuned}
        words = problem.evaluate(made, tuned, made.test)
        last |= {"words_accuracy": words.accuracy, "words_nats": words.cross_entropy}
        last["sentence_passes"] += sentences
    return rows


def ends(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run."""
    return frame.dropna(subset=TEST)


def best(rows: pd.DataFrame, settings: list[str], by: str) -> pd.DataFrame:
    """The rows of each name at its settings with the best mean of a score."""
    sign = -1 if by == "cross_entropy" else 1
    columns = ["name", *settings]
    means = sign * rows.groupby(columns)[by].mean()
    chosen = list(means.groupby("name").idxmax())
    return rows[pd.MultiIndex.from_frame(rows[columns]).isin(chosen)]


def scores(frame: pd.DataFrame, *firsts: str) -> pd.DataFrame:
    """By name: columns that all rows agree in, test scores with errors of the seeds."""
    percent = lambda shares: mean_error(100 * shares)
    by_name = dict.fromkeys(firsts, "first")
    by_name |= {"test_accuracy": percent, "test_cross_entropy": mean_error}
    return frame.groupby("name", sort=False).agg(by_name)
