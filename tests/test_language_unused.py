"""Cores and the probe on sentences that neither was trained on."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import test_language

from benchmarks.language import probe, problem, recipe, tasks, unused
from benchmarks.language.problem import Source

tiny = test_language.tiny  # a fixture
SHORT = dataclasses.replace(
    recipe.PRESETS["cores-zo"][1], top=2, rank=2, steps=2, batch=8, sentences=40
)


@pytest.fixture
def source(tiny):
    return Source(model=str(tiny), task="sst2", data=tiny)


def test_no_training_sentence_is_among_them(source):
    """Together they are all there is: each once, and none that was trained on."""
    model, splits = problem.load_model(source), problem.load_splits(source)
    examples, out = unused.held_out(model, splits, SHORT)
    made = problem.make(dataclasses.replace(SHORT, after_text=False), model, splits)
    assert len(made.train.labels) == 40
    whole = lambda some: tasks.encode(
        model.tokenizer, some, problem.LONGEST, truncate=True
    )
    lists = lambda tokens: sorted(np.trim_zeros(row, "b").tolist() for row in tokens)
    short = tasks.encode(model.tokenizer, splits.train, SHORT.longest).tokens[:40]
    every = lists(whole(splits.train).tokens)
    assert sorted(lists(short) + lists(examples.tokens[out])) == every
    assert lists(examples.tokens[~out]) == lists(whole(splits.test).tokens)


def test_margins_are_those_of_the_trained_problem(source, monkeypatch):
    """The test sentences among them score as the problem's own, seed by seed."""
    monkeypatch.setattr(unused, "Source", lambda: source)
    monkeypatch.setattr(
        unused, "recipe_of", lambda full, seed: dataclasses.replace(SHORT, seed=seed)
    )
    monkeypatch.setattr(unused, "ROWS", 100)
    unused._ready.cache_clear()
    found = {
        name: cell(lambda share: None) for name, cell in unused.cells(True, 0).items()
    }
    unused._ready.cache_clear()
    assert list(found) == ["probes", "seed 0", "seed 1", "seed 2"]
    model, splits = problem.load_model(source), problem.load_splits(source)
    made = problem.make(SHORT, model, splits)
    _, score = unused.training.train_and_test(SHORT, made, lambda share: None)
    rows = [row for row in found["seed 0"] if row["set"] == "test"]
    expected = np.where(made.test.labels == 1, score.margins, -score.margins)
    np.testing.assert_allclose([row["for"] for row in rows], expected, atol=1e-4)
    frame = pd.DataFrame([row for rows in found.values() for row in rows])
    assert set(frame["method"]) == {"cores-zo", *probe.NAMES}
    assert len(unused.findings(frame)) == 4
    assert len(unused.figure(frame).axes) == 2


def test_differences_are_taken_by_sentence():
    """By hand: two sentences, two seeds; the probe is wrong about the second."""
    rows = []
    for method, seed, margins in (
        ("cores-zo", 0, (1.0, 1.0)),
        ("cores-zo", 1, (1.0, -1.0)),
        ("probe of one layer", 0, (1.0, -1.0)),
    ):
        for i, margin in enumerate(margins):
            row = {"method": method, "seed": seed, "sentence": i, "set": "test"}
            rows.append(row | {"for": margin})
    gap = unused.above(pd.DataFrame(rows), "probe of one layer", "test")
    np.testing.assert_allclose(gap["accuracy"], [0, 0.5])
    # log(1 + e) - log(1 + 1 / e) = 1.
    np.testing.assert_allclose(gap["cross_entropy"], [0, -0.5], atol=1e-12)
    mean, error = unused.mean_and_error(gap["accuracy"])
    assert (mean, error) == pytest.approx((0.25, 0.25))
