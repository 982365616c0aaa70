"""A model, a task and what is tuned, made ready: inputs, floors, loss, evaluation."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from benchmarks import UsageError
from benchmarks.language import assets, checkpoints, head, quantized, tasks, tuning
from benchmarks.language.recipe import Recipe, matrix_names
from benchmarks.language.tasks import Batch
from benchmarks.language.transformer import (
    TOP,
    Adapter,
    Config,
    Params,
    Text,
    embed,
    finish,
    run_layers,
    word_logits,
)
from benchmarks.study import Tick

LONGEST = 64  # tokens of a validation or test sentence; longer ones are cut
ROWS, WIDTH = 32, 8  # sentences at a time, and what lengths are rounded up to
CALIBRATION = slice(512)  # training sentences whose margins set the constant
PREDICTING = slice(4096)  # those whose labels directions predict, in wide layers
FIXED = ("bases", "bias", "head")  # parts of an adapter that are not tuned
START = "Classify the sentiment of this movie review sentence:"
STACKED = ("layers", "embed", "head", "positions")  # slices along the first axis


class Source(NamedTuple):
    """Where the model and the sentences come from."""

    model: str = "smollm2"
    task: str = "movies"
    data: Path | None = None
    cache: Path | None = None


class Model(NamedTuple):
    """A pretrained model and its tokenizer."""

    config: Config
    params: Params
    tokenizer: Tokenizer


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


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task ready to be trained on."""

    config: Config
    params: dict[str, Any]  # {"model": ..., "adapter": ...}; {} where all is tuned
    trainable: Any  # pytree prefix of bools over params
    stacked: Any  # leaves whose first axis is one of layers, tokens or positions
    words: np.ndarray  # i32[2], rows of the model's table that are the label words
    train: Batch  # numpy
    validation: Batch
    test: Batch
    bottom: int = 0  # layers below those of params, which were run once


def load_model(source: Source, dtype: str = "float32") -> Model:
    """Reads a model: the default's file, a folder, or the hub's cache."""
    if dtype == "int8":
        model = load_model(source)
        return model._replace(params=quantized.quantize(model.params))
    if source.model == "smollm2":
        reader = checkpoints.open_gguf(assets.path_of("model", source.cache))
        config, params = checkpoints.of_gguf(reader)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return Model(config, params, checkpoints.tokenizer_of_gguf(reader))
    folder = checkpoints.find_folder(source.model)
    config, params = checkpoints.load_folder(folder, jnp.dtype(dtype))
    tokenizer = checkpoints.tokenizer_of_folder(folder)
    size, number = tokenizer.get_vocab_size(), len(params["embed"])
    if size > number:
        raise UsageError(f"{folder}: {size} tokens, in the model's table {number}")
    return Model(config, params, tokenizer)


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
    return tasks.movie_reviews(assets.path_of("sentences", source.cache))


# -- what a model answers --------------------------------------------------------------


def _states(config, params, batch):
    """The last token's states: f[L, B, D] after layers, f[B, D] before the logits."""
    model, adapter = _tuned(params), tuning.lora_of_cores(params["adapter"])
    x, text, last = batch.inputs, batch.text, batch.last
    if x.ndim == 2:
        x = embed(config, model, x, adapter, 0 if text is None else text.length)
        last = last + x.shape[1] - batch.inputs.shape[1]  # soft tokens
    x, own = run_layers(config, model["layers"], x, adapter, text, last)
    return own["state"], finish(config, model, x[jnp.arange(len(last)), last])


def _tuned(params: dict[str, Any]) -> Params:
    """The model with the scales and norms of an adapter that has some."""
    model, adapter = params["model"], params["adapter"]
    if "scales" in adapter:
        model = quantized.with_floats(model, adapter["scales"])
    return tuning.with_norms(model, adapter)


def _answers(config, params, batch, words):
    """Logits f32[B, 2] of the label words after each sentence, or of a head."""
    states, final = _states(config, params, batch)
    adapter = params["adapter"]
    if "head" in adapter:
        return head.margin_logits(adapter["head"], states, final)
    return word_logits(_tuned(params), final, words) + adapter.get("bias", 0.0)


def loss(
    config: Config, words: np.ndarray, objective: str = "cross-entropy"
) -> Callable[[dict[str, Any], Batch], jax.Array]:
    """Returns (params, batch) -> mean cross-entropy between the label words.

    Or, with the objective "accuracy", the share of sentences that are labelled wrongly;
    with "squared error", of the margin as an estimate of labels that are numbers.
    """

    def value_fn(params, batch):
        logits = _answers(config, params, batch, jnp.asarray(words))
        if objective == "accuracy":
            return jnp.mean(logits.argmax(axis=1) != batch.labels, dtype=jnp.float32)
        if objective == "squared error":
            return jnp.mean((logits[:, 1] - logits[:, 0] - batch.labels) ** 2)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    return value_fn


_compiled_answers = jax.jit(_answers, static_argnums=0)
_compiled_states = jax.jit(_states, static_argnums=0)


def in_groups(
    run: Callable[[Batch], Any], batch: Batch, tick: Tick = lambda share: None
) -> Any:
    """Runs sentences of like lengths together.

    ``run`` returns a pytree whose first axis is one of the sentences that it is given;
    the whole is returned in their order, as numpy.
    """
    last = batch.last if batch.text is None else batch.text.length - 1
    order, whole = np.argsort(last, kind="stable"), None
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        width = -(-(int(last[rows].max()) + 1) // WIDTH) * WIDTH
        found = run(batch.cut(rows, width))
        if whole is None:
            empty = lambda leaf: np.zeros((len(last), *leaf.shape[1:]), leaf.dtype)
            whole = jax.tree.map(empty, found)
        leaves = zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True)
        for leaf, part in leaves:
            leaf[rows] = part
        tick((start + len(rows)) / len(order))
    return whole


def logits(
    config: Config, params: dict[str, Any], batch: Batch, words: np.ndarray
) -> np.ndarray:
    """Logits f32[N, 2] of the label words."""
    return in_groups(lambda some: _compiled_answers(config, params, some, words), batch)


def states_of(
    config: Config,
    params: dict[str, Any],
    batch: Batch,
    tick: Tick = lambda share: None,
) -> tuple[np.ndarray, np.ndarray]:
    """What a head is fitted on, f[L, N, D] and f[N, D]: each sentence is run once."""

    def run(some):
        states, final = _compiled_states(config, params, some)
        return np.moveaxis(states, 0, 1), final

    states, final = in_groups(run, batch, tick)
    return np.moveaxis(states, 1, 0), final


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
    calibrated = np.mean((score.margins > threshold) == problem.test.labels)
    return Floors(score.accuracy, float(calibrated), score.cross_entropy)


# -- what is run once ------------------------------------------------------------------


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
    examples: Batch,
    tick: Tick = lambda share: None,
) -> Batch:
    """Runs what comes before the template's end, of so many tokens, once.

    Where there are layers below the tuned ones, their answers are kept for tokens.
    """
    length = examples.last + 1 - template
    longest, places = int(length.max()), np.arange(template, dtype=np.int32)
    room = ((0, 0), (0, 0), (0, longest), (0, 0), (0, 0))

    def run(some):
        ends = some.last[:, None] + 1 - template + places
        states, own = _compiled_before(config, model, some.inputs, ends, bottom=bottom)
        kept = [np.pad(own[name], room)[:, :, :longest] for name in "kv"]
        return states if bottom else np.take_along_axis(some.inputs, ends, 1), *kept

    inputs, k, v = in_groups(run, examples, tick)
    last = np.full(len(length), template - 1, np.int32)
    return Batch(inputs, last, examples.labels, Text(k, v, length))


def run_below(
    config: Config, model: Params, bottom: int, examples: Batch, tick: Tick
) -> Batch:
    """Runs whole sentences through the layers below the tuned ones, once."""
    width, layers = examples.inputs.shape[1], model["layers"]
    layers = jax.tree.map(lambda leaf: leaf[:bottom], layers)

    @jax.jit
    def run(model, layers, tokens):
        x, _ = run_layers(config, layers, embed(config, model, tokens, {}), {})
        return jnp.pad(x, ((0, 0), (0, width - x.shape[1]), (0, 0)))

    rest = {**model, "layers": {}}
    states = in_groups(lambda some: run(rest, layers, some.inputs), examples, tick)
    return examples._replace(inputs=states)


def prepare(
    recipe: Recipe,
    model: Model,
    examples: Sequence[Batch],
    tick: Tick = lambda share: None,
) -> tuple[Params, np.ndarray, list[Batch]]:
    """(What of the model runs at each pass, rows of its label words, its inputs)."""
    config, params, tokenizer = model
    soft = recipe.tokens if recipe.tuning in ("prompt", "prefix") else 0
    check_room(model, soft + max(some.inputs.shape[1] for some in examples))
    words, bottom = tasks.word_ids(tokenizer), below(recipe, params)
    batches = list(examples)
    template = len(tasks.template_end(tokenizer))
    for i, some in enumerate(examples):
        share = lambda part, i=i: tick((i + part) / len(examples))
        if recipe.after_text:
            batches[i] = run_texts(config, params, bottom, template, some, share)
        elif bottom:
            batches[i] = run_below(config, params, bottom, some, share)
    if not bottom:
        return params, words, batches
    top = {name: leaf for name, leaf in params.items() if name in TOP}
    top["embed"] = params.get("head", params["embed"])[words]
    top["layers"] = jax.tree.map(lambda leaf: leaf[bottom:], params["layers"])
    return top, np.arange(len(words), dtype=np.int32), batches


def below(recipe: Recipe, params: Params) -> int:
    """How many layers lie below the tuned ones."""
    layers = len(params["layers"]["q"])
    if recipe.top > layers:
        raise UsageError(f"top must be at most {layers}, got {recipe.top}")
    return layers - (recipe.top or layers)


# -- what is tuned ---------------------------------------------------------------------


def make(
    recipe: Recipe,
    model: Model,
    splits: tasks.Splits,
    tick: Tick = lambda share: None,
) -> Problem:
    """A recipe's problem, or a UsageError where model or sentences do not fit it."""
    config, params, tokenizer = model
    train = tasks.encode(tokenizer, splits.train, recipe.longest)
    if len(train.labels) < recipe.batch:
        raise UsageError(
            f"{len(train.labels)} training sentences have at most {recipe.longest}"
            f" tokens, fewer than a batch of {recipe.batch}"
        )
    train = train.take(slice(recipe.sentences))
    held_out = [
        tasks.encode(tokenizer, sentences, LONGEST, truncate=True)
        for sentences in (splits.validation, splits.test)
    ]
    lacking = [x for x in matrix_names(recipe) if x not in params["layers"]]
    if recipe.tuning in ("lora", "cores") and lacking:
        raise UsageError(f"matrices: this model has no {', '.join(lacking)}")
    if recipe.head != "words":  # now, and not after all steps
        head.check_labels(train.labels)
    bottom = below(recipe, params)
    params, words, batches = prepare(recipe, model, (train, *held_out), tick)
    # Virtual tokens start as those of a text that fits the task, repeated as needed.
    ids = tokenizer.encode(START, add_special_tokens=False).ids
    virtual = np.resize(np.asarray(ids, np.int32), recipe.tokens)
    if recipe.tuning == "cores":
        adapter = _cores(recipe, config, params, batches[0], words)
    else:
        adapter = start_adapter(recipe, config, params, virtual)
    if recipe.norms:
        adapter |= tuning.norms(params)
    parts = {"model": params, "adapter": adapter}
    if recipe.head == "before":
        read = states_of(config, parts, batches[0])
        adapter["head"] = head.fit(*read, train.labels, bottom)
    if recipe.calibrate:
        margins = np.diff(logits(config, parts, batches[0].take(CALIBRATION), words))
        half = np.median(margins) / 2
        adapter["bias"] = jnp.asarray([half, -half], jnp.float32)
    masks = trainable_and_stacked(recipe, params, adapter)
    return Problem(config, parts, *masks, words, *batches, bottom=bottom)


def _cores(recipe, config, params, batch, words):
    """Cores between directions of training sentences, each of them run once more."""
    some = batch.take(PREDICTING if recipe.predicting else CALIBRATION)
    some = jax.tree.map(jnp.asarray, some)
    labels = some.labels.astype(jnp.float32) if recipe.predicting else None
    bare = lambda model: {"model": model, "adapter": {}}
    answers = lambda model: _answers(config, bare(model), some, words)
    names = matrix_names(recipe)
    return tuning.cores(answers, params, recipe.rank, names, labels)


def start_adapter(
    recipe: Recipe, config: Config, params: Params, virtual: np.ndarray
) -> Adapter:
    """The adapter before the first step; virtual i32[S] are a prompt's real tokens."""
    key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
    names = matrix_names(recipe)
    return {
        "all": lambda: {},
        "scales": lambda: {"scales": quantized.floats(params)},
        "lora": lambda: tuning.lora(params, recipe.rank, key, names),
        "norms": lambda: tuning.norms(params),
        "prompt": lambda: tuning.soft_prompt(params, virtual),
        "prefix": lambda: tuning.prefix(config, params, virtual),
    }[recipe.tuning]()


def with_seed(problem: Problem, recipe: Recipe) -> Problem:
    """The same problem, from the start that another seed has."""
    if recipe.tuning != "lora":
        return problem
    model, adapter = problem.params["model"], problem.params["adapter"]
    fresh = start_adapter(recipe, problem.config, model, np.zeros(0, np.int32))
    params = {"model": model, "adapter": adapter | fresh}
    return dataclasses.replace(problem, params=params)


def trainable_and_stacked(
    recipe: Recipe, params: Params, adapter: Adapter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two pytree prefixes of bools over {"model": params, "adapter": adapter}."""
    flags: Adapter = {part: part not in FIXED for part in adapter}
    if recipe.freeze_a:
        flags["lora"] = {name: {"a": False, "b": True} for name in adapter["lora"]}
    slices = lambda part: {name: name in STACKED for name in part}
    stacked = {
        part: slices(leaf) if part == "scales" else False
        for part, leaf in adapter.items()
    }
    return (
        {"model": recipe.tuning == "all", "adapter": flags},
        {"model": slices(params), "adapter": stacked},
    )
