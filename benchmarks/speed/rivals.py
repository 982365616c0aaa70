"""A ZoAR step beside the least it could cost and beside other people's steps.

Rosenbrock, K = 10, N = 5, whole steps with R-AdaZO. The floor is K evaluations and one
pass over noise of packed signs; a step that holds no noise has to draw it twice. A
rival whose package is missing is left out, and the findings say so.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pandas as pd
from matplotlib.figure import Figure

import zojax
from benchmarks.functions import rosenbrock
from benchmarks.rivals import mezo_by_hand
from benchmarks.speed.timing import bars, timed_rows, training, where
from benchmarks.study import Cell, Row, Study, Tables, Tick
from zojax.perturbations import gaussian, rademacher

NUM_DIRECTIONS, HISTORY, SMOOTHING, STEP_SIZE = 10, 5, 0.05, 1e-3
QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000)
REPEATS = 9

OURS, GAUSSIAN = "ZoAR, Rademacher", "ZoAR, gaussian"
FLOOR = "floor"
EVALUATIONS, NORMAL = "K evaluations", "jax.random.normal((K, d))"
GRADIENT = "first order: jax.grad"
BY_HAND, MEZO = "MeZO by hand, K = 1", "zojax.mezo, K = 1"
MEZO_SIGNS = "zojax.mezo, Rademacher, K = 1"
EVOSAX = "evosax Open_ES"
LOOP, BATCHED = "PyTorch ZoAR, in a loop", "PyTorch ZoAR, batched"

# Package: the programs that need it.
NEEDS = {"torch": (LOOP, BATCHED), "evosax": (EVOSAX,)}
# JAX's backend: PyTorch's name of the same device.
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
# What a row's time is divided by, by column.
BASES = {
    "over_floor": FLOOR,
    "over_rademacher": OURS,
    "over_gaussian": GAUSSIAN,
    "over_mezo": MEZO,
}


# -- the least that a step could cost --------------------------------------------------


def evaluations(x: jax.Array) -> jax.Array:
    """The values f[K] at K points, which differ by a number and so cost nothing."""
    offsets = SMOOTHING * jnp.arange(NUM_DIRECTIONS, dtype=x.dtype)
    return jax.vmap(lambda offset: rosenbrock(x + offset))(offsets)


def packed_signs(key: jax.Array, dimension: int) -> jax.Array:
    """Signs f[K, d], 32 from each random word."""
    words = jax.random.bits(key, (NUM_DIRECTIONS, -(-dimension // 32)), jnp.uint32)
    shifted = words[:, :, None] << jnp.arange(32, dtype=jnp.uint32)
    bits = (shifted & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)  # +-1.0f
    signs = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return signs.reshape(NUM_DIRECTIONS, -1)[:, :dimension]


def floor_step(x: jax.Array, key: jax.Array) -> jax.Array:
    return x - 1e-12 * (evaluations(x) @ packed_signs(key, x.size))


def evaluations_step(x: jax.Array, key: jax.Array) -> jax.Array:
    del key
    return x - 1e-12 * evaluations(x).sum()


def normal_step(x: jax.Array, key: jax.Array) -> jax.Array:
    return x - 1e-12 * jax.random.normal(key, (NUM_DIRECTIONS, x.size)).sum()


def repeated(
    step: Callable[[jax.Array, jax.Array], jax.Array], steps: int
) -> Callable[[jax.Array], jax.Array]:
    """A step (x, key) -> x many times in a scan, each with a key of its own."""

    def run(x):
        key = jax.random.key(0)
        body = lambda x, n: (step(x, jax.random.fold_in(key, n)), None)
        return jax.lax.scan(body, x, jnp.arange(steps))[0]

    return run


# -- the programs ----------------------------------------------------------------------


def zoar(sampler, steps: int, history_size: int = HISTORY, **options) -> Callable:
    """Our steps."""
    options |= {"key": 0, "history_size": history_size, "sampler": sampler}
    estimator = zojax.zoar(SMOOTHING, NUM_DIRECTIONS, **options)
    opt = optax.chain(estimator, zojax.radazo(STEP_SIZE))
    return training(opt, rosenbrock, steps)


def first_order(steps: int) -> Callable:
    opt = zojax.radazo(STEP_SIZE)

    def step(carry, _):
        x, state = carry
        updates, state = opt.update(jax.grad(rosenbrock)(x), state, x)
        return (optax.apply_updates(x, updates), state), None

    return lambda x: jax.lax.scan(step, (x, opt.init(x)), length=steps)[0][0]


def in_jax(steps: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """What needs no other package: name: x -> x after the steps."""
    # So small a step that Rosenbrock stays finite without an adaptive optimizer.
    mezo = functools.partial(zojax.mezo, 1e-9, SMOOTHING, key=0)
    return {
        NORMAL: repeated(normal_step, steps),
        EVALUATIONS: repeated(evaluations_step, steps),
        FLOOR: repeated(floor_step, steps),
        OURS: zoar(rademacher(), steps),
        GAUSSIAN: zoar(gaussian(), steps),
        "ZoAR, Rademacher, replayed keys": zoar(rademacher(), steps, storage="replay"),
        "ZoAR, Rademacher, one at a time": zoar(rademacher(), steps, chunk_size=1),
        "ZoAR, gaussian, one at a time": zoar(gaussian(), steps, chunk_size=1),
        "mean baseline, Rademacher": zoar(rademacher(), steps, 0),
        GRADIENT: first_order(steps),
        BY_HAND: mezo_by_hand.training(rosenbrock, steps, SMOOTHING, 1e-9),
        MEZO: training(mezo(), rosenbrock, steps),
        MEZO_SIGNS: training(mezo(sampler=rademacher()), rosenbrock, steps),
    }


def in_evosax(steps: int) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The program of evosax; an ImportError without it."""
    from benchmarks.rivals import open_es

    optimizer = zojax.radazo(STEP_SIZE)
    return {
        EVOSAX: open_es.training(
            rosenbrock, steps, NUM_DIRECTIONS, SMOOTHING, optimizer
        )
    }


def in_torch(dimension: int, steps: int) -> dict[str, Callable[[], None]]:
    """The programs of PyTorch, which go on where they stopped; an ImportError.

    They run where JAX runs; none does where this PyTorch cannot use that device.
    """
    import torch

    from benchmarks.rivals import zoar_torch

    device = TORCH_DEVICES.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return {}

    def program(step, num_records):
        run = zoar_torch.start(dimension, num_records, 0, device)

        def go():
            for _ in range(steps):
                step(run, zoar_torch.rosenbrock, NUM_DIRECTIONS, SMOOTHING, STEP_SIZE)
            if device == "cuda":
                torch.cuda.synchronize()

        return go

    pairs = (HISTORY + 1) * NUM_DIRECTIONS
    return {
        LOOP: program(zoar_torch.loop_step, pairs),
        BATCHED: program(zoar_torch.batched_step, HISTORY + 1),
    }


def unless_missing(build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is built, or nothing where a rival's package is not installed."""
    try:
        return build()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDS:
            raise
        return {}


def programs(dimension: int, seed: int) -> dict[str, tuple[Callable[[], Any], int]]:
    """Name: (program, steps that it takes); those in JAX take the same number."""
    steps = min(200, max(10, 2_000_000 // dimension))
    # Enough for the warm-up to fill the history.
    torch_steps = min(40, max(HISTORY + 1, 400_000 // dimension))
    x = jax.random.normal(jax.random.key(seed), (dimension,))
    jitted = in_jax(steps) | unless_missing(lambda: in_evosax(steps))
    found = {
        name: (functools.partial(jax.jit(run), x), steps)
        for name, run in jitted.items()
    }
    torch = unless_missing(lambda: in_torch(dimension, torch_steps))
    return found | {name: (run, torch_steps) for name, run in torch.items()}


# -- the study -------------------------------------------------------------------------


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """A row for each program; they take turns."""
    rows = timed_rows(programs(dimension, seed), REPEATS, tick, BASES)
    return [{"dimension": dimension, "program": n, **row} for n, row in rows.items()]


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension; all programs take turns in it."""
    dimensions = FULL if full else QUICK
    if jax.default_backend() != "cpu":  # small ones say little there
        dimensions = (*dimensions, 10_000_000)
    return {str(d): functools.partial(measure, d, seed) for d in dimensions}


def tables(frame: pd.DataFrame) -> Tables:
    """A step, over the floor, over our ZoAR, over MeZO with our estimator."""
    return {
        f"d = {d:,}, K = {NUM_DIRECTIONS}": part.set_index("program")[
            ["milliseconds", *BASES]
        ]
        for d, part in frame.groupby("dimension")
    }


def findings(frame: pd.DataFrame) -> list[str]:
    """How it was timed, and what could not be."""
    out = [
        f"{where(frame, REPEATS)} Floor: K evaluations, and K packed directions drawn"
        " and used once. The PyTorch loops spend one query more a step, f(theta), to"
        " log it, as the paper's code does."
    ]
    there = set(frame["program"])
    out += [
        f"{package} is missing or cannot use this device, so {' and '.join(names)}"
        ' is left out: pip install -e ".[rivals]"'
        for package, names in NEEDS.items()
        if not there & set(names)
    ]
    return out


def figure(frame: pd.DataFrame) -> Figure:
    """Over the time of ZoAR with random signs."""
    return bars(frame, "over_rademacher", "program", "dimension")


STUDY = Study(
    "A step beside its floor and rivals", cells, tables, findings, figure, timed=True
)
