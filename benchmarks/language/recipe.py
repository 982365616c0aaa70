"""A recipe: what is tuned, how the gradient is estimated, and what is done with it."""

import functools
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import jax
import optax
from pydantic import BaseModel, Field, ValidationError, model_validator

import zojax
from benchmarks import UsageError
from zojax import perturbations

SAMPLERS = {
    "gaussian": perturbations.gaussian,
    "sphere": perturbations.sphere,
    "rademacher": perturbations.rademacher,
    "orthogonal": perturbations.orthogonal,
    "simplex": perturbations.simplex,
}
# Forward passes of a step with K directions; first order has none of its own.
ESTIMATORS = {
    "two-sided": lambda k: 2 * k,
    "one-sided": lambda k: k + 1,
    "mean": lambda k: k,
    "leave-one-out": lambda k: k,
    "zoar": lambda k: 2 * k,
    "dap": lambda k: k + 1,
    "first-order": lambda k: 1,
}
DIFFERENCES = {"two-sided": "central", "one-sided": "forward", "mean": "mean"}
DIFFERENCES |= {"leave-one-out": "leave_one_out"}
LAZY = ("scales", "all")  # noise is drawn layer by layer
# Settings that some ways of tuning have.
NEEDS = {
    "top": ("lora", "cores", "norms"),
    "norms": ("lora", "cores"),
    "freeze_a": ("lora",),
    "predicting": ("cores",),
    "after_text": ("lora", "cores", "norms", "prompt"),
    "head": ("lora", "cores", "norms"),
}
SHAPED = ("two-sided", "mean", "leave-one-out")
OBJECTIVES = ("cross-entropy", "accuracy")
# What each letter of ``matrices`` names.
NAMES = {"g": "gate", "u": "up", "d": "down", **{name: name for name in "qkvo"}}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]  # counts are 32-bit in JAX
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]
Matrices = Literal["od", "qv", "qk", "qkv", "qkvo", "qkvod", "ogud", "qkvogud"]


class Recipe(
    BaseModel,
    frozen=True,
    extra="forbid",
    strict=True,
    allow_inf_nan=False,
    use_attribute_docstrings=True,
):
    """Settings of a run; each field is an option of the command, with its help."""

    tuning: Literal["lora", "cores", "norms", "prompt", "prefix", "scales", "all"] = (
        "lora"
    )
    """what is tuned"""
    top: CountOrZero = 0
    """how many of the last layers LoRA, cores and norms adapt, 0 for all; what the
    layers below answer never changes and is computed once"""
    rank: Count = 8
    """of LoRA; the side of cores"""
    matrices: Matrices = "qv"
    """what LoRA and cores adapt: q, k, v, o of the attention, g, u, d (gate, up, down)
    of the MLP"""
    predicting: bool = False
    """cores have one input direction, the one that predicts the label, in the place of
    so many principal ones"""
    norms: bool = False
    """LoRA and cores have the scales of the layers' norms tuned beside them"""
    freeze_a: bool = False
    """tune only the B of LoRA's A B"""
    after_text: bool = False
    """LoRA, cores and norms adapt the template's last words alone, virtual tokens come
    before them: the text before is run once, a pass runs what follows"""
    tokens: Count = 10
    """virtual tokens of a prompt or a prefix"""
    objective: Literal["cross-entropy", "accuracy"] = "cross-entropy"
    """what is lowered: the cross-entropy, or the share of wrong labels itself, which
    has no gradient: a larger smoothing and batch then"""
    estimator: Literal[*ESTIMATORS] = "two-sided"
    """of the gradient"""
    sampler: Literal[*SAMPLERS] = "rademacher"
    """of directions"""
    directions: Count = 1
    """K, a step"""
    smoothing: Positive = 1e-3
    """mu"""
    shaping: Literal["none", "z-score"] = "none"
    """z-score divides the estimate by the spread of a step's values (normalised steps;
    needs clip 0 and another learning rate)"""
    history: CountOrZero = 0
    """past steps that zoar reuses"""
    optimizer: Literal["sgd", "momentum", "adam", "radazo"] = "sgd"
    """what is done with the gradient"""
    learning_rate: Positive | Literal["auto"] = 2e-2
    """at the start; auto: the one that lowers the objective most there, in the mean,
    from slopes and curvatures along 16 estimates (zojax.diagnose)"""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """decay of the learning rate to 0"""
    clip: Annotated[float, Field(ge=0)] = 3.0
    """bound of each directional derivative, with zoar and dap of |gradient| / sqrt(d);
    0 for none"""
    steps: Count = 500
    """of the optimizer"""
    batch: Count = 16
    """sentences a step"""
    late_batch: CountOrZero = 0
    """sentences a step in the last half of the steps; 0: as before"""
    longest: Annotated[Count, Field(ge=8)] = 24
    """tokens of a training sentence with its template; longer ones are left out"""
    sentences: Count = 2048
    """at most so many are trained on"""
    calibrate: bool = False
    """start from calibrated zero-shot: a constant on the label words' logits puts the
    median margin of the training sentences at 0, without their labels"""
    head: Literal["words", "before", "after"] = "words"
    """what answers: the label words, or a logistic regression on the model's own states
    of the training sentences, fitted before the steps or after them"""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """of the model; int8 holds its matrices in int8, with float scales"""
    seed: CountOrZero = 0
    """of the order of sentences, LoRA's start and the directions"""

    def __init__(self, **fields: Any):
        """Turns pydantic's errors into one line."""
        try:
            super().__init__(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise UsageError(
                f"{first['loc'][0]}: {first['msg']}, got {first['input']!r}"
            ) from None

    def replace(self, **changes: Any) -> Self:
        """The same recipe with some other settings."""
        return type(self)(**self.model_dump() | changes)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Checks what concerns several fields."""

        def need(fits: bool, message: str) -> None:
            if not fits:
                raise UsageError(message)

        tuning, estimator, k = self.tuning, self.estimator, self.directions
        for name, tunings in NEEDS.items():
            fits = tuning in tunings or getattr(self, name) == default(name)
            need(fits, f"{name} needs tuning {' or '.join(tunings)}, got {tuning!r}")
        uncalibrated = self.head != "before" or not self.calibrate
        need(uncalibrated, "head before leaves no words to calibrate: choose one")
        for name in ("batch", "late_batch"):
            size, most = getattr(self, name), self.sentences
            need(size <= most, f"{name} must be at most sentences, {most}, got {size}")
        if self.shaping != "none":
            fits = estimator in SHAPED
            need(fits, f"shaping needs estimator {', '.join(SHAPED)}, got {estimator}")
            need(not self.clip, "clip must be 0 with shaping, which bounds the weights")
        if self.learning_rate == "auto":
            need(
                estimator in DIFFERENCES
                and (self.optimizer, self.shaping) == ("sgd", "none"),
                f"learning_rate auto needs estimator {', '.join(DIFFERENCES)},"
                " optimizer sgd and shaping none",
            )
        if self.dtype == "bfloat16" and tuning not in ("lora", "cores"):
            need(
                self.smoothing >= 1e-3 or estimator == "first-order",
                f"smoothing must be >= 1e-3 for {tuning} in bfloat16, which rounds"
                f" smaller perturbations away, got {self.smoothing}",
            )
        fits = self.objective != "accuracy" or estimator != "first-order"
        need(fits, "objective accuracy has no gradient: not first-order")
        least = 1 + (estimator in ("mean", "leave-one-out", "dap"))
        if self.sampler == "simplex":
            least = 4 if estimator == "dap" else 2  # each of dap's stages needs two
            fits = k.bit_count() == 1
            need(fits, f"directions must be a power of 2 for simplex, got {k}")
            fits = estimator != "leave-one-out"
            need(fits, "estimator must be mean for simplex: directions sum to zero")
        need(k >= least, f"directions must be >= {least} for {estimator}, got {k}")
        fits = tuning != "all" or self.dtype != "int8"
        need(fits, "tuning all needs floats, not int8: tune scales there")
        fits = tuning != "scales" or self.dtype == "int8"
        need(fits, f"tuning scales needs dtype int8, got {self.dtype!r}")
        need(
            tuning not in LAZY or self.sampler in ("gaussian", "rademacher"),
            "sampler must be gaussian or rademacher, drawn layer by layer, for tuning"
            f" {tuning}, got {self.sampler!r}",
        )
        return self


def default(name: str) -> Any:
    """What a setting is unless one says otherwise."""
    return Recipe.model_fields[name].default


# Central differences, one direction a step: what studies of other steps start from.
TWO_SIDED: dict[str, Any] = {"estimator": "two-sided", "directions": 1}
TWO_SIDED |= {"shaping": "none", "clip": default("clip"), "learning_rate": 0.03}

_QUICK = {"matrices": "od", "rank": 4, "head": "words", "learning_rate": 2e-3}
_QUICK |= {"steps": 25, "batch": 32, "sentences": 512}
_CORES = Recipe(
    tuning="cores",
    top=16,
    matrices="ogud",
    rank=16,
    predicting=True,
    after_text=True,
    calibrate=True,
    head="after",
    # The steps of FZOO: z-scores of four values are the weights of their directions.
    estimator="mean",
    directions=4,
    shaping="z-score",
    clip=0.0,
    smoothing=1e-2,
    learning_rate=1e-3,
    batch=64,
    sentences=4096,
    steps=300,
)
_AFTER_TEXT = Recipe(after_text=True, calibrate=True, sentences=4096)
_PAPER = {"sampler": "gaussian", "schedule": "constant", "clip": 0.0, "longest": 64}
_PAPER |= {"sentences": 1000, "steps": 20_000}
_ZOAR = {"estimator": "zoar", "history": 15, "smoothing": 1e-2, "learning_rate": 5e-5}
_DAP = {"estimator": "dap", "directions": 2, "smoothing": 1e-5, "learning_rate": 1e-4}
_ADAM = {"estimator": "first-order", "optimizer": "adam", "learning_rate": 1e-3}
_LORA = {"top": 16, "matrices": "qk", "freeze_a": True, "learning_rate": 0.2}
_PROMPT = {"tuning": "prompt", "learning_rate": 4e-3, "batch": 8, "sentences": 1024}

PRESETS: dict[str, tuple[str, Recipe]] = {
    "quick": (
        "1 x 4 cores of o and down, an eighth of cores-zo's sentences, by words, in two"
        " minutes: expect some 85% on the test sentences, 15 points above"
        " calibrated zero-shot",
        _CORES.replace(**_QUICK),
    ),
    "cores-zo": (
        "1 x 16 cores in the last 16 layers, between what predicts the label and"
        " principal directions, at the words after the text; then a regression on the"
        " states that they lead to; forward passes only",
        _CORES,
    ),
    "lora-zo": (
        "LoRA on queries and keys of the last 16 layers, at the words after the text,"
        " forward passes only",
        _AFTER_TEXT.replace(**_LORA, batch=32, steps=2000),
    ),
    "prompt-zo": (
        "10 virtual tokens after the text, forward passes only",
        _AFTER_TEXT.replace(**_PROMPT, steps=300),
    ),
    "full-zo": (
        "all parameters at the memory of a forward pass",
        Recipe(tuning="all", calibrate=True, learning_rate=1e-4),
    ),
    "lora-adam": (
        "the first-order ceiling: LoRA on all layers, exact gradients, Adam",
        Recipe(**_ADAM, steps=60),
    ),
    "zoar-paper": (
        "the ZoAR paper's settings (OPT-1.3B, SST-2, LoRA)",
        Recipe(**_PAPER, **_ZOAR),
    ),
    "dap-paper": (
        "the DAP paper's settings (OPT-1.3B, SST-2, prompt tuning)",
        Recipe(**_PAPER, **_DAP, tuning="prompt"),
    ),
}


def chosen(preset: str, config: Path | None, options: dict[str, Any]) -> Recipe:
    """The preset, changed by a JSON file, changed by options that are not None."""
    base = PRESETS[preset][1]
    given: dict[str, Any] = {}
    if config is not None:
        try:
            given |= json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"cannot read {config}: {error}") from None
    given |= {name: value for name, value in options.items() if value is not None}
    tuning = given.get("tuning", base.tuning)
    shaped = given.get("estimator", base.estimator) in SHAPED
    shaping = given.get("shaping", base.shaping if shaped else "none")
    for what, new in {"tuning": tuning, "shaping": shaping}.items():
        old = getattr(base, what)
        if old != new and "learning_rate" not in given:
            raise UsageError(
                f"preset {preset} has a learning rate for {what} {old}: choose one for"
                f" {new} with --learning-rate"
            )
    # What another tuning or shaping lacks falls away.
    lacks = {name for name, tunings in NEEDS.items() if tuning not in tunings}
    fitting = {name: default(name) for name in lacks}
    if shaping != base.shaping:
        clip = default("clip") if shaping == "none" else 0.0
        fitting |= {"shaping": shaping, "clip": clip}
    return base.replace(**fitting | given)


def matrix_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the matrices of a layer that are adapted."""
    return tuple(NAMES[letter] for letter in recipe.matrices)


def batch_at(recipe: Recipe, step: int) -> int:
    """Sentences of a step."""
    late = recipe.late_batch and 2 * step >= recipe.steps
    return recipe.late_batch if late else recipe.batch


def queries(recipe: Recipe) -> int:
    """Forward passes of a step."""
    return ESTIMATORS[recipe.estimator](recipe.directions)


def _estimator(recipe, sampler, key):
    mu, k, lazy = recipe.smoothing, recipe.directions, recipe.tuning in LAZY
    # Adapters are small: both sides of a direction are asked together. Of a whole model
    # one perturbed layer is drawn at a time, and the sides take turns.
    shared = {"key": key, "sampler": sampler, "chunk_size": 1 if lazy else None}
    if recipe.estimator == "zoar":
        shared |= {"storage": "replay", "history_size": recipe.history}
        return zojax.zoar(mu, k, symmetric=True, **shared)
    if recipe.estimator == "dap":
        # A held guide would need whole directions, which lazy(...) is there to avoid.
        storage = "replay" if lazy else "sums"
        return zojax.dap(mu, k, base=sampler, storage=storage, **shared)
    difference = DIFFERENCES[recipe.estimator]
    shared["shaping"] = zojax.shaping.z_score if recipe.shaping != "none" else None
    clip = recipe.clip or None
    return zojax.two_point(mu, k, difference=difference, clip=clip, **shared)


def optimizer(
    recipe: Recipe, params: Any, trainable: Any, stacked: Any, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Builds the optax chain: estimator, clipping, optimizer.

    What is not trainable, by a pytree prefix of bools, is frozen. Where tuning is LAZY,
    stacked leaves are perturbed slice by slice. A first-order chain takes gradients.
    """
    flags = jax.tree.broadcast(trainable, params)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(flags), strict=True)
    size = sum(leaf.size for leaf, flag in leaves if flag)
    rate, steps = recipe.learning_rate, recipe.steps
    schedule = {
        "constant": rate,
        "linear": optax.linear_schedule(rate, 0.0, steps),
        "cosine": optax.cosine_decay_schedule(rate, steps),
    }[recipe.schedule]
    inner = {
        "sgd": optax.sgd,
        "momentum": functools.partial(optax.sgd, momentum=0.9),
        "adam": optax.adam,
        "radazo": zojax.radazo,
    }[recipe.optimizer](schedule)
    parts = []
    if recipe.estimator != "first-order":
        sampler = SAMPLERS[recipe.sampler]()
        if recipe.tuning in LAZY:
            sampler = perturbations.lazy(sampler, stacked)
        parts.append(_estimator(recipe, perturbations.restrict(sampler, flags), key))
        if recipe.clip and recipe.estimator not in DIFFERENCES:
            # As above for one direction: |w v| = |w| sqrt(d). Of what is tuned alone:
            # the others' zeros may be int8, which has no norm.
            bound = optax.clip_by_global_norm(recipe.clip * math.sqrt(size))
            inner = optax.chain(bound, inner)
    labels = jax.tree.map(lambda flag: "tuned" if flag else "frozen", flags)
    parts.append(
        optax.partition({"tuned": inner, "frozen": optax.set_to_zero()}, labels)
    )
    return optax.chain(*parts)
