"""Planned memory of a step that tunes a language model, on one chip to many."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pandas as pd
import seaborn
from matplotlib.figure import Figure

import zojax
from benchmarks.accelerators.compiled import devices, operations
from benchmarks.accelerators.shapes import DATA, MODELS, Layout, layouts, opt
from benchmarks.language import cost, problem, training
from benchmarks.language.recipe import Recipe
from benchmarks.memory.programs import total_bytes
from benchmarks.study import COLOURS, Cell, Row, Study, Tables, Tick
from zojax.perturbations import lazy, low_rank, rademacher

LENGTH = 64  # tokens of a sentence; cost.BATCH sentences
MEMBERS = 8
SMOOTHING = 1e-3


class Program(NamedTuple):
    """A step to compile: what it gets, and what of that it overwrites."""

    step: Callable[..., Any]
    args: tuple[Any, ...]  # (tuned, state, frozen)


def _by_recipe(ready: problem.Problem, layout: Layout, **fields: Any) -> Program:
    recipe = Recipe(**{"tuning": "all", "dtype": "bfloat16", **fields})
    part = training.tuned_part(recipe)
    opt, step = training.make_step(recipe, ready)
    frozen = {name: leaf for name, leaf in ready.params.items() if name != part}
    state = jax.eval_shape(opt.init, ready.params)
    return Program(step, (ready.params[part], state, frozen))


def _all_parameters(
    ready: problem.Problem, advance: Callable, init: Callable
) -> Program:
    """A step of the model's own parameters: advance(params, state, loss of them)."""
    value_fn = problem.loss(ready.config, ready.words)

    def step(params, state, frozen, batch):
        of_model = lambda model: value_fn({**frozen, "model": model}, batch)
        return advance(params, state, of_model)

    model = ready.params["model"]
    frozen = {name: leaf for name, leaf in ready.params.items() if name != "model"}
    return Program(step, (model, jax.eval_shape(init, model), frozen))


def _by_estimator(
    ready: problem.Problem, estimator: optax.GradientTransformationExtraArgs
) -> Program:
    """All parameters, plain SGD."""
    opt = optax.chain(estimator, optax.sgd(1e-6))

    def advance(params, state, value_fn):
        updates, state = opt.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return _all_parameters(ready, advance, opt.init)


def _low_rank(
    ready: problem.Problem, layout: Layout, difference: str = "leave_one_out"
) -> Program:
    """All members at once: they share the products with the weights."""
    estimator = zojax.two_point(
        SMOOTHING, MEMBERS, key=0, difference=difference, sampler=low_rank(1)
    )
    return _by_estimator(ready, estimator)


def _replayed(
    ready: problem.Problem, layout: Layout, factory: Callable[..., Any], **fields: Any
) -> Program:
    """Directions that are drawn again, of past steps or in their projections."""
    sampler = lazy(rademacher(), ready.stacked["model"])
    fields = {"sampler": sampler, "storage": "replay", "chunk_size": 1, **fields}
    if factory is zojax.dap:
        fields["base"] = sampler
    return _by_estimator(ready, factory(SMOOTHING, key=0, **fields))


def _spread(ready: problem.Problem, layout: Layout) -> Program:
    """A direction for each device of the axis: values and one sum travel."""
    estimator = zojax.two_point(
        SMOOTHING,
        layout.mesh.shape[DATA],
        key=0,
        difference="central",
        sampler=lazy(rademacher(), ready.stacked["model"]),
        chunk_size=1,
        axis_name=DATA,
    )
    return _by_estimator(ready, estimator)


def _spread_and_added(ready: problem.Problem, layout: Layout) -> Program:
    """The same, where only values travel: each device adds all directions in place."""
    sampler = lazy(rademacher(), ready.stacked["model"])

    def advance(params, count, value_fn):
        key = jax.random.fold_in(jax.random.key(0), count)
        number = layout.mesh.shape[DATA]
        V = zojax.Directions(sampler, key, number, chunk_size=1)
        asked = dataclasses.replace(V, axis_name=DATA)
        y, _ = zojax.evaluate(value_fn, params, asked, SMOOTHING, sides=(1.0, -1.0))
        weights = zojax.weights.central(y[:, 0], y[:, 1], SMOOTHING)
        return zojax.queries.add_directions(params, -1e-6 * weights, V), count + 1

    return _all_parameters(ready, advance, lambda params: np.int32(0))


LORA = "LoRA, signs"  # all others tune all parameters
# Label: (problem, layout) -> program.
STEPS: dict[str, Callable[[problem.Problem, Layout], Program]] = {
    "backprop, SGD": functools.partial(_by_recipe, estimator="first-order"),
    "all, signs": _by_recipe,
    "all, gaussian": functools.partial(_by_recipe, sampler="gaussian"),
    LORA: functools.partial(_by_recipe, tuning="lora"),
    f"low rank, K = {MEMBERS}": _low_rank,
    f"low rank, K = {MEMBERS}, both sides": functools.partial(
        _low_rank, difference="central"
    ),
    "zoar, replay, N = 5": functools.partial(
        _replayed, factory=zojax.zoar, num_directions=1
    ),
    "dap, replay, K = 4": functools.partial(
        _replayed, factory=zojax.dap, num_directions=4
    ),
    "all, signs, spread": _spread,
    "all, signs, spread, added": _spread_and_added,
}
BOTH = ["all, signs", "all, gaussian"]
PLAIN = ["backprop, SGD", *BOTH, LORA]
LOW_RANK = [name for name in STEPS if name.startswith("low rank")]
REPLAYED = [name for name in STEPS if "replay" in name]
SPREAD = ["all, signs, spread", "all, signs, spread, added"]


def cases(number: int, full: bool) -> list[tuple[str, str, list[str]]]:
    """(model, layout, steps) for a number of chips."""
    small, large = "OPT-1.3b", "OPT-13b"
    alone = [(small, "one chip", PLAIN + LOW_RANK + REPLAYED)]
    if number == 1:
        more = [(model, "one chip", PLAIN) for model in ("OPT-125m", large)]
        return alone + more * full
    spread = [(small, "params", LOW_RANK), (small, "directions", SPREAD)]
    if number < 8:
        return [*alone, (large, "params", BOTH), *spread]
    if number == 8:
        return [
            (large, "params", PLAIN),
            (small, "batch", ["all, signs"]),
            *spread,
            (small, "params, batch", ["all, signs"]),
            (small, "params, directions", SPREAD),
        ]
    return [
        ("OPT-66b", "params, batch", PLAIN),
        (large, "params, directions", SPREAD),
    ]


def _compile(layout: Layout, function: Callable, args: Any, donated: Any = ()) -> Any:
    with jax.set_mesh(layout.mesh):
        return jax.jit(function, donate_argnums=donated).lower(*args).compile()


def needed(error: Exception) -> float:
    """Bytes that a program would need, from the compiler's refusal; NaN if unsaid."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", str(error))
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return float(found[1]) * unit[found[2]] if found else float("nan")


def measure(topology: str, model: str, layout: str, label: str, tick: Tick) -> Row:
    """What the compiler plans for one step, beside the forward pass."""
    where = layouts(devices(topology))[layout]
    recipe = Recipe(tuning="lora" if label == LORA else "all", dtype="bfloat16")
    ready = cost.without_sentences(recipe, opt(*MODELS[model]))
    batch = where.place_batch(cost.batch_of(LENGTH))
    value_fn = problem.loss(ready.config, ready.words)
    forward = _compile(where, value_fn, (where.place(ready.params), batch))
    tick(0.2)
    program = STEPS[label](ready, where)
    args = (*map(where.place, program.args), batch)
    row = {
        "topology": topology,
        "model": model,
        "layout": where.label,
        "step": label,
        "forward": total_bytes(forward),
        "forward_collectives": operations(forward)["collectives"],
        "fits": True,
        "jax": jax.__version__,
    }
    try:
        compiled = _compile(where, program.step, args, (0, 1))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row |= {"fits": False, "bytes": needed(error)}
    else:
        temporary = compiled.memory_analysis().temp_size_in_bytes
        row |= {"bytes": total_bytes(compiled), "temporary": temporary}
        row |= operations(compiled)
    return row | {"over_forward": row["bytes"] / row["forward"]}


def cells(topology: Sequence[str], full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each topology, model, layout and step."""
    del seed  # nothing is run

    def cell(*case: str) -> Cell:
        return lambda tick: [measure(*case, tick)]

    return {
        f"{chip}/{model}/{layout}/{step}": cell(chip, model, layout, step)
        for chip in topology
        for model, layout, steps in cases(len(devices(chip)), full)
        for step in steps
    }


def tables(frame: pd.DataFrame) -> Tables:
    """Memory of a chip as its compiler plans it, one for each topology."""
    out = {}
    for chip, part in frame.groupby("topology", sort=False):
        rows = part.set_index(["model", "layout", "step"])
        shown = {
            "forward, GB": rows["forward"] / 1e9,
            "step, GB": rows["bytes"] / 1e9,
            "over forward": rows["over_forward"]
            .map("{:.3f}".format)
            .where(rows["fits"].astype(bool), "does not fit"),
            "collectives": rows["collectives"],
            "of forward": rows["forward_collectives"],
        }
        title = f"{chip}, {cost.BATCH} x {LENGTH} tokens, JAX {rows['jax'].iloc[-1]}"
        out[title] = pd.DataFrame(shown)
    return out


def findings(frame: pd.DataFrame) -> list[str]:
    """The worst step that is not backprop, by topology."""
    out = []
    for chip, part in frame.groupby("topology", sort=False):
        ours = part[part["step"] != "backprop, SGD"]
        worst = ours.loc[ours["over_forward"].idxmax()]
        refused = ours[~ours["fits"].astype(bool)]
        few = f"{len(refused)} of {len(ours)} do not fit"
        fits = few if len(refused) else "all fit"
        out.append(
            f"{chip}: forward-only steps need at most {worst['over_forward']:.3f} of"
            f" the forward pass ({worst['model']}, {worst['layout']},"
            f" {worst['step']}); {fits}."
        )
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Memory over the forward pass's by model and layout; a panel for each topology."""
    found = frame.assign(where=frame["model"] + ", " + frame["layout"])
    grid = seaborn.catplot(
        found.rename(columns={"over_forward": "planned memory / forward pass's"}),
        x="planned memory / forward pass's",
        y="where",
        hue="step",
        row="topology",
        kind="strip",
        jitter=False,
        palette=list(COLOURS[: frame["step"].nunique()]),
        sharey=False,
        height=3,
        aspect=2.5,
    )
    return grid.set_titles("{row_name}").set(ylabel="").refline(x=1).figure


def study(topology: Sequence[str]) -> Study:
    """The study, for these topologies."""
    of_chips = functools.partial(cells, topology)
    return Study("Language models on accelerators", of_chips, tables, findings, figure)
