"""The tweets' ratings: how they are read, the ridge head, and cores that move on."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks import UsageError
from benchmarks.language import (
    assets,
    checkpoints,
    head,
    problem,
    ratings,
    tasks,
)
from benchmarks.language.problem import Source

REFERENCES = Path(__file__).parent.parent / "references"


def _lines(number):
    """Ratings that the texts tell: a word for each tenth."""
    rng = np.random.default_rng(0)
    scores = np.round(rng.uniform(-4, 4, number), 1)
    return [f"{i}\t{s}\tpeace &amp; joy {s:+}" for i, s in enumerate(scores)], scores


def test_rated_texts_keep_their_ratings(tmp_path):
    lines, scores = _lines(900)
    path = tmp_path / "tweets.txt"
    path.write_bytes("\r\n".join(lines).encode())
    splits = tasks.rated(path)
    assert [len(part) for part in splits] == [200, 200, 500]
    found = [some for part in splits for some in part]
    assert sorted(rating for _, rating in found) == sorted(scores)
    assert all(text == f"peace & joy {rating:+}" for text, rating in found)
    path.write_text("1\tno number\ttext\n")
    with pytest.raises(UsageError, match="is damaged"):
        tasks.rated(path)


def test_the_tweets():
    """Where they were fetched: their number, range and first text."""
    path = assets.cache_folder() / assets.ASSETS["tweets"].file
    if not path.is_file():
        pytest.skip("not fetched")
    found = dict(some for part in tasks.rated(path) for some in part)
    assert len(found) > 0.99 * 4200
    assert -4 <= min(found.values()) < -3 < 3 < max(found.values()) <= 4
    rating = found["Yay. Another good phone interview."]
    assert rating == pytest.approx(1.443298969)


def test_ridge_is_scikit_learns_on_standardised_states():
    """The penalty that is chosen may be any of the grid: the slopes are that one's."""
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=(300, 4)) * 5 + 2, rng.normal(size=(300, 4))]
    targets = parts[0][:, 1] / 5 - parts[1][:, 0] + rng.normal(size=300)
    slopes, bias = head.ridge(parts, targets)
    found = bias + sum(p @ s for p, s in zip(parts, slopes, strict=True))
    rows = StandardScaler().fit_transform(np.concatenate(parts, axis=1))
    gaps = [
        np.abs(Ridge(alpha=alpha).fit(rows, targets).predict(rows) - found).max()
        for alpha in head.RIDGES
    ]
    assert min(gaps) < 1e-3
    assert np.corrcoef(found, targets)[0, 1] > 0.7
    with pytest.raises(UsageError, match="at least 4 sentences"):
        head.ridge([np.ones((3, 2))], np.ones(3))


def test_errors_are_those_worked_by_hand():
    found = ratings.errors(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0]))
    assert found["rmse"] == pytest.approx(np.sqrt(3))
    assert found["mae"] == pytest.approx(1)
    assert found["correlation"] == pytest.approx(5 / np.sqrt(2 * 14))
    assert np.isnan(ratings.errors(np.ones(3), np.arange(3.0))["correlation"])


WORDS = ("<unk>", "It", "was", "terrible", "great", "up", "down", "far", "near")


def _texts(number):
    """Texts of four words whose rating is that of their words together."""
    rng = np.random.default_rng(2)
    values = np.array([1.0, -1.0, 0.5, -0.5])
    drawn = rng.integers(0, 4, (number, 4))
    texts = [" ".join(WORDS[5 + i] for i in row) for row in drawn]
    pairs = zip(values[drawn].sum(axis=1), texts, strict=True)
    return "\n".join(f"0\t{score}\t{text}" for score, text in pairs)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model with random weights, on texts that tell their ratings."""
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    cache = tmp_path_factory.mktemp("cache")
    (cache / assets.ASSETS["tweets"].file).write_text(_texts(1000))
    recipe = ratings.RECIPE.replace(
        top=1, rank=2, batch=32, matrices="qv", longest=16, steps=100
    )
    model, source = problem.Model(config, params, tokenizer), Source(cache=cache)
    return recipe, ratings.ready(model, recipe, source, lambda share: None)


def test_the_start_is_the_ridge_regression(made):
    _, ready = made
    assert ready.train.labels.dtype == np.float32
    assert (len(ready.train.labels), len(ready.test.labels)) == (300, 500)
    _, final = problem.states_of(ready.config, ready.params, ready.train)
    (slope,), bias = head.ridge([final], ready.train.labels)
    found = ratings.estimates(ready, ready.params["adapter"], ready.train)
    np.testing.assert_allclose(found, bias + final @ slope, atol=1e-4)
    value_fn = problem.loss(ready.config, ready.words, "squared error")
    rmse = ratings.errors(found, ready.train.labels)["rmse"]
    value = jax.jit(value_fn)(ready.params, ready.train)
    np.testing.assert_allclose(value, rmse**2, rtol=1e-4)


def test_a_run_moves_the_cores_alone(made):
    recipe, ready = made
    end = ratings.tuned(ready, recipe, lambda share: None)
    for name, before in ready.params["adapter"].items():
        same = jax.tree.map(np.array_equal, before, end[name])
        assert all(jax.tree.leaves(same)) == (name != "cores")


def test_what_is_shown(made, monkeypatch):
    """The whole study on the tiny model: the mean, the floor, and where cores end."""
    recipe, ready = made
    monkeypatch.setattr(ratings, "RECIPE", recipe)
    monkeypatch.setattr(ratings, "ready", lambda *args: ready)
    monkeypatch.setattr(problem, "load_model", lambda source: None)
    monkeypatch.setattr(ratings, "QUICK", 2)
    (cell,) = ratings.STUDY.cells(False, 0).values()
    frame = pd.DataFrame(cell(lambda share: None))
    (table,) = ratings.STUDY.tables(frame).values()
    assert list(table["passes"]) == [0, 0, 4]
    spread = ready.test.labels - ready.train.labels.mean()
    assert table["rmse"].iloc[0] == f"{np.sqrt(np.mean(spread**2)):.3f}"
    assert frame["rmse"][1] < frame["rmse"][0]
    ratings.STUDY.figure(frame)
