"""The projection in high dimension: time and memory of a DAP step beside the sphere's.

The objective is the quadratic, as cheap as can be, so that a ratio is that of the
estimators. Temporary memory is what XLA plans for one update, in vectors of size d; the
K directions and perturbed points are in it unless chunk_size is 1.
"""

import functools

import jax
import jax.numpy as jnp
import optax
import pandas as pd

import zojax
from benchmarks.functions import quadratic
from benchmarks.speed.timing import compare, comparison, ratios, training
from benchmarks.study import Cell, Row, Tick
from zojax import perturbations

SMOOTHING, NUM_DIRECTIONS = 1e-3, 10
QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000, 10_000_000)
REPEATS = 7
ENTRIES = 1_000_000  # of all steps of a timed run together
SPHERE, DAP, SIGNS = "sphere", "two-stage DAP", "two-stage DAP, Rademacher"
REPLAYED = "two-stage DAP, Rademacher, guide replayed"
BASES = {"over_stored": SIGNS, "over_sphere": SPHERE}


def objective(x: zojax.PerturbedArray | jax.Array) -> jax.Array:
    """The quadratic, also where a direction is drawn inside it."""
    return quadratic(zojax.materialize(x))


def estimators(chunk_size: int | None) -> dict:
    """What is timed."""
    shared = {"key": 0, "chunk_size": chunk_size}
    dap = functools.partial(zojax.dap, SMOOTHING, NUM_DIRECTIONS, **shared)
    sphere, signs = perturbations.sphere(), perturbations.rademacher()
    lazy = perturbations.lazy(signs)
    return {
        SPHERE: zojax.two_point(SMOOTHING, NUM_DIRECTIONS, sampler=sphere, **shared),
        DAP: dap(),
        SIGNS: dap(sampler=signs, base=signs),
        REPLAYED: dap(sampler=lazy, base=lazy, storage="replay"),
    }


def vectors(opt: optax.GradientTransformationExtraArgs, dimension: int) -> float:
    """Bytes that XLA plans for one update, in float32 vectors of size d."""
    like = jax.ShapeDtypeStruct((dimension,), jnp.float32)
    state = jax.eval_shape(opt.init, like)
    update = lambda state, x: opt.update(None, state, x, value_fn=objective)
    compiled = jax.jit(update).lower(state, like).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4 * dimension)


def measure(dimension: int, chunk_size: int | None, seed: int, tick: Tick) -> list[Row]:
    """The estimators take turns."""
    x = jax.random.normal(jax.random.key(seed), (dimension,))
    steps, opts, programs = max(1, ENTRIES // dimension), estimators(chunk_size), {}
    for name, opt in opts.items():
        train = training(optax.chain(opt, optax.sgd(1e-4)), objective, steps)
        programs[name] = functools.partial(jax.jit(train), x), steps
    rows = compare(programs, BASES, REPEATS, tick)
    return [{"vectors": vectors(opts[r["program"]], dimension)} | r for r in rows]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension and chunk size."""
    return {
        f"d = {d:,}, {words}": functools.partial(measure, d, chunk, seed)
        for d in (FULL if full else QUICK)
        for words, chunk in (("all at once", None), ("one at a time", 1))
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """The ratios."""
    return [
        *ratios(frame, "over_sphere", (DAP, SIGNS), SPHERE),
        *ratios(frame, "over_stored", [REPLAYED], SIGNS),
    ]


COLUMNS = ("ms", "vectors", "over_stored", "over_sphere")
STUDY = comparison("DAP's projection in high dimension", cells, findings, COLUMNS)
