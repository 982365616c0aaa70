"""Cores and the probe on sentences that neither was trained on."""

import numpy as np
import pandas as pd
import test_language_studies

from benchmarks.language import problem, recipe, runs, tasks, unused

tiny, source = test_language_studies.tiny, test_language_studies.source  # fixtures
SHORT = recipe.PRESETS["cores-zo"][1].replace(
    top=2, rank=2, steps=2, batch=8, sentences=40
)


def test_no_training_sentence_is_among_them(source):
    """Together they are all there is: each once, and none that was trained on."""
    model, examples, out = unused.held_out(SHORT)
    splits = problem.load_splits(source)
    whole = lambda some: tasks.encode(
        model.tokenizer, some, problem.LONGEST, truncate=True
    )
    lists = lambda tokens: sorted(np.trim_zeros(row, "b").tolist() for row in tokens)
    short = tasks.encode(model.tokenizer, splits.train, SHORT.longest).inputs[:40]
    every = lists(whole(splits.train).inputs)
    assert sorted(lists(short) + lists(examples.inputs[out])) == every
    assert lists(examples.inputs[~out]) == lists(whole(splits.test).inputs)


def test_margins_are_those_of_the_trained_problem(source, monkeypatch):
    """The test sentences among them score as the problem's own."""
    recipe = lambda full, seed: SHORT.replace(seed=seed)
    monkeypatch.setattr(unused, "recipe_of", recipe)
    monkeypatch.setattr(unused, "ROWS", 100)
    cells = unused.cells(True, 0)
    assert list(cells) == ["probes", "exact gradients", "seed 0", "seed 1", "seed 2"]
    quiet = lambda share: None
    rows = [row for name in list(cells)[:3] for row in cells[name](quiet)]
    frame = pd.DataFrame(rows)
    # The texts of one were run before, the other's are run whole.
    for name, tuned in (unused.TUNED, SHORT), (unused.EXACT, unused.exact(SHORT)):
        made, _ = runs.ready(tuned)
        _, params = unused.training.trained(tuned, made, quiet)
        score = problem.evaluate(made, params, made.test)
        found = frame[(frame["name"] == name) & (frame["set"] == "test")]
        expected = np.where(made.test.labels == 1, score.margins, -score.margins)
        np.testing.assert_allclose(found["for"], expected, atol=1e-4)
    means, by_seed = unused.tables(frame).values()
    assert (len(means), len(by_seed)) == (8, 2)
    assert len(unused.findings(frame)) == 6
    assert len(unused.figure(frame).axes) == 2


def test_differences_are_taken_by_sentence():
    """By hand: two sentences, two seeds; the probe is wrong about the second."""
    rows = []
    for name, seed, margins in (
        (unused.TUNED, 0, (1.0, 1.0)),
        (unused.TUNED, 1, (1.0, -1.0)),
        ("probe", 0, (1.0, -1.0)),
    ):
        for i, margin in enumerate(margins):
            row = {"name": name, "seed": seed, "sentence": i, "set": "test"}
            rows.append(row | {"for": margin})
    frame = pd.DataFrame(rows)
    gaps = unused.gaps(frame)
    np.testing.assert_allclose(gaps["points"], [0, 50])
    # log(1 + e) - log(1 + 1 / e) = 1.
    np.testing.assert_allclose(gaps["cross_entropy"], [0, -0.5], atol=1e-12)
    assert unused.findings(frame) == [
        "2 test sentences, less the probe: +25.00 +- 25.00 points, -0.2500 +- 0.2500 in"
        " cross-entropy."
    ]
