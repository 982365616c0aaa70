"""A recipe: what is tuned, how the gradient is estimated, and what is done with it."""

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
    "top": ("lora", "cores"),
    "freeze_a": ("lora",),
    "predicting": ("cores",),
    "after_text": ("lora", "cores", "prompt"),
    "head": ("lora", "cores"),
}
OBJECTIVES = ("cross-entropy", "accuracy")
# What each letter of ``matrices`` names.
NAMES = {"g": "gate", "u": "up", "d": "down", **{name: name for name in "qkvo"}}

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]  # counts are 32-bit in JAX
CountOrZero = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0)]


class Recipe(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Settings of a run; each field is an option of the command, with its help."""

    tuning: Literal["lora", "cores", "prompt", "prefix", "scales", "all"] = Field(
        "lora", description="what is tuned"
    )
    top: CountOrZero = Field(
        0,
        description="how many of the last layers LoRA and cores adapt, 0 for all; what"
        " the layers below answer never changes and is computed once",
    )
    rank: Count = Field(8, description="of LoRA; the side of cores")
    matrices: Literal["od", "qv", "qk", "qkv", "qkvo", "qkvod", "ogud", "qkvogud"] = (
        Field(
            "qv",
            description="what LoRA and cores adapt: q, k, v, o of the attention, g, u,"
            " d (gate, up, down) of the MLP",
        )
    )
    predicting: bool = Field(
        False,
        description="cores have one input direction, the one that predicts the label,"
        " in the place of so many principal ones",
    )
    freeze_a: bool = Field(False, description="tune only the B of LoRA's A B")
    after_text: bool = Field(
        False,
        description="LoRA and cores adapt the template's last words alone, virtual"
        " tokens come before them: the text before is run once",
    )
    tokens: Count = Field(10, description="virtual tokens of a prompt or a prefix")
    objective: Literal["cross-entropy", "accuracy"] = Field(
        "cross-entropy",
        description="what is lowered: the cross-entropy, or the share of wrong labels"
        " itself, which has no gradient: a larger smoothing and batch then",
    )
    estimator: Literal[*ESTIMATORS] = Field("two-sided", description="of the gradient")
    sampler: Literal[*SAMPLERS] = Field("rademacher", description="of directions")
    directions: Count = Field(1, description="K, a step")
    smoothing: Positive = Field(1e-3, description="mu")
    history: CountOrZero = Field(0, description="past steps that zoar reuses")
    optimizer: Literal["sgd", "momentum", "adam", "radazo"] = Field(
        "sgd", description="what is done with the gradient"
    )
    learning_rate: Positive = Field(2e-2, description="at the start")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="decay of the learning rate to 0"
    )
    clip: float = Field(
        3.0,
        ge=0,
        description="bound of each directional derivative, with zoar and dap of"
        " |gradient| / sqrt(d); 0 for none",
    )
    steps: Count = Field(500, description="of the optimizer")
    batch: Count = Field(16, description="sentences a step")
    longest: int = Field(
        24,
        ge=8,
        description="tokens of a training sentence with its template; longer ones are"
        " left out",
    )
    sentences: Count = Field(2048, description="at most so many are trained on")
    calibrate: bool = Field(
        False,
        description="start from calibrated zero-shot: a constant on the label words'"
        " logits puts the median margin of the training sentences at 0",
    )
    head: Literal["words", "before", "after"] = Field(
        "words",
        description="what answers: the label words, or a logistic regression on the"
        " model's own states, fitted before the steps or after them",
    )
    dtype: Literal["float32", "bfloat16", "int8"] = Field(
        "float32",
        description="of the model; int8 holds its matrices in int8, with float scales",
    )
    seed: CountOrZero = Field(
        0, description="of the order of sentences, LoRA's start and the directions"
    )

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
        for name, tunings in NEEDS.items():
            if self.tuning not in tunings and getattr(self, name) != default(name):
                raise UsageError(
                    f"{name} needs tuning {' or '.join(tunings)}, got {self.tuning!r}"
                )
        least = {"mean": 2, "leave-one-out": 2, "dap": 2}.get(self.estimator, 1)
        simplex, k = self.sampler == "simplex", self.directions
        if simplex and self.estimator == "dap":
            least = 4  # each of its stages needs two
        rounded = self.dtype == "bfloat16" and self.tuning not in ("lora", "cores")
        first_order = self.estimator == "first-order"
        wrong = {
            "head before leaves no words to calibrate: choose one": self.calibrate
            and self.head == "before",
            f"batch must be at most sentences, {self.sentences}, got {self.batch}": (
                self.batch > self.sentences
            ),
            f"smoothing must be >= 1e-3 for {self.tuning} in bfloat16, which rounds"
            f" smaller perturbations away, got {self.smoothing}": rounded
            and self.smoothing < 1e-3
            and not first_order,
            "objective accuracy has no gradient: not first-order": first_order
            and self.objective == "accuracy",
            f"directions must be >= {least} for {self.estimator}, got {k}": k < least,
            "estimator must be mean for simplex, whose directions sum to zero": simplex
            and self.estimator == "leave-one-out",
            f"directions must be a power of 2 for simplex, got {k}": simplex
            and (k == 1 or k & k - 1),
            "tuning all needs floats, not int8: tune scales there": self.dtype == "int8"
            and self.tuning == "all",
            f"tuning scales needs dtype int8, got {self.dtype!r}": self.dtype != "int8"
            and self.tuning == "scales",
            "sampler must be gaussian or rademacher, drawn layer by layer, for tuning"
            f" {self.tuning}, got {self.sampler!r}": self.tuning in LAZY
            and self.sampler not in ("gaussian", "rademacher"),
        }
        for message, found in wrong.items():
            if found:
                raise UsageError(message)
        return self


def default(name: str) -> Any:
    """What a setting is unless one says otherwise."""
    return Recipe.model_fields[name].default


_LORA = {"top": 16, "matrices": "qk", "freeze_a": True, "after_text": True}
_LORA |= {"calibrate": True, "learning_rate": 0.2, "batch": 32}
_CORES = {"tuning": "cores", "top": 16, "matrices": "ogud", "rank": 16}
_CORES |= {"predicting": True, "after_text": True, "calibrate": True, "head": "after"}
_CORES |= {"smoothing": 1e-2, "learning_rate": 0.03, "batch": 64, "sentences": 4096}
_PROMPT = {"tuning": "prompt", "after_text": True, "calibrate": True, "steps": 300}
_PROMPT |= {"learning_rate": 4e-3, "batch": 8, "sentences": 1024}
_PAPER = {"sampler": "gaussian", "schedule": "constant", "clip": 0.0, "longest": 64}
_PAPER |= {"sentences": 1000, "steps": 20_000}
_ZOAR = {"estimator": "zoar", "history": 15, "smoothing": 1e-2, "learning_rate": 5e-5}
_DAP = {"tuning": "prompt", "estimator": "dap", "directions": 2, "smoothing": 1e-5}
_ADAM = {"estimator": "first-order", "optimizer": "adam", "learning_rate": 1e-3}
_SMALL = {"matrices": "od", "rank": 4, "steps": 50, "batch": 32, "sentences": 512}

PRESETS: dict[str, tuple[str, Recipe]] = {
    "quick": (
        "cores-zo in three minutes, with an eighth of its sentences: expect some 83% on"
        " the test sentences, 13 points above calibrated zero-shot",
        Recipe(**_CORES | _SMALL),
    ),
    "cores-zo": (
        "1 x 16 cores in the last 16 layers, between what predicts the label and"
        " principal directions, at the words after the text; then a regression on the"
        " states that they lead to; forward passes only",
        Recipe(**_CORES, steps=600),
    ),
    "lora-zo": (
        "LoRA on queries and keys of the last 16 layers, at the words after the text,"
        " forward passes only",
        Recipe(**_LORA, steps=2000, sentences=4096),
    ),
    "prompt-zo": (
        "10 virtual tokens after the text, forward passes only",
        Recipe(**_PROMPT),
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
        Recipe(**_PAPER | _ZOAR),
    ),
    "dap-paper": (
        "the DAP paper's settings (OPT-1.3B, SST-2, prompt tuning)",
        Recipe(**_PAPER | _DAP, learning_rate=1e-4),
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
    if tuning != base.tuning and "learning_rate" not in given:
        raise UsageError(
            f"preset {preset} has a learning rate for {base.tuning}: choose one for"
            f" {tuning} with --learning-rate"
        )
    # What another tuning lacks falls away.
    lacks = {name for name, tunings in NEEDS.items() if tuning not in tunings}
    return base.replace(**{name: default(name) for name in lacks} | given)


def matrix_names(recipe: Recipe) -> tuple[str, ...]:
    """Names of the matrices of a layer that are adapted."""
    return tuple(NAMES[letter] for letter in recipe.matrices)


def queries(recipe: Recipe) -> int:
    """Forward passes of a step."""
    return ESTIMATORS[recipe.estimator](recipe.directions)


def _estimator(
    recipe: Recipe, sampler: zojax.Sampler, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
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
    clip = recipe.clip or None
    return zojax.two_point(mu, k, difference=difference, clip=clip, **shared)


def optimizer(
    recipe: Recipe, params: Any, trainable: Any, stacked: Any, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Builds the optax chain: estimator, clipping, optimizer.

    Args:
      recipe: its settings; with a first-order one the chain takes gradients.
      params: what is tuned.
      trainable: pytree prefix of bools; the others are frozen.
      stacked: leaves whose perturbation is drawn slice by slice (where LAZY).
      key: of the directions.
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
    momentum = 0.9 if recipe.optimizer == "momentum" else None
    inner = {"adam": optax.adam, "radazo": zojax.radazo}.get(
        recipe.optimizer, lambda rate: optax.sgd(rate, momentum)
    )(schedule)
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
