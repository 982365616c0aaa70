"""The steps whose memory is measured: problems, estimators, compiled steps."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import zojax
from zojax.perturbations import lazy, rademacher

PyTree = Any
SMOOTHING = 1e-3
NUM_LAYERS, WIDTH, BATCH = 8, 512, 8
# In words: how many directions are held together.
CHUNKS = {"all at once": None, "1 at a time": 1}


class Problem(NamedTuple):
    """An objective and the shape of its params."""

    name: str
    f: Callable[[PyTree], jax.Array]
    like: PyTree  # ShapeDtypeStructs
    stacked: bool  # whether the first axis is one of layers


def vector(dimension: int) -> Problem:
    """The sum of squares of a vector."""
    f = lambda x: jnp.sum(zojax.materialize(x) ** 2)
    like = jax.ShapeDtypeStruct((dimension,), jnp.float32)
    return Problem(f"vector, d = {dimension:,}", f, like, False)


def layers(width: int | None = None) -> Problem:
    """Stacked square layers under a scan; a small batch, so that weights dominate."""
    width = WIDTH if width is None else width

    def f(weights):
        body = lambda x, layer: (jnp.tanh(x @ zojax.materialize(layer)), None)
        return jnp.mean(jax.lax.scan(body, jnp.ones((BATCH, width)), weights)[0] ** 2)

    like = jax.ShapeDtypeStruct((NUM_LAYERS, width, width), jnp.float32)
    return Problem(f"{NUM_LAYERS} layers {width} x {width}", f, like, True)


Factory = Callable[..., optax.GradientTransformationExtraArgs]
SIGNS = rademacher()
# At K = 1, one at a time, this is zojax.mezo(..., sampler=lazy(rademacher())).
LAZY = "MeZO, lazy"


def _of(factory: Factory, **options: Any) -> Callable[[Problem], Factory]:
    return lambda problem: functools.partial(factory, **options)


def _lazily(
    factory: Factory, names: tuple[str, ...], **options: Any
) -> Callable[[Problem], Factory]:
    """With samplers that draw a layer at a time, where the problem has layers."""
    return lambda problem: functools.partial(
        factory, **options, **dict.fromkeys(names, lazy(SIGNS, problem.stacked))
    )


# Factories that lack smoothing, K, key and chunk size.
ESTIMATORS: dict[str, Callable[[Problem], Factory]] = {
    "two_point": _of(zojax.two_point, sampler=SIGNS),
    "two_point, gaussian": _of(zojax.two_point),
    "zoar, sums": _of(zojax.zoar, sampler=SIGNS, storage="sums"),
    "zoar, replay": _of(zojax.zoar, sampler=SIGNS, storage="replay"),
    "dap": _of(zojax.dap, base=SIGNS, sampler=SIGNS),
    "dap, replay": _lazily(zojax.dap, ("base", "sampler"), storage="replay"),
    LAZY: _lazily(zojax.two_point, ("sampler",), difference="central"),
}


def compile_step(
    problem: Problem,
    estimator: str,
    num_directions: int,
    chunk_size: int | None,
    place: Callable[[jax.ShapeDtypeStruct], jax.ShapeDtypeStruct] = lambda x: x,
) -> tuple[Callable[[PyTree], PyTree], jax.stages.Compiled]:
    """(params -> state, compiled step (params, state) -> both, which it overwrites).

    ``place`` says where arrays lie, on devices that need not be there.
    """
    build = ESTIMATORS[estimator](problem)
    first = build(SMOOTHING, num_directions, key=0, chunk_size=chunk_size)
    opt = optax.chain(first, optax.sgd(1e-9))

    def step(params, state):
        updates, state = opt.update(None, state, params, value_fn=problem.f)
        return optax.apply_updates(params, updates), state

    args = problem.like, jax.eval_shape(opt.init, problem.like)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*jax.tree.map(place, args))
    return opt.init, lowered.compile()


def num_bytes(tree: PyTree) -> int:
    """Of arrays, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def total_bytes(compiled: jax.stages.Compiled) -> int:
    """Arguments, results and temporary memory, buffers used twice counted once."""
    found = compiled.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        + found.temp_size_in_bytes
        - found.alias_size_in_bytes
    )


def planned(problem: Problem, compiled: jax.stages.Compiled) -> dict[str, float]:
    """What XLA plans, in copies of params; the arguments are params and state."""
    found, copy = compiled.memory_analysis(), num_bytes(problem.like)
    return {
        "temporary": found.temp_size_in_bytes / copy,
        "arguments": found.argument_size_in_bytes / copy,
    }
