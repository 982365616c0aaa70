"""A recipe: what is tuned, how the gradient is estimated, and what is done with it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import optax

import zojax
from benchmarks import LARGEST, UsageError
from benchmarks.language.tuning import TUNINGS
from zojax import perturbations

__all__ = [
    "ESTIMATORS",
    "PRESETS",
    "Recipe",
    "batch_at",
    "matrix_names",
    "optimizer",
    "queries",
    "read",
    "sampler_of",
]

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
# Estimators of one step's values alone.
SHAPED = ("two-sided", "mean", "leave-one-out")
SIMPLE = (*SHAPED, "one-sided")
SHAPINGS = {"none": None, "z-score": zojax.shaping.z_score}
OBJECTIVES = ("cross-entropy", "accuracy")
OPTIMIZERS = ("sgd", "momentum", "adam", "radazo")
HEADS = ("words", "before", "after")
# What each letter of ``matrices`` names.
NAMES = {"g": "gate", "u": "up", "d": "down", **{name: name for name in "qkvo"}}
SCHEDULES = ("constant", "linear", "cosine")


def _option(
    default: Any, help: str, choices: Sequence[str] = (), least: int = 1
) -> Any:
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "least": least}
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a run; each field is an option of the command, with its help."""

    tuning: str = _option("lora", "what is tuned", TUNINGS)
    top: int = _option(
        0,
        "how many of the last layers LoRA, cores and norms adapt, 0 for all; what the"
        " layers below answer never changes and is computed once",
        least=0,
    )
    rank: int = _option(8, "of LoRA; the side of cores")
    matrices: str = _option(
        "qv",
        "what LoRA and cores adapt: q, k, v, o of the attention, g, u, d (gate, up,"
        " down) of the MLP",
        ("od", "qv", "qk", "qkv", "qkvo", "qkvod", "ogud", "qkvogud"),
    )
    predicting: bool = _option(
        False,
        "cores have one input direction, the one that predicts the label, in the place"
        " of so many principal ones",
    )
    norms: bool = _option(
        False, "LoRA and cores have the scales of the layers' norms tuned beside them"
    )
    freeze_a: bool = _option(False, "tune only the B of LoRA's A B")
    after_text: bool = _option(
        False,
        "LoRA, cores and norms adapt the template's last words alone, virtual tokens"
        " come before them: the text before is run once, a pass runs what follows",
    )
    tokens: int = _option(10, "virtual tokens of a prompt or a prefix")
    objective: str = _option(
        "cross-entropy",
        "what is lowered: the cross-entropy, or the share of wrong labels itself, which"
        " has no gradient: a larger smoothing and batch then",
        OBJECTIVES,
    )
    estimator: str = _option("two-sided", "of the gradient", tuple(ESTIMATORS))
    sampler: str = _option("rademacher", "of directions", tuple(SAMPLERS))
    directions: int = _option(1, "K, a step")
    smoothing: float = _option(1e-3, "mu")
    shaping: str = _option(
        "none",
        "z-score divides the estimate by the spread of a step's values (normalised"
        " steps; needs clip 0 and another learning rate)",
        tuple(SHAPINGS),
    )
    history: int = _option(0, "past steps that zoar reuses", least=0)
    optimizer: str = _option("sgd", "what is done with the gradient", OPTIMIZERS)
    learning_rate: float | Literal["auto"] = _option(
        2e-2,
        "at the start; auto: the one that lowers the objective most there, in the mean,"
        " from slopes and curvatures along 16 estimates (zojax.diagnose)",
    )
    schedule: str = _option("linear", "decay of the learning rate to 0", SCHEDULES)
    clip: float = _option(
        3.0,
        "bound of each directional derivative, with zoar and dap of |gradient| /"
        " sqrt(d); 0 for none",
    )
    steps: int = _option(500, "of the optimizer")
    batch: int = _option(16, "sentences a step")
    late_batch: int = _option(
        0, "sentences a step in the last half of the steps; 0: as before", least=0
    )
    longest: int = _option(
        24,
        "tokens of a training sentence with its template; longer ones are left out",
        least=8,
    )
    sentences: int = _option(2048, "at most so many are trained on")
    calibrate: bool = _option(
        False,
        "start from calibrated zero-shot: a constant on the label words' logits puts"
        " the median margin of the training sentences at 0, without their labels",
    )
    head: str = _option(
        "words",
        "what answers: the label words, or a logistic regression on the model's own"
        " states of the training sentences, fitted before the steps or after them",
        HEADS,
    )
    dtype: str = _option(
        "float32",
        "of the model; int8 holds its matrices in int8, with float scales",
        ("float32", "bfloat16", "int8"),
    )
    seed: int = _option(
        0, "of the order of sentences, LoRA's start and the directions", least=0
    )

    def __post_init__(self):
        """Checks what argparse does not see: recipes are also read from files."""
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            choices, least = field.metadata["choices"], field.metadata["least"]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name == "learning_rate" and value == "auto":
                continue
            if choices and value not in choices:
                raise UsageError(f"{name} must be one of {choices}, got {value!r}")
            if field.type == "int" and not (
                type(value) is int and least <= value <= LARGEST
            ):
                raise UsageError(
                    f"{name} must be a whole number from {least} to {LARGEST}, got"
                    f" {value!r}"
                )
            if "float" in str(field.type) and not (
                number
                and math.isfinite(value)
                and (value > 0 or (name == "clip" and value == 0))
            ):
                bound = ">= 0" if name == "clip" else "> 0"
                raise UsageError(f"{name} must be a number {bound}, got {value!r}")
            if field.type == "bool" and not isinstance(value, bool):
                raise UsageError(f"{name} must be true or false, got {value!r}")
        for name, tunings in NEEDS.items():
            chosen = (
                getattr(self, name) != type(self).__dataclass_fields__[name].default
            )
            if chosen and self.tuning not in tunings:
                raise UsageError(
                    f"{name} needs tuning {' or '.join(tunings)}, got {self.tuning!r}"
                )
        if self.head == "before" and self.calibrate:
            raise UsageError("head before leaves no words to calibrate: choose one")
        if self.batch > self.sentences:
            raise UsageError(
                f"batch must be at most sentences, {self.sentences}, got {self.batch}"
            )
        if self.late_batch > self.sentences:
            raise UsageError(
                f"late_batch must be at most sentences, {self.sentences}, got"
                f" {self.late_batch}"
            )
        self._check_steps()
        rounded = self.dtype == "bfloat16" and self.tuning not in ("lora", "cores")
        if rounded and self.smoothing < 1e-3 and self.estimator != "first-order":
            raise UsageError(
                f"smoothing must be >= 1e-3 for {self.tuning} in bfloat16, which rounds"
                f" smaller perturbations away, got {self.smoothing}"
            )
        if self.objective == "accuracy" and self.estimator == "first-order":
            raise UsageError("objective accuracy has no gradient: not first-order")
        least = {"mean": 2, "leave-one-out": 2, "dap": 2}.get(self.estimator, 1)
        if self.estimator == "dap" and self.sampler == "simplex":
            least = 4  # each of its stages needs two
        if self.directions < least:
            raise UsageError(
                f"directions must be >= {least} for {self.estimator}, got"
                f" {self.directions}"
            )
        if self.estimator == "leave-one-out" and self.sampler == "simplex":
            raise UsageError(
                "estimator must be mean for simplex, whose directions sum to zero, got"
                f" {self.estimator!r}"
            )
        power_of_two = self.directions > 1 and not self.directions & self.directions - 1
        if self.sampler == "simplex" and not power_of_two:
            raise UsageError(
                f"directions must be a power of 2 for simplex, got {self.directions}"
            )
        if self.tuning == "all" and self.dtype == "int8":
            raise UsageError("tuning all needs floats, not int8: tune scales there")
        if self.tuning == "scales" and self.dtype != "int8":
            raise UsageError(f"tuning scales needs dtype int8, got {self.dtype!r}")
        if self.tuning in LAZY and self.sampler not in ("gaussian", "rademacher"):
            raise UsageError(
                "sampler must be gaussian or rademacher, drawn layer by layer, for"
                f" tuning {self.tuning}, got {self.sampler!r}"
            )

    def _check_steps(self) -> None:
        """Which steps can be normalised, and of which a rate can be found."""
        if self.shaping != "none" and self.estimator not in SHAPED:
            raise UsageError(
                f"shaping needs estimator {', '.join(SHAPED)}, got {self.estimator!r}"
            )
        if self.shaping != "none" and self.clip:
            raise UsageError(
                f"clip must be 0 with shaping {self.shaping}, which bounds the weights"
                f" itself, got {self.clip}"
            )
        simple = (self.estimator, self.optimizer, self.shaping)
        if self.learning_rate == "auto" and simple not in [
            (estimator, "sgd", "none") for estimator in SIMPLE
        ]:
            raise UsageError(
                f"learning_rate auto needs estimator {', '.join(SIMPLE)}, optimizer sgd"
                f" and shaping none, got {', '.join(simple)}"
            )


_LORA = Recipe(
    top=16,
    matrices="qk",
    freeze_a=True,
    after_text=True,
    calibrate=True,
    learning_rate=0.2,
    batch=32,
)
_CORES = Recipe(
    tuning="cores",
    top=16,
    matrices="ogud",
    rank=16,
    predicting=True,
    after_text=True,
    calibrate=True,
    head="after",
    smoothing=1e-2,
    learning_rate=0.03,
    batch=64,
    sentences=4096,
)
_PROMPT = Recipe(
    tuning="prompt",
    after_text=True,
    calibrate=True,
    learning_rate=4e-3,
    batch=8,
    sentences=1024,
)
PRESETS: dict[str, tuple[str, Recipe]] = {
    "quick": (
        "cores-zo in three minutes, with an eighth of its sentences: expect some 83% on"
        " the test sentences, 13 points above calibrated zero-shot",
        dataclasses.replace(
            _CORES, matrices="od", rank=4, steps=50, batch=32, sentences=512
        ),
    ),
    "cores-zo": (
        "1 x 16 cores in the last 16 layers, between what predicts the label and"
        " principal directions, at the words after the text; then a regression on the"
        " states that they lead to; forward passes only",
        dataclasses.replace(_CORES, steps=600),
    ),
    "lora-zo": (
        "LoRA on queries and keys of the last 16 layers, at the words after the text,"
        " forward passes only",
        dataclasses.replace(_LORA, steps=2000, sentences=4096),
    ),
    "prompt-zo": (
        "10 virtual tokens after the text, forward passes only",
        dataclasses.replace(_PROMPT, steps=300),
    ),
    "full-zo": (
        "all parameters at the memory of a forward pass",
        Recipe(tuning="all", calibrate=True, learning_rate=1e-4),
    ),
    "lora-adam": (
        "the first-order ceiling: LoRA on all layers, exact gradients, Adam",
        Recipe(estimator="first-order", optimizer="adam", learning_rate=1e-3, steps=60),
    ),
    "zoar-paper": (
        "the ZoAR paper's settings (OPT-1.3B, SST-2, LoRA)",
        Recipe(
            estimator="zoar",
            history=15,
            sampler="gaussian",
            smoothing=1e-2,
            learning_rate=5e-5,
            schedule="constant",
            clip=0.0,
            longest=64,
            sentences=1000,
            steps=20_000,
        ),
    ),
    "dap-paper": (
        "the DAP paper's settings (OPT-1.3B, SST-2, prompt tuning)",
        Recipe(
            tuning="prompt",
            estimator="dap",
            directions=2,
            sampler="gaussian",
            smoothing=1e-5,
            learning_rate=1e-4,
            schedule="constant",
            clip=0.0,
            longest=64,
            sentences=1000,
            steps=20_000,
        ),
    ),
}


def read(path: Path) -> dict[str, Any]:
    """Reads some fields of a recipe from a JSON file."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    known = {field.name for field in dataclasses.fields(Recipe)}
    if not isinstance(fields, dict) or not set(fields) <= known:
        unknown = sorted(set(fields) - known) if isinstance(fields, dict) else fields
        raise UsageError(f"{path}: unknown {unknown}, choose from {sorted(known)}")
    return fields


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


def _schedule(recipe: Recipe) -> optax.ScalarOrSchedule:
    rate, steps = recipe.learning_rate, recipe.steps
    if recipe.schedule == "linear":
        return optax.linear_schedule(rate, 0.0, steps)
    if recipe.schedule == "cosine":
        return optax.cosine_decay_schedule(rate, steps)
    return rate


def _estimator(
    recipe: Recipe, sampler: zojax.Sampler, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    mu, k = recipe.smoothing, recipe.directions
    # Adapters are small: both sides of a direction are asked together. Of a whole model
    # one perturbed layer is drawn at a time, and the sides take turns.
    chunk = 1 if recipe.tuning in LAZY else None
    shared = {"key": key, "sampler": sampler, "chunk_size": chunk}
    differences = {
        "two-sided": "central",
        "one-sided": "forward",
        "mean": "mean",
        "leave-one-out": "leave_one_out",
    }
    if recipe.estimator in differences:
        kind = differences[recipe.estimator]
        clip = recipe.clip or None
        shaped = {"clip": clip, "shaping": SHAPINGS[recipe.shaping]}
        return zojax.two_point(mu, k, difference=kind, **shaped, **shared)
    if recipe.estimator == "zoar":
        return zojax.zoar(
            mu,
            k,
            history_size=recipe.history,
            storage="replay",
            symmetric=True,
            **shared,
        )
    # A held guide would need whole directions, which lazy(...) is there to avoid.
    storage = "replay" if recipe.tuning in LAZY else "sums"
    return zojax.dap(mu, k, base=sampler, storage=storage, **shared)


def sampler_of(recipe: Recipe, params: Any, trainable: Any) -> zojax.Sampler:
    """Whole directions of what is tuned."""
    return perturbations.restrict(SAMPLERS[recipe.sampler](), _flags(params, trainable))


def _flags(params: Any, trainable: Any) -> Any:
    """A flag for each leaf."""
    spread = lambda flag, sub: jax.tree.map(lambda _: flag, sub)
    return jax.tree.map(spread, trainable, params)


def optimizer(
    recipe: Recipe,
    params: Any,
    trainable: Any,
    key: jax.Array,
    *,
    stacked: Any = False,
) -> optax.GradientTransformationExtraArgs:
    """Builds the optax chain: estimator, clipping, optimizer.

    Args:
      recipe: its settings.
      params: what is tuned.
      trainable: pytree prefix of bools; the others are frozen.
      key: of the directions.
      stacked: leaves whose perturbation is drawn slice by slice (where LAZY).

    Returns:
      The chain; with a first-order recipe it takes gradients.
    """
    flags = _flags(params, trainable)
    size = sum(
        leaf.size
        for leaf, flag in zip(
            jax.tree.leaves(params), jax.tree.leaves(flags), strict=True
        )
        if flag
    )
    rate = _schedule(recipe)
    inner = {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=0.9),
        "adam": lambda: optax.adam(rate),
        "radazo": lambda: zojax.radazo(rate),
    }[recipe.optimizer]()
    parts = []
    if recipe.estimator != "first-order":
        sampler = SAMPLERS[recipe.sampler]()
        if recipe.tuning in LAZY:
            sampler = perturbations.lazy(sampler, stacked)
        sampler = perturbations.restrict(sampler, flags)
        parts.append(_estimator(recipe, sampler, key))
        if recipe.clip and recipe.estimator in ("zoar", "dap"):
            # As above for one direction: |w v| = |w| sqrt(d). Of what is tuned alone:
            # the others' zeros may be int8, which has no norm.
            bound = optax.clip_by_global_norm(recipe.clip * math.sqrt(size))
            inner = optax.chain(bound, inner)
    labels = jax.tree.map(lambda flag: "tuned" if flag else "frozen", flags)
    parts.append(
        optax.partition({"tuned": inner, "frozen": optax.set_to_zero()}, labels)
    )
    return optax.chain(*parts)
