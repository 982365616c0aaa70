"""A language model with matrices of int8: what it answers, holds, and tunes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_language
from safetensors.numpy import load_file
from test_language import REFERENCES, SMALL, TINY

from benchmarks import UsageError
from benchmarks.__main__ import main
from benchmarks.language import checkpoints, cost, problem, tasks, training
from benchmarks.language.decode import generate
from benchmarks.language.problem import Source
from benchmarks.language.quantized import (
    Quantized,
    dequantize,
    floats,
    quantize,
    with_floats,
)
from benchmarks.language.recipe import Recipe
from benchmarks.language.transformer import forward
from benchmarks.memory.programs import num_bytes, total_bytes

tiny = test_language.tiny  # a fixture
is_quantized = lambda x: isinstance(x, Quantized)


def whole(params):
    """The float model that a quantised one stands for."""
    return jax.tree.map(dequantize, params, is_leaf=is_quantized)


@pytest.mark.parametrize("name", TINY)
def test_an_entry_is_off_by_half_a_step_at_most(name):
    """Against float64; the largest of each output is kept."""
    _, params = checkpoints.load_folder(REFERENCES / name)
    params["layers"]["q"] = params["layers"]["q"].at[:, :, 1].set(0.0)
    found = jax.tree.leaves(quantize(params), is_leaf=is_quantized)
    number = 0
    for one, leaf in zip(found, jax.tree.leaves(params), strict=True):
        if not is_quantized(one):
            np.testing.assert_array_equal(one, leaf)
            continue
        number += 1
        exact = np.asarray(leaf, np.float64)
        axis = -2 if leaf.ndim == 3 else -1
        largest = np.abs(exact).max(axis=axis, keepdims=True)
        off = np.abs(np.asarray(dequantize(one), np.float64) - exact)
        assert (off <= largest * (0.5 / 127 + 1e-6)).all()
        assert one.values.dtype == jnp.int8
        assert np.abs(np.asarray(one.values, int)).max() == 127
        np.testing.assert_array_equal(one.scale, largest.astype(np.float32))
    assert number == (8 if name == "llama" else 7) + ("head" in params)


@pytest.mark.parametrize("name", TINY)
def test_it_answers_as_the_floats_that_it_stands_for(name):
    config, params = checkpoints.load_folder(REFERENCES / name)
    tokens = np.load(REFERENCES / name / "reference.npz")["tokens"]
    params = quantize(params)
    run = jax.jit(forward, static_argnums=0)
    found = run(config, params, tokens)
    np.testing.assert_allclose(found, run(config, whole(params), tokens), atol=2e-5)


def test_it_writes_the_texts_of_the_floats_that_it_stands_for():
    config, params = checkpoints.load_folder(REFERENCES / "llama")
    params, tokens = quantize(params), jnp.array([[1, 4], [5, 9]])
    run = jax.jit(generate, static_argnums=(0, 5))
    asked = jnp.array([3, 1]), tokens, jnp.array([1, 1])
    found = run(config, params, *asked, 4)
    expected = run(config, whole(params), *asked, 4)
    np.testing.assert_array_equal(found, expected)


def test_no_float_copy_is_planned():
    """Bytes at SmolLM2's shapes: of the weights alone float32 has more."""
    of = cost.shapes()
    small = of._replace(params=jax.eval_shape(quantize, of.params))
    saved = num_bytes(of.params) - num_bytes(small.params)
    assert num_bytes(small.params) < 0.2525 * num_bytes(of.params)
    planned = {}
    for name, model in (("float32", of), ("int8", small)):
        ready = cost.without_sentences(Recipe(), model)
        value_fn = problem.loss(ready.config, ready.words)
        lowered = jax.jit(value_fn).lower(ready.params, cost.batch_of(24))
        planned[name] = total_bytes(lowered.compile())
    layer = num_bytes(of.params["layers"]) // 30
    assert planned["int8"] <= planned["float32"] - saved + layer
    # A step of the scales holds one set of weights, and draws its noise by layer.
    recipe = Recipe(tuning="scales", dtype="int8")
    ready = cost.without_sentences(recipe, small)
    step = training.compiled_step(recipe, ready, cost.batch_of(24))
    assert total_bytes(step) <= 1.05 * planned["int8"]


# -- tuning ----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ready(tiny):
    """Makes problems of the tiny task on int8, each once."""
    source = Source(model=str(tiny), task="sst2", data=tiny)
    model, splits = problem.load_model(source, "int8"), problem.load_splits(source)
    return lambda recipe: problem.make(recipe, model, splits)


KINDS = {
    "lora, cached": {"top": 2, "estimator": "zoar", "history": 2},
    "prompt after text": {"tuning": "prompt", "after_text": True},
    "scales, dap": {"tuning": "scales", "estimator": "dap", "directions": 2},
}


@pytest.mark.parametrize("name", list(KINDS))
def test_steps_move_floats_alone(ready, name):
    chosen = Recipe(**SMALL | {"steps": 2, "dtype": "int8"} | KINDS[name])
    made = ready(chosen)
    before = jax.tree.map(np.asarray, made.params)
    run = training.train(chosen, made, training.start(chosen, made), every=2)
    assert np.isfinite(run.curve[-1]["loss"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(run.tuned))
    jax.tree.map(np.testing.assert_array_equal, before, made.params)
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before["adapter"], run.tuned
    )
    if chosen.tuning == "scales":
        moved.pop("bias", None)
        used = jax.tree.leaves(moved)
        assert len(used) == 7 + 2 + 1 + 1  # matrices, norms, the table, the last norm
        assert all(used)
    assert any(jax.tree.leaves(moved))


def test_a_step_of_the_scales_is_that_of_a_float_model(ready):
    """Oracle: the derivative along each scale is that of the weights times values."""
    chosen = Recipe(**SMALL, tuning="scales", dtype="int8", estimator="first-order")
    made = ready(chosen)
    batch = jax.tree.map(jnp.asarray, made.train.take(slice(8)))
    value_fn = problem.loss(made.config, made.words)
    part = lambda adapter: value_fn(made.params | {"adapter": adapter}, batch)
    found = jax.grad(part)(made.params["adapter"])["scales"]
    model = made.params["model"]
    of_weights = jax.grad(lambda m: value_fn({"model": m, "adapter": {}}, batch))
    of_weights = of_weights(whole(model))
    for name in ("q", "down"):
        expected = of_weights["layers"][name] * model["layers"][name].values / 127
        expected = expected.sum(axis=-2, keepdims=True)
        np.testing.assert_allclose(found["layers"][name], expected, atol=1e-5)
    expected = (of_weights["embed"] * model["embed"].values / 127).sum(-1)
    np.testing.assert_allclose(found["embed"][:, 0], expected, atol=1e-5)
    norm = of_weights["layers"]["mlp_norm"]
    np.testing.assert_allclose(found["layers"]["mlp_norm"], norm, atol=1e-5)


def test_tuning_the_scales_lowers_the_cross_entropy(ready):
    fields = SMALL | {"steps": 100, "calibrate": True, "learning_rate": 0.01}
    fields |= {"estimator": "leave-one-out", "directions": 8}
    chosen = Recipe(**fields, tuning="scales", dtype="int8")
    made = ready(chosen)
    run = training.train(chosen, made, training.start(chosen, made), every=100)
    first, last = run.curve
    assert last["cross_entropy"] < first["cross_entropy"] - 0.02


def test_a_checkpoint_of_the_scales_holds_floats_alone(ready, tmp_path):
    chosen = Recipe(**SMALL, tuning="scales", dtype="int8")
    run = training.start(chosen, ready(chosen))
    training.save(tmp_path, run)
    kept = training.restore(tmp_path, run).tuned
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(kept))
    jax.tree.map(np.testing.assert_array_equal, kept, run.tuned)


@pytest.mark.parametrize("name", TINY)
def test_floats_go_back_into_their_places(name):
    """All but tables of positions and projections, which are matrices of floats."""
    _, params = checkpoints.load_folder(REFERENCES / name)
    params = quantize(params)
    doubled = with_floats(params, jax.tree.map(lambda x: 2 * x, floats(params)))
    for (path, old), new in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(doubled), strict=True
    ):
        held = old.dtype == jnp.int8 or path[0].key in ("positions", "project_in")
        held = held or path[0].key == "project_out"
        np.testing.assert_array_equal(new, old if held else 2 * old)


# -- the command -----------------------------------------------------------------------


def test_the_command_trains_saves_and_predicts(tiny, tmp_path, capsys):
    """What predict says is what the saved adapter's run found on the test set."""
    argv = f"--model {tiny} --task sst2 --data {tiny} --output {tmp_path} --batch 8"
    argv += " --sentences 64 --steps 4 --dtype int8 --tuning scales"
    assert main(["language", "train", *argv.split(), "--learning-rate", "0.01"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    adapter = tmp_path / "adapter.safetensors"
    assert all(leaf.dtype == np.float32 for leaf in load_file(adapter).values())
    rows = tasks.read_tsv(tiny / "dev.tsv")
    capsys.readouterr()
    argv = ["language", "predict", "--adapter", str(adapter)]
    assert main([*argv, *(row.text for row in rows)]) == 0
    lines = capsys.readouterr().out.splitlines()
    pairs = zip(lines, rows, strict=True)
    right = [line.split("\t")[0] == tasks.LABELS[row.label] for line, row in pairs]
    assert np.mean(right) == pytest.approx(result["accuracy"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int4"}, "dtype: Input should be 'float32'"),
        ({"tuning": "all", "dtype": "int8"}, "tuning all needs floats, not int8"),
        ({"tuning": "scales"}, "tuning scales needs dtype int8, got 'float32'"),
        (
            {"tuning": "scales", "dtype": "int8", "sampler": "sphere"},
            "for tuning scales, got 'sphere'",
        ),
        (
            {"tuning": "scales", "dtype": "int8", "after_text": True},
            "after_text needs tuning lora or cores or norms or prompt",
        ),
        ({"tuning": "scales", "dtype": "int8", "top": 2}, "top needs tuning lora"),
    ],
)
def test_bad_recipes(fields, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)
