"""A model, a task and what is tuned, made ready: inputs, floors, loss, evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from benchmarks import UsageError
from benchmarks.language import (
    assets,
    checkpoints,
    head,
    quantized,
    tasks,
    tokens,
    tuning,
)
from benchmarks.language.recipe import Recipe, matrix_names
from benchmarks.language.tasks import Examples
from benchmarks.language.transformer import (
    Adapter,
    Config,
    Params,
    Text,
    embed,
    finish,
    run_layers,
    word_logits,
)

__all__ = [
    "Batch",
    "Floors",
    "Model",
    "Problem",
    "Score",
    "Source",
    "assemble",
    "by_length",
    "evaluate",
    "floors",
    "load_model",
    "load_splits",
    "loss",
    "make",
    "run_before",
    "run_texts",
    "start_adapter",
    "states_of",
    "trainable_and_stacked",
    "with_seed",
]

LONGEST = 64  # tokens of a validation or test sentence; longer ones are cut
ROWS, WIDTH = 32, 8  # sentences at a time, and what lengths are rounded up to
CALIBRATION = slice(512)  # training sentences whose margins set the constant
PREDICTING = slice(4096)  # those whose labels directions predict, in wide layers
FIXED = ("bases", "bias", "head")  # parts of an adapter that are not tuned
START = "Classify the sentiment of this movie review sentence:"
STACKED = ("layers", "embed", "head", "positions")  # slices along the first axis
DEFAULT_MODEL, DEFAULT_TASK = "smollm2", "movies"


class Source(NamedTuple):
    """Where the model and the sentences come from."""

    model: str = DEFAULT_MODEL
    task: str = DEFAULT_TASK
    data: Path | None = None
    cache: Path | None = None


class Model(NamedTuple):
    """A pretrained model and its tokenizer."""

    config: Config
    params: Params
    tokenizer: Tokenizer


class Batch(NamedTuple):
    """What a step sees.

    ``inputs`` are tokens i32[B, T], or what the layers below the tuned ones answered,
    f[B, T, D]; of the template's end alone where the ``text`` before it was run once.
    """

    inputs: jax.Array
    last: jax.Array  # i32[B], index of the last token
    labels: jax.Array  # i32[B]
    text: Text | None = None

    def take(self, rows: Any) -> Batch:
        return jax.tree.map(lambda field: field[rows], self)

    def cut(self, rows: Any, width: int) -> Batch:
        """Takes rows whose sentences have at most ``width`` tokens to be run."""
        some = self.take(rows)
        if some.text is None:
            return some._replace(inputs=some.inputs[:, :width])
        k, v, length = some.text
        return some._replace(text=Text(k[:, :, :width], v[:, :, :width], length))


class Score(NamedTuple):
    """On labelled sentences."""

    accuracy: float
    cross_entropy: float
    margins: np.ndarray  # f[N], logit of the positive word less the negative one's


class Floors(NamedTuple):
    """What the model knows untuned."""

    accuracy: float
    calibrated: float  # with the threshold at the median of the validation margins
    cross_entropy: float
    auc: float


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task ready to be trained on.

    Attributes:
      config: of the model.
      params: {"model": ..., "adapter": ...} at the start; the adapter is empty where
        all parameters are tuned.
      trainable: pytree prefix of bools over params.
      stacked: leaves whose first axis is one of layers, tokens or positions.
      words: i32[2], rows of the model's table that are the label words.
      train, validation, test: inputs; numpy, batches go to the device.
      bottom: layers below those of params, which were run once.
    """

    config: Config
    params: dict[str, Any]
    trainable: Any
    stacked: Any
    words: np.ndarray
    train: Batch
    validation: Batch
    test: Batch
    bottom: int = 0


def load_model(source: Source, dtype: str = "float32") -> Model:
    """Reads a model: the default's file, a folder, or the hub's cache."""
    if dtype == "int8":
        config, params, tokenizer = load_model(source)
        return Model(config, quantized.quantize(params), tokenizer)
    if source.model != DEFAULT_MODEL:
        folder = checkpoints.find_folder(source.model)
        config, params = checkpoints.load_folder(folder, jnp.dtype(dtype))
        tokenizer = tokens.from_folder(folder)
        number = len(params["embed"])
        if tokenizer.get_vocab_size() > number:
            raise UsageError(
                f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the"
                f" model {number}"
            )
        return Model(config, params, tokenizer)
    cache = source.cache or assets.cache_folder()
    path = assets.path_of("model", cache)
    config, params = checkpoints.cached(
        path.with_suffix(".float32.safetensors"),
        assets.ASSETS["model"].sha256,
        lambda: checkpoints.load_gguf(path),
    )
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return Model(config, params, tokens.from_gguf(path))


def check_room(model: Model, length: int) -> None:
    """Raises where a text is longer than the model's table of positions."""
    if "positions" not in model.params:
        return
    room = len(model.params["positions"]) - model.config.position_offset
    if length > room:
        raise UsageError(
            f"{length} tokens, virtual ones among them, do not fit the model's {room}"
            " positions"
        )


def load_splits(source: Source) -> tasks.Splits:
    """Reads the sentences of a task."""
    if source.task == "sst2":
        return tasks.sst2(source.data)
    if source.data is not None:
        raise UsageError(f"--data {source.data} needs --task sst2")
    cache = source.cache or assets.cache_folder()
    return tasks.movie_reviews(assets.path_of("sentences", cache))


def _answers(
    config: Config,
    model: Params,
    adapter: Adapter,
    inputs: jax.Array,
    last: jax.Array,
    words: jax.Array,
    text: Text | None = None,
) -> jax.Array:
    """Logits f32[B, 2] of the label words after each sentence, or of a head."""
    states, kept = _states(config, model, adapter, inputs, last, text)
    if "head" in adapter:
        return head.margin_logits(adapter["head"], kept, states)
    return word_logits(_tuned(model, adapter), states, words) + adapter.get("bias", 0.0)


def _tuned(model: Params, adapter: Adapter) -> Params:
    """The model with the scales of an adapter that has some."""
    if "scales" in adapter:
        model = quantized.with_floats(model, adapter["scales"])
    return tuning.with_norms(model, adapter) if "norms" in adapter else model


def _states(
    config: Config,
    model: Params,
    adapter: Adapter,
    inputs: jax.Array,
    last: jax.Array,
    text: Text | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The last token's states: f[B, D] before the logits, f[L, B, D] after layers."""
    adapter, model = tuning.lora_of_cores(adapter), _tuned(model, adapter)
    x, soft = inputs, 0
    if x.ndim == 2:
        start = 0 if text is None else text.length
        x = embed(config, model, inputs, adapter, start)
        soft = x.shape[1] - inputs.shape[1]
    x, own = run_layers(config, model["layers"], x, adapter, text, last + soft)
    states = finish(config, model, x[jnp.arange(len(last)), last + soft])
    return states, own["state"]


def loss(
    config: Config, words: np.ndarray, objective: str = "cross-entropy"
) -> Callable[[dict[str, Any], Batch], jax.Array]:
    """Returns (params, batch) -> mean cross-entropy between the label words.

    Or, with the objective "accuracy", the share of sentences that are labelled wrongly;
    with "squared error", of the margin as an estimate of labels that are numbers.
    """

    def value_fn(params, batch):
        logits = _answers(
            config,
            params["model"],
            params["adapter"],
            batch.inputs,
            batch.last,
            jnp.asarray(words),
            batch.text,
        )
        if objective == "accuracy":
            return jnp.mean(logits.argmax(axis=1) != batch.labels, dtype=jnp.float32)
        if objective == "squared error":
            return jnp.mean((logits[:, 1] - logits[:, 0] - batch.labels) ** 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    return value_fn


_compiled_answers = jax.jit(_answers, static_argnums=0)
_compiled_states = jax.jit(_states, static_argnums=0)


def by_length(last: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Rows of like lengths, with the width that each group needs."""
    order = np.argsort(last, kind="stable")
    groups = []
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        groups.append((rows, -(-(int(last[rows].max()) + 1) // WIDTH) * WIDTH))
    return groups


def logits(
    config: Config, params: dict[str, Any], batch: Batch, words: np.ndarray
) -> np.ndarray:
    """Logits f32[N, 2] of the label words, sentences of like lengths together."""
    out = np.zeros((len(batch.labels), len(words)), np.float32)
    last = batch.last if batch.text is None else batch.text.length - 1
    for rows, width in by_length(last):
        some = jax.tree.map(jnp.asarray, batch.cut(rows, width))
        out[rows] = _compiled_answers(
            config,
            params["model"],
            params["adapter"],
            some.inputs,
            some.last,
            jnp.asarray(words),
            some.text,
        )
    return out


def states_of(
    config: Config, model: Params, adapter: Adapter, batch: Batch
) -> tuple[np.ndarray, np.ndarray]:
    """What a head is fitted on, f[L, N, D] and f[N, D]: each sentence is run once."""
    width = model["layers"]["q"].shape[1]
    number, layers = len(batch.labels), len(model["layers"]["q"])
    final = np.zeros((number, width), np.float32)
    states = np.zeros((layers, number, width), np.float32)
    last = batch.last if batch.text is None else batch.text.length - 1
    for rows, size in by_length(last):
        some = jax.tree.map(jnp.asarray, batch.cut(rows, size))
        final[rows], states[:, rows] = _compiled_states(
            config, model, adapter, some.inputs, some.last, some.text
        )
    return states, final


def evaluate(problem: Problem, params: dict[str, Any], batch: Batch) -> Score:
    """Scores params on sentences."""
    out = logits(problem.config, params, batch, problem.words)
    losses = optax.softmax_cross_entropy_with_integer_labels(out, batch.labels)
    right = out.argmax(axis=1) == batch.labels
    return Score(float(right.mean()), float(jnp.mean(losses)), out[:, 1] - out[:, 0])


def floors(problem: Problem) -> Floors:
    """Scores the untuned model on the test sentences, raw and calibrated."""
    bare = {"model": problem.params["model"], "adapter": {}}
    threshold = np.median(evaluate(problem, bare, problem.validation).margins)
    score = evaluate(problem, bare, problem.test)
    labels = problem.test.labels
    positive, negative = (score.margins[labels == i] for i in (1, 0))
    above = positive[:, None] > negative
    ties = positive[:, None] == negative
    return Floors(
        score.accuracy,
        float(((score.margins > threshold) == labels).mean()),
        score.cross_entropy,
        float(np.mean(above + 0.5 * ties)),
    )


def _below(
    config: Config,
    model: Params,
    bottom: int,
    examples: Sequence[Examples],
    tick: Callable[[float], None],
) -> list[Batch]:
    """Runs the layers below the tuned ones, once: their answers f32[N, T, D]."""
    layers = jax.tree.map(lambda leaf: leaf[:bottom], model["layers"])
    rest = {name: leaf for name, leaf in model.items() if name != "layers"}
    first = model["layers"]["q"]

    @jax.jit
    def run(layers, rest, rows):
        return run_layers(config, layers, embed(config, rest, rows, {}), {})[0]

    total, done = sum(len(some.labels) for some in examples), 0
    batches = []
    for some in examples:
        states = np.zeros((*some.tokens.shape, first.shape[1]), first.dtype)
        for rows, length in by_length(some.last):
            out = run(layers, rest, jnp.asarray(some.tokens[rows, :length]))
            states[rows, :length] = np.asarray(out)
            done += len(rows)
            tick(done / total)
        batches.append(Batch(states, some.last, some.labels))
    return batches


def run_before(
    config: Config, model: Params, rows: jax.Array, ends: jax.Array, *, bottom: int
) -> tuple[jax.Array, Adapter]:
    """Runs sentences i32[B, T] up to their ends i32[B, E], positions of the template.

    Returns what the bottom layers answer at the ends, f[B, E, D], and the keys and
    values of the layers above, f[B, L, T, ...]: those at the ends do not matter.
    """
    split = lambda part: jax.tree.map(lambda leaf: leaf[part], model["layers"])
    x = embed(config, model, rows, {})
    x, _ = run_layers(config, split(slice(bottom)), x, {})
    _, own = run_layers(config, split(slice(bottom, None)), x, {})
    own = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), own)
    return jnp.take_along_axis(x, ends[..., None], axis=1), own


_compiled_before = jax.jit(run_before, static_argnums=0, static_argnames="bottom")


def run_texts(
    config: Config,
    model: Params,
    bottom: int,
    template: int,
    examples: Examples,
    tick: Callable[[float], None] = lambda share: None,
) -> Batch:
    """Runs what comes before the template's end, once.

    Args:
      config: of the model.
      model: its params.
      bottom: layers below the tuned ones, whose answers are kept in place of tokens.
      template: tokens of the template's end.
      examples: sentences in their template.
      tick: is called with the share of the work that is done.

    Returns:
      A :class:`Batch` with its text.
    """
    first = model["layers"]["q"]
    layers, width = first.shape[0] - bottom, first.shape[1]
    run = functools.partial(_compiled_before, config, bottom=bottom)

    number, length = len(examples.labels), examples.last + 1 - template
    longest = int(length.max())
    ends = length[:, None] + np.arange(template, dtype=np.int32)
    shape = (number, layers, longest, config.kv_heads, config.head_size)
    k, v = np.zeros(shape, first.dtype), np.zeros(shape, first.dtype)
    inputs = np.take_along_axis(examples.tokens, ends, axis=1)
    states = np.zeros((number, template, width), first.dtype)
    done = 0
    for rows, groups_width in by_length(examples.last):
        tokens = jnp.asarray(examples.tokens[rows, :groups_width])
        states[rows], own = run(model, tokens, jnp.asarray(ends[rows]))
        kept = min(longest, groups_width)
        k[rows, :, :kept] = own["k"][:, :, :kept]
        v[rows, :, :kept] = own["v"][:, :, :kept]
        done += len(rows)
        tick(done / number)
    last = np.full(number, template - 1, np.int32)
    text = Text(k, v, length)
    return Batch(states if bottom else inputs, last, examples.labels, text)


def make(
    recipe: Recipe,
    model: Model,
    splits: tasks.Splits,
    tick: Callable[[float], None] = lambda share: None,
) -> Problem:
    """Makes a recipe's problem from a model and sentences.

    Args:
      recipe: what is tuned, and on how many sentences.
      model: pretrained.
      splits: sentences.
      tick: is called with the share of the work that is done.

    Returns:
      The :class:`Problem`.

    Raises:
      UsageError: where the recipe does not fit the model or the sentences.
    """
    tokenizer = model.tokenizer
    train = tasks.encode(tokenizer, splits.train, recipe.longest)
    if len(train.labels) < recipe.batch:
        raise UsageError(
            f"{len(train.labels)} training sentences have at most {recipe.longest}"
            f" tokens, fewer than a batch of {recipe.batch}"
        )
    train = train.take(np.arange(min(recipe.sentences, len(train.labels))))
    held_out = [
        tasks.encode(tokenizer, sentences, LONGEST, truncate=True)
        for sentences in (splits.validation, splits.test)
    ]
    return assemble(recipe, model, (train, *held_out), tick)


def assemble(
    recipe: Recipe,
    model: Model,
    examples: Sequence[Examples],
    tick: Callable[[float], None] = lambda share: None,
) -> Problem:
    """Makes the problem of tokens for training, validation and test."""
    config, params, tokenizer = model
    words = tasks.word_ids(tokenizer)
    layers = params["layers"]["q"].shape[0]
    if recipe.top > layers:
        raise UsageError(f"top must be at most {layers}, got {recipe.top}")
    soft = recipe.tokens if recipe.tuning in ("prompt", "prefix") else 0
    check_room(model, soft + max(some.tokens.shape[1] for some in examples))
    lacking = [x for x in matrix_names(recipe) if x not in params["layers"]]
    if recipe.tuning in ("lora", "cores") and lacking:
        raise UsageError(f"matrices: this model has no {', '.join(lacking)}")
    if recipe.head != "words":  # now, and not after all steps
        head.check_labels(examples[0].labels)
    bottom = layers - recipe.top if recipe.top else 0
    if recipe.after_text:
        template = len(tasks.template_end(tokenizer))
        batches = []
        for i, some in enumerate(examples):
            share = lambda part, i=i: tick((i + part) / len(examples))
            batches.append(run_texts(config, params, bottom, template, some, share))
    elif bottom:
        batches = _below(config, params, bottom, examples, tick)
    else:
        batches = [Batch(*some) for some in examples]
    if bottom:
        params = _top(params, bottom, words)
        words = np.arange(len(words), dtype=np.int32)
    # Virtual tokens start as those of a text that fits the task, repeated as needed.
    ids = tokenizer.encode(START, add_special_tokens=False).ids
    virtual = np.resize(np.asarray(ids, np.int32), recipe.tokens)
    adapter = start_adapter(recipe, config, params, virtual)
    if recipe.tuning == "cores":
        adapter = _cores(recipe, config, params, batches[0], words)
    if recipe.norms:
        adapter |= tuning.norms(params)
    if recipe.head == "before":
        read = states_of(config, params, adapter, batches[0])
        adapter["head"] = head.fit(*read, batches[0].labels, bottom)
    if recipe.calibrate:
        start = {"model": params, "adapter": adapter}
        margins = np.diff(logits(config, start, batches[0].take(CALIBRATION), words))
        half = np.median(margins) / 2
        adapter["bias"] = jnp.asarray([half, -half], jnp.float32)
    masks = trainable_and_stacked(recipe, params, adapter)
    parts = {"model": params, "adapter": adapter}
    return Problem(config, parts, *masks, words, *batches, bottom=bottom)


def _cores(
    recipe: Recipe, config: Config, params: Params, batch: Batch, words: np.ndarray
) -> Adapter:
    """Cores between directions of training sentences, each of them run once more."""
    number = PREDICTING if recipe.predicting else CALIBRATION
    some = jax.tree.map(jnp.asarray, batch.take(number))
    labels = some.labels.astype(jnp.float32) if recipe.predicting else None
    answers = lambda model: _answers(
        config, model, {}, some.inputs, some.last, words, some.text
    )
    names = matrix_names(recipe)
    return tuning.cores(answers, params, recipe.rank, names=names, labels=labels)


def start_adapter(
    recipe: Recipe, config: Config, params: Params, virtual: np.ndarray
) -> Adapter:
    """The adapter before the first step; virtual i32[S] are a prompt's real tokens."""
    if recipe.tuning == "all":
        return {}
    if recipe.tuning == "scales":
        return {"scales": quantized.floats(params)}
    if recipe.tuning == "lora":
        key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
        return tuning.lora(params, recipe.rank, key, names=matrix_names(recipe))
    if recipe.tuning == "norms":
        return tuning.norms(params)
    if recipe.tuning == "prompt":
        return tuning.soft_prompt(params, virtual)
    return tuning.prefix(config, params, virtual)


def with_seed(problem: Problem, recipe: Recipe) -> Problem:
    """The same problem, from the start that another seed has."""
    if recipe.tuning != "lora":
        return problem
    model, adapter = problem.params["model"], problem.params["adapter"]
    fresh = start_adapter(recipe, problem.config, model, np.zeros(0, np.int32))
    return dataclasses.replace(
        problem, params={"model": model, "adapter": adapter | fresh}
    )


def trainable_and_stacked(
    recipe: Recipe, params: Params, adapter: Adapter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two pytree prefixes of bools over {"model": params, "adapter": adapter}."""
    flags: Adapter = {part: part not in FIXED for part in adapter}
    if recipe.freeze_a:
        flags["lora"] = {name: {"a": False, "b": True} for name in adapter["lora"]}
    trainable = {"model": recipe.tuning == "all", "adapter": flags}
    slices = lambda part: {name: name in STACKED for name in part}
    of_adapter = {"scales": slices(adapter["scales"])} if "scales" in adapter else {}
    of_adapter = {part: of_adapter.get(part, False) for part in adapter}
    return trainable, {"model": slices(params), "adapter": of_adapter}


def _top(params: Params, bottom: int, words: np.ndarray) -> Params:
    """The part of a model that runs above cached answers."""
    kept = {
        name: leaf
        for name, leaf in params.items()
        if name in ("norm", "norm_bias", "project_out")
    }
    kept["embed"] = params.get("head", params["embed"])[words]
    kept["layers"] = jax.tree.map(lambda leaf: leaf[bottom:], params["layers"])
    return kept
