"""The floor of language tuning: a regression on what the frozen model answers."""

from pathlib import Path

import jax
import numpy as np
import pandas as pd

from benchmarks.language import checkpoints, probe, problem
from benchmarks.language.tasks import Examples
from benchmarks.language.transformer import hidden_states

REFERENCES = Path(__file__).parent / "references"


def test_features_are_the_states_of_each_sentences_last_token():
    """Whatever the padding; the last ones are what logits are made of."""
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    rng = np.random.default_rng(0)
    last = rng.integers(1, 9, 40).astype(np.int32)
    tokens = rng.integers(0, 48, (40, 16)).astype(np.int32)
    examples = Examples(tokens, last, np.zeros(40, np.int32))
    ticks = []
    found = probe.features(problem.Model(config, params, None), examples, ticks.append)
    assert ticks[-1] == 1
    run = jax.jit(hidden_states, static_argnums=0)
    for i in (0, 7, 39):
        alone = run(config, params, tokens[i : i + 1, : last[i] + 1])[0, -1]
        np.testing.assert_allclose(found.states[i, -1], alone, atol=1e-5)


def _features(rng, number):
    """Of three layers, only the second tells the label."""
    labels = rng.integers(0, 2, number)
    states = rng.normal(size=(number, 3, 4))
    states[:, 1, 2] += 3.0 * labels
    return probe.Features(states, labels)


def test_the_layer_that_tells_is_found_on_validation_sentences():
    rng = np.random.default_rng(1)
    train, validation, test = (_features(rng, number) for number in (400, 200, 2000))
    model, layer, penalty, value = probe.fitted(train, validation)
    assert layer == 1
    assert penalty in probe.PENALTIES
    # Two normals three deviations apart: 1 - Phi(-1.5) = 0.933 is the best there is.
    right = np.mean(model.predict(test.states[:, layer]) == test.labels)
    assert abs(right - 0.933) < 3 * np.sqrt(0.933 * 0.067 / 2000)
    assert 0.1 < value < 0.25


def test_the_floor_is_told():
    rows = [
        {
            "sentences": number,
            "layer": 15,
            "penalty": 1e-3,
            "accuracy": accuracy,
            "cross_entropy": 0.35,
        }
        for number, accuracy in ((512, 0.81), (2048, 0.858))
    ]
    frame = pd.DataFrame(rows)
    assert probe.findings(frame) == [
        "One forward pass over each of 2,048 sentences: 85.8%, cross-entropy 0.350."
    ]
    (table,) = probe.tables(frame)
    assert list(table.columns[3].cells) == ["81.0", "85.8"]
    assert len(probe.figure(frame).axes[0].lines) == 1
