"""Random trees, samplers, estimators and settings: what holds for all of them.

``pytest tests/test_properties*.py --hypothesis-profile=thorough`` tries 10,000 examples
instead of 1,000. Shapes and dtypes come from a small pool, since each new one makes JAX
compile its operations.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import zojax
from zojax.perturbations import (
    coordinate,
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
    sphere,
)


def part(share):
    """So much of the examples of all properties, 1,000 or with the profile 10,000."""
    return settings(max_examples=round(share * settings.default.max_examples))


# -- random params ---------------------------------------------------------------------


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: Any
    b: Any


SHAPES = [(), (3,), (0, 2), (2, 3)]
DTYPES = [jnp.float32, jnp.bfloat16]


@st.composite
def leaves(draw):
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    if shape == () and draw(st.booleans()):
        return 0.5  # a Python number
    return np.cos(np.arange(int(np.prod(shape)))).reshape(shape).astype(dtype)


def nested(children):
    return st.one_of(
        st.lists(children, max_size=3),
        st.tuples(children, children),
        st.dictionaries(st.sampled_from("abc"), children, max_size=3),
        st.builds(Pair, children, children),
        st.builds(Layer, children, children),
        st.none(),
    )


trees = st.recursive(leaves(), nested, max_leaves=4).filter(lambda t: t is not None)


# -- random estimators -----------------------------------------------------------------

BASES = {
    "gaussian": gaussian,
    "sphere": sphere,
    "rademacher": rademacher,
    "coordinate": coordinate,
    "orthogonal": orthogonal,
    "low_rank": lambda: low_rank(1),
    "low_rank signs": lambda: low_rank(2, rademacher()),
    "lazy": lambda: lazy(rademacher()),
    "lazy gaussian": lambda: lazy(gaussian()),
    "simplex": simplex,
}
HELD = ["gaussian", "sphere", "rademacher", "coordinate", "orthogonal"]


class Setting(NamedTuple):
    """An example: a factory of one argument, chunk_size, and what its step asks."""

    words: str
    make: Any
    params: Any
    mask: Any
    reads_updates: bool = False

    def __repr__(self):
        return f"{self.words} for {self.params!r}, {self.mask!r}"


@st.composite
def examples(draw):
    params = draw(trees)
    mask = jax.tree.map(lambda _: draw(st.booleans()), params)
    freeze = draw(st.booleans()) and jax.tree.leaves(mask)
    mask = mask if freeze else jax.tree.map(lambda _: True, params)
    wrap = (lambda s: restrict(s, mask)) if freeze else (lambda s: s)
    common = {"key": draw(st.integers(0, 3))}
    mu, num = draw(st.sampled_from([0.01, 0.5])), 4
    if draw(st.booleans()):
        common["clip"] = 2.0
    kind = draw(
        st.sampled_from(["two_point", "zoar", "dap", "reinforce", "projection"])
    )
    name = draw(st.sampled_from(list(BASES)))
    reads = False
    if kind == "two_point":
        options = {"difference": draw(st.sampled_from(["forward", "central", "mean"]))}
        if name != "simplex" and draw(st.booleans()):
            options["difference"] = "leave_one_out"
        make = functools.partial(zojax.two_point, mu, num, sampler=wrap(BASES[name]()))
    elif kind == "zoar":
        options = {
            "history_size": draw(st.integers(0, 2)),
            "storage": draw(st.sampled_from(["sums", "replay"])),
            "symmetric": draw(st.booleans()),
            "leave_one_out": name != "simplex" and draw(st.booleans()),
        }
        make = functools.partial(zojax.zoar, mu, num, sampler=wrap(BASES[name]()))
    elif kind == "dap":
        name = draw(st.sampled_from(HELD))
        options = {
            "guide": draw(st.sampled_from(["rough", "updates", "average"])),
            "combine": draw(st.sampled_from(["refined", "average"])),
            "difference": draw(st.sampled_from(["forward", "central"])),
            "fixed_length": draw(st.booleans()),
        }
        reads = options["guide"] == "updates"
        samplers = {"sampler": wrap(sphere()), "base": wrap(BASES[name]())}
        make = functools.partial(zojax.dap, mu, num, **samplers)
    elif kind == "reinforce":
        name = draw(st.sampled_from([n for n in BASES if n != "simplex"]))
        options = {"baseline": draw(st.sampled_from(["value", "mean", "optimal"]))}
        make = functools.partial(zojax.reinforce, mu, num, sampler=wrap(BASES[name]()))
    else:
        options = {"difference": draw(st.sampled_from(["forward", "central"]))}
        name, num = "orthogonal", 2
        d = sum(
            np.size(leaf)
            for leaf, flag in zip(
                jax.tree.leaves(params), jax.tree.leaves(mask), strict=True
            )
            if flag
        )
        if d == 1:  # fewer entries than directions are refused
            options, kind = {}, "zoar"
        make = functools.partial(
            zojax.aligned_projection if kind == "projection" else zojax.zoar,
            mu,
            num,
            sampler=wrap(orthogonal()),
        )
    words = f"{kind}({mu}, {num}, {name}, {common}, {options})"
    build = lambda **more: make(**common, **options, **more)
    return Setting(words, build, params, mask, reads)


chunks = st.sampled_from([None, 1, 3])


def loss(params):
    """A smooth sum over the leaves, with a term for each kind of use."""
    params = zojax.materialize(params)
    wide = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(params)]
    return sum((jnp.sum(jnp.sin(x) + x**2) for x in wide), jnp.zeros(()))


def incoming(setting):
    ones = lambda p: jnp.ones(jnp.shape(p), jnp.result_type(p))
    return jax.tree.map(ones, setting.params) if setting.reads_updates else None


def shapes(tree):
    return [(jnp.shape(x), jnp.result_type(x)) for x in jax.tree.leaves(tree)]


# -- what holds ------------------------------------------------------------------------


@part(0.4)
@given(examples(), chunks)
def test_structure_shapes_and_dtypes(setting, chunk_size):
    """An update looks like params, and a state like itself."""
    opt = setting.make(chunk_size=chunk_size)
    params, seen = setting.params, incoming(setting)
    state = jax.eval_shape(opt.init, params)
    update = lambda s: opt.update(seen, s, params, value_fn=loss)
    updates, after = jax.eval_shape(update, state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert shapes(updates) == shapes(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@part(0.32)
@given(examples())
def test_points_look_like_params(setting):
    """They have one more axis, the first."""
    opt, params, seen = setting.make(), setting.params, incoming(setting)
    state = jax.eval_shape(opt.init, params)
    points = jax.eval_shape(lambda s: opt.ask(s, params, updates=seen), state)
    assert jax.tree.structure(points) == jax.tree.structure(params)
    for point, leaf in zip(shapes(points), shapes(params), strict=True):
        assert (point[0][1:], point[1]) == leaf
