"""The floor of language tuning: a regression on what the frozen model answers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import UsageError
from benchmarks.language import checkpoints, head, probe, problem
from benchmarks.language.tasks import Batch
from benchmarks.language.transformer import embed, finish, run_layers

REFERENCES = Path(__file__).parent.parent / "references"


def test_features_are_the_states_of_each_sentences_last_token():
    """Whatever the padding; the last ones are what logits are made of."""
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    rng = np.random.default_rng(0)
    last = rng.integers(1, 9, 40).astype(np.int32)
    tokens = rng.integers(0, 48, (40, 16)).astype(np.int32)
    examples = Batch(tokens, last, np.zeros(40, np.int32))
    ticks = []
    found = probe.features(problem.Model(config, params, None), examples, ticks.append)
    assert ticks[-1] == 1

    @jax.jit
    def run(tokens):
        x = embed(config, params, tokens, {})
        return finish(config, params, run_layers(config, params["layers"], x, {})[0])

    for i in (0, 7, 39):
        alone = run(tokens[i : i + 1, : last[i] + 1])[0, -1]
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
    margins, layer = probe.of_one_layer(train, validation, test)
    assert layer == 1
    # Two normals three deviations apart: 1 - Phi(-1.5) = 0.933 is the best there is.
    right = np.mean((margins > 0) == test.labels)
    assert abs(right - 0.933) < 3 * np.sqrt(0.933 * 0.067 / 2000)
    # And log(1 + e^-m) of margins N(4.5, 9) has the mean 0.17.
    losses = np.logaddexp(0, np.where(test.labels == 1, -margins, margins))
    assert 0.1 < losses.mean() < 0.25


def test_layers_together_tell_what_none_tells_alone():
    """Two states whose sum has the label: each alone is right less often."""
    rng = np.random.default_rng(2)

    def draw(number):
        labels = rng.integers(0, 2, number)
        states = rng.normal(size=(number, 2, 3))
        states[:, 0, 1] += 2.0 * labels
        states[:, 1, 0] += 2.0 * labels
        return probe.Features(states, labels)

    train, test = draw(2000), draw(4000)
    margins = probe.of_several_layers(train, test)
    # Normals at distance d are told apart with Phi(d / 2): d = 2 alone, 2.83 together.
    right = np.mean((margins > 0) == test.labels)
    assert abs(right - 0.9214) < 4 * np.sqrt(0.92 * 0.08 / 4000)
    slopes, bias = head.regression(
        [train.states[:, 0], train.states[:, 1]], train.labels
    )
    expected = bias + test.states[:, 0] @ slopes[0] + test.states[:, 1] @ slopes[1]
    np.testing.assert_allclose(margins, expected, atol=1e-9)


def test_a_head_reads_states_as_they_are():
    """Its logits are those of the regression, with the layers below left out."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 200)
    states = rng.normal(5.0, 3.0, (8, 200, 4)).astype(np.float32)
    final = rng.normal(-1.0, 2.0, (200, 4)).astype(np.float32)
    states[2, :, 1] += 9 * labels  # after layer 6 of 11, which is not read
    states[6, :, 2] += 9 * labels  # after layer 10, which is
    assert head.read_depths(11, 3) == [5, 10, 11]
    found = head.fit(states, final, labels, 3)
    read = [i for i in range(8) if np.abs(found["layers"][i]).max() > 0]
    assert read == [1, 6]
    logits = head.margin_logits(found, jnp.asarray(states), jnp.asarray(final))
    slopes, bias = head.regression([states[1], states[6], final], labels)
    expected = bias + states[1] @ slopes[0] + states[6] @ slopes[1] + final @ slopes[2]
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-4)
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-6)
    assert np.mean((expected > 0) == labels) > 0.9


def test_a_head_needs_sentences_of_both_labels():
    with pytest.raises(UsageError, match=r"at least 4 .* each label, got \[9, 1\]"):
        head.regression([np.ones((10, 2))], np.asarray([0] * 9 + [1]))
