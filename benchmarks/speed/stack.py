"""A small transformer whose layers lie and run in three ways, and steps of it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import zojax
from zojax.perturbations import gaussian, lazy, low_rank, rademacher

NUM_DIRECTIONS, WIDTH, BATCH = 8, 64, (4, 16)
# One stack of each matrix, scanned or run by a Python loop; leaves of each layer's own.
SCAN, LOOP, APART = "scan", "loop over a stack", "leaves of each layer"
CACHED, UPDATE, VALUE, NO_JIT = "cache has it", "jit update", "jit value_fn", "no jit"
DONATED = {"donate_argnums": (0, 1)}
LEVEL_0 = {"compiler_options": {"xla_backend_optimization_level": 0}}
# Name: form, the estimator's settings, options of jit.
PROGRAMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{form: (form, {}, {}) for form in (SCAN, LOOP, APART)},
    f"{APART}, chunk_size=1": (APART, {"chunk_size": 1}, {}),
    f"{APART}, low_rank(1)": (APART, {"sampler": low_rank(1)}, {}),
    "chunk_size=1": (SCAN, {"chunk_size": 1}, {}),
    "forward": (SCAN, {"difference": "forward"}, {}),
    "central": (SCAN, {"difference": "central"}, {}),
    "central, chunk_size=1": (SCAN, {"difference": "central", "chunk_size": 1}, {}),
    "gaussian": (SCAN, {"sampler": gaussian()}, {}),
    "lazy": (SCAN, {"sampler": lazy(rademacher(), True)}, {}),
    "low_rank(1)": (SCAN, {"sampler": low_rank(1)}, {}),
    "donated": (SCAN, {}, DONATED),
    "optimization level 0": (SCAN, {}, LEVEL_0),
    **{name: (SCAN, {}, {}) for name in (CACHED, UPDATE, VALUE, NO_JIT)},
}


class Program(NamedTuple):
    """A step, what it takes, and how it is jitted; None: it jits its parts, or none."""

    step: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] | None


def model(params: Any, x: jax.Array, form: str) -> jax.Array:
    """Mean square of x f[..., tokens, WIDTH] after all layers."""

    def block(x, p):
        p, h = zojax.materialize(p), jax.nn.standardize(x)
        scores = (h @ p["q"]) @ (h @ p["k"]).mT
        x = x + jax.nn.softmax(scores) @ (h @ p["v"]) @ p["out"]
        hidden = jax.nn.gelu(jax.nn.standardize(x) * p["scale"] @ p["up"])
        return x + hidden @ p["down"], None

    if form == SCAN:
        return jnp.mean(jax.lax.scan(block, x, params)[0] ** 2)
    at = lambda i: jax.tree.map(lambda w: w[i], params)
    of_layers = params if form == APART else map(at, range(len(params["q"])))
    return jnp.mean(functools.reduce(lambda x, p: block(x, p)[0], of_layers, x) ** 2)


def weights(form: str, depth: int, seed: int) -> Any:
    """A dict of stacks, or a list of dicts; the same numbers."""
    shapes = dict.fromkeys(("q", "k", "v", "out"), (WIDTH, WIDTH))
    shapes |= {"scale": (WIDTH,), "up": (WIDTH, 2 * WIDTH), "down": (2 * WIDTH, WIDTH)}
    keys = iter(jax.random.split(jax.random.key(seed), len(shapes)))
    draw = lambda shape: jax.random.normal(next(keys), (depth, *shape)) / WIDTH**0.5
    stacks = {name: draw(shape) for name, shape in shapes.items()}
    if form != APART:
        return stacks
    return [{name: w[i] for name, w in stacks.items()} for i in range(depth)]


def program(name: str, depth: int, seed: int) -> Program:
    """The step of this name: two_point and SGD."""
    form, settings, options = PROGRAMS[name]
    settings = {"sampler": rademacher(), "difference": "leave_one_out"} | settings
    first = zojax.two_point(1e-3, NUM_DIRECTIONS, key=seed, **settings)
    opt, params = optax.chain(first, optax.sgd(1e-3)), weights(form, depth, seed)
    f = functools.partial(model, form=form)
    asked = jax.jit(f) if name == VALUE else f
    update = functools.partial(opt.update, value_fn=lambda params, x: asked(params, x))
    update = jax.jit(update) if name == UPDATE else update

    def step(params, state, x):
        updates, state = update(None, state, params, x=x)
        return optax.apply_updates(params, updates), state

    x = jax.random.normal(jax.random.key(seed), (*BATCH, WIDTH))
    whole = name not in (UPDATE, VALUE, NO_JIT)
    return Program(step, (params, opt.init(params), x), options if whole else None)
