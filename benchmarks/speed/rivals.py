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

import zojax
from benchmarks.functions import FUNCTIONS
from benchmarks.rivals import mezo_by_hand
from benchmarks.speed.timing import Timed, compare, comparison, ratios, training
from benchmarks.study import Cell, Row, Tick
from zojax.perturbations import gaussian, rademacher

NUM_DIRECTIONS, HISTORY, SMOOTHING, STEP_SIZE = 10, 5, 0.05, 1e-3
QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000)
REPEATS = 9

OURS, GAUSSIAN, MEAN = "ZoAR, Rademacher", "ZoAR, gaussian", "mean baseline, Rademacher"
FLOOR, EVOSAX = "floor", "evosax Open_ES"
BY_HAND, MEZO = "MeZO by hand, K = 1", "zojax.mezo, K = 1"
LOOP, BATCHED = "PyTorch ZoAR, in a loop", "PyTorch ZoAR, batched"
# Package: the programs that need it.
NEEDS = {"torch": (LOOP, BATCHED), "evosax": (EVOSAX,)}
# JAX's backend: PyTorch's name of the same device.
TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}
# Column: what a row's time is divided by.
BASES = {
    "over_floor": FLOOR,
    "over_gaussian": GAUSSIAN,
    "over_mezo": MEZO,
    "over_rademacher": OURS,
}

Objective = Callable[[jax.Array], jax.Array]
Programs = dict[str, Callable[[jax.Array], jax.Array]]
"""Name: x -> x after some steps."""


# -- the least that a step could cost --------------------------------------------------


def evaluations(f: Objective, x: jax.Array) -> jax.Array:
    """The values f[K] at K points, which differ by a number and so cost nothing."""
    offsets = SMOOTHING * jnp.arange(NUM_DIRECTIONS, dtype=x.dtype)
    return jax.vmap(lambda offset: f(x + offset))(offsets)


def packed_signs(key: jax.Array, dimension: int) -> jax.Array:
    """Signs f[K, d], 32 from each random word."""
    words = jax.random.bits(key, (NUM_DIRECTIONS, -(-dimension // 32)), jnp.uint32)
    shifted = words[:, :, None] << jnp.arange(32, dtype=jnp.uint32)
    bits = (shifted & jnp.uint32(0x80000000)) | jnp.uint32(0x3F800000)  # +-1.0f
    signs = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return signs.reshape(NUM_DIRECTIONS, -1)[:, :dimension]


def floor(f: Objective, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Steps in a scan, each with a key of its own."""

    def step(x, n):
        signs = packed_signs(jax.random.fold_in(jax.random.key(0), n), x.size)
        return x - 1e-12 * (evaluations(f, x) @ signs), None

    return lambda x: jax.lax.scan(step, x, jnp.arange(steps))[0]


# -- the programs ----------------------------------------------------------------------


def in_jax(f: Objective, steps: int) -> Programs:
    """What needs no other package."""

    def zoar(sampler, history_size=HISTORY, **options):
        options |= {"key": 0, "history_size": history_size, "sampler": sampler}
        estimator = zojax.zoar(SMOOTHING, NUM_DIRECTIONS, **options)
        return training(optax.chain(estimator, zojax.radazo(STEP_SIZE)), f, steps)

    signs = rademacher()
    return {
        FLOOR: floor(f, steps),
        OURS: zoar(signs),
        GAUSSIAN: zoar(gaussian()),
        "ZoAR, Rademacher, replayed keys": zoar(signs, storage="replay"),
        "ZoAR, Rademacher, one at a time": zoar(signs, chunk_size=1),
        "ZoAR, gaussian, one at a time": zoar(gaussian(), chunk_size=1),
        MEAN: zoar(signs, 0),
        # So small a step that Rosenbrock stays finite without an adaptive optimizer.
        BY_HAND: mezo_by_hand.training(f, steps, SMOOTHING, 1e-9),
        MEZO: training(zojax.mezo(1e-9, SMOOTHING, key=0), f, steps),
    }


def in_evosax(f: Objective, steps: int) -> Programs:
    """The program of evosax; an ImportError without it."""
    from benchmarks.rivals import open_es

    optimizer = zojax.radazo(STEP_SIZE)
    return {EVOSAX: open_es.training(f, steps, NUM_DIRECTIONS, SMOOTHING, optimizer)}


def in_torch(function: str, dimension: int, steps: int) -> dict[str, Timed]:
    """The programs of PyTorch, which go on where they stopped; an ImportError.

    They run where JAX runs; none does where this PyTorch cannot use that device.
    """
    import torch

    from benchmarks.rivals import zoar_torch

    device = TORCH_DEVICES.get(jax.default_backend())
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        return {}
    f = zoar_torch.FUNCTIONS[function]

    def program(step, num_records):
        run = zoar_torch.start(dimension, num_records, 0, device)

        def go():
            for _ in range(steps):
                step(run, f, NUM_DIRECTIONS, SMOOTHING, STEP_SIZE)
            if device == "cuda":
                torch.cuda.synchronize()

        return go, steps

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


def programs(function: str, dimension: int, seed: int) -> dict[str, Timed]:
    """Those in JAX take the same number of steps."""
    f, steps = FUNCTIONS[function], min(200, max(10, 2_000_000 // dimension))
    # Enough for the warm-up to fill the history.
    torch_steps = min(40, max(HISTORY + 1, 400_000 // dimension))
    x = jax.random.normal(jax.random.key(seed), (dimension,))
    jitted = in_jax(f, steps) | unless_missing(lambda: in_evosax(f, steps))
    return {
        name: (functools.partial(jax.jit(run), x), steps)
        for name, run in jitted.items()
    } | unless_missing(lambda: in_torch(function, dimension, torch_steps))


# -- the study -------------------------------------------------------------------------


def measure(dimension: int, seed: int, tick: Tick) -> list[Row]:
    """All programs take turns."""
    return compare(programs("rosenbrock", dimension, seed), BASES, REPEATS, tick)


def cells(full: bool, seed: int) -> dict[str, Cell]:
    """A cell for each dimension."""
    dimensions = FULL if full else QUICK
    if jax.default_backend() != "cpu":  # small ones say little there
        dimensions = (*dimensions, 10_000_000)
    return {f"d = {d:,}": functools.partial(measure, d, seed) for d in dimensions}


def findings(frame: pd.DataFrame) -> list[str]:
    """What the page tells, and what was left out."""
    return [
        *ratios(frame, "over_floor", [OURS], FLOOR),
        *ratios(frame, "over_rademacher", [EVOSAX], OURS),
        *ratios(frame, "over_gaussian", [LOOP, BATCHED], GAUSSIAN),
        *ratios(frame, "over_mezo", [BY_HAND], MEZO),
    ] + [
        f"{package} is missing or cannot use this device, so {' and '.join(names)} are"
        ' left out: pip install -e ".[rivals]"'
        for package, names in NEEDS.items()
        if not frame["program"].isin(names).any()
    ]


TITLE = "A step beside its floor and rivals"
STUDY = comparison(TITLE, cells, findings, ("ms", *BASES))
