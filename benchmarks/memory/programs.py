"""The steps whose memory is measured: problems, estimators, compiled steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import zojax
from zojax.perturbations import lazy, rademacher

__all__ = [
    "CHUNKS",
    "ESTIMATORS",
    "LAZY",
    "Problem",
    "chunk_label",
    "chunks",
    "compile_step",
    "layers",
    "num_bytes",
    "planned",
    "total_bytes",
    "vector",
]

PyTree = Any
SMOOTHING = 1e-3
NUM_LAYERS, WIDTH, BATCH = 8, 512, 8
CHUNKS = (None, 4, 1)


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


def _two_point(problem, num_directions, **kwargs):
    return zojax.two_point(SMOOTHING, num_directions, **kwargs)


def _gaussian(problem, num_directions, **kwargs):
    return zojax.two_point(SMOOTHING, num_directions, **kwargs | {"sampler": None})


def _zoar(problem, num_directions, storage, **kwargs):
    return zojax.zoar(SMOOTHING, num_directions, storage=storage, **kwargs)


def _dap(problem, num_directions, **kwargs):
    return zojax.dap(SMOOTHING, num_directions, base=rademacher(), **kwargs)


def _dap_replay(problem, num_directions, **kwargs):
    kwargs["sampler"] = lazy(rademacher(), problem.stacked)
    return zojax.dap(
        SMOOTHING, num_directions, base=kwargs["sampler"], storage="replay", **kwargs
    )


def _lazy(problem, num_directions, **kwargs):
    kwargs["sampler"] = lazy(rademacher(), problem.stacked)
    return zojax.two_point(SMOOTHING, num_directions, difference="central", **kwargs)


# At K = 1, one at a time, this is zojax.mezo(..., sampler=lazy(rademacher())).
LAZY = "MeZO, lazy"
# Name: (problem, num_directions, *, key, sampler, chunk_size) -> estimator.
ESTIMATORS = {
    "two_point": _two_point,
    "two_point, gaussian": _gaussian,
    "zoar, sums": functools.partial(_zoar, storage="sums"),
    "zoar, replay": functools.partial(_zoar, storage="replay"),
    "dap": _dap,
    "dap, replay": _dap_replay,
    LAZY: _lazy,
}


def chunks(num_directions: int) -> list[int | None]:
    """The chunk sizes that differ at K directions."""
    return [c for c in CHUNKS if c is None or c < num_directions or c == 1]


def chunk_label(chunk_size: int | None) -> str:
    return "all at once" if chunk_size is None else f"{chunk_size} at a time"


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
    opt = optax.chain(
        ESTIMATORS[estimator](
            problem,
            num_directions,
            key=0,
            sampler=rademacher(),
            chunk_size=chunk_size,
        ),
        optax.sgd(1e-9),
    )

    def step(params, state):
        updates, state = opt.update(None, state, params, value_fn=problem.f)
        return optax.apply_updates(params, updates), state

    args = problem.like, jax.eval_shape(opt.init, problem.like)
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*jax.tree.map(place, args))
    return opt.init, lowered.compile()


def num_bytes(tree: PyTree) -> int:
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
    """What XLA plans for a step, in copies of params.

    The arguments are params and state; what aliases them is not there twice.
    """
    found = compiled.memory_analysis()
    copies = lambda size: size / num_bytes(problem.like)
    out = {
        "temporary": copies(found.temp_size_in_bytes),
        "arguments": copies(found.argument_size_in_bytes),
        "outputs": copies(found.output_size_in_bytes),
        "aliased": copies(found.alias_size_in_bytes),
    }
    return out | {"total": copies(total_bytes(compiled))}
