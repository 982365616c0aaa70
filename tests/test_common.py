"""What every public factory must survive, over the registry."""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from registry import CALLING, ESTIMATORS, PLAIN, SAMPLERS

import zojax
import zojax.nnx
from zojax.perturbations import restrict

NAMES = list(ESTIMATORS)
# One of each way through the library: eager runs compile each operation by itself.
EAGER = ["mezo", "zoar", "dap"]

# Most of the time here goes into compiling small programs.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def build(name, wrap=lambda sampler: sampler):
    return ESTIMATORS[name].make(wrap)


def freeze(mask) -> Callable:
    return lambda sampler: restrict(sampler, mask)


def tree(dtype=jnp.float32):
    """Matrix, scalar, empty, None and mixed containers."""
    return {
        "w": jnp.linspace(-1, 1, 6, dtype=dtype).reshape(2, 3),
        "b": [jnp.asarray(0.5, dtype), (jnp.zeros((0, 2), dtype), None)],
        "c": jnp.ones(3, dtype),
    }


def loss(params):
    squares = [
        jnp.sum((x.astype(jnp.float32) - 2) ** 2) for x in jax.tree.leaves(params)
    ]
    return sum(squares)


def incoming(name, params):
    """Updates for the cases that read them, None for the others."""
    reads = ESTIMATORS[name].reads_updates
    return jax.tree.map(jnp.ones_like, params) if reads else None


def scaled(updates):
    return jax.tree.map(lambda u: -1e-3 * u, updates)


def step_with(name, opt, value_fn=loss):
    def step(params, state):
        updates, state = opt.update(
            incoming(name, params), state, params, value_fn=value_fn
        )
        return optax.apply_updates(params, scaled(updates)), state

    return step


# Programs that several tests run, compiled once for each case. ------------------------


class TreeStep(NamedTuple):
    """A jitted step on tree(); traces has an entry for each call of f while tracing."""

    run: Callable
    traces: list


@functools.cache
def tree_step(name):
    """(params, state) -> (params, state, updates before they are scaled)."""
    opt, traces = build(name), []

    def counted(params):
        traces.append(1)
        return loss(params)

    def step(params, state):
        seen = incoming(name, params)
        updates, state = opt.update(seen, state, params, value_fn=counted)
        return optax.apply_updates(params, scaled(updates)), state, updates

    return TreeStep(quick_jit(step), traces)


@functools.cache
def steps_of(name):
    """(x, number, scale) -> x[8] after so many steps of the case's own start."""
    opt = build(name)

    def run(x, number, scale):
        def step(_, carry):
            x, state = carry
            updates, state = opt.update(incoming(name, x), state, x, value_fn=loss)
            return x + scale * updates, state

        return jax.lax.fori_loop(0, number, step, (x, opt.init(x)))[0]

    return quick_jit(run)


@functools.cache
def switched_step(name):
    """A step of f whose values are bad: switch 0 none, 1 about half, 2 all of them."""
    opt = build(name)

    def sometimes(params, switch, bad):
        total = sum(jnp.sum(x) for x in jax.tree.leaves(params))
        wrong = (switch == 2) | ((switch == 1) & (total > 3.5))  # as much as tree()'s
        return jnp.where(wrong, bad, loss(params))

    @quick_jit
    def step(x, state, switch, bad):
        updates, state = opt.update(
            incoming(name, x), state, x, value_fn=sometimes, switch=switch, bad=bad
        )
        return optax.apply_updates(x, scaled(updates)), state, updates

    return step


def all_finite(x):
    return all(
        bool(jnp.isfinite(leaf).all())
        for leaf in jax.tree.leaves(x)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def test_registry_is_complete():
    """A public factory says so in its return annotation, and stands in the registry."""
    modules = [zojax, zojax.perturbations]
    public = {getattr(m, name) for m in modules for name in m.__all__ if name[0] > "Z"}
    factories = {
        f
        for f in public
        if inspect.isfunction(f)
        and inspect.signature(f).return_annotation
        in (
            zojax.Estimator,
            zojax.Sampler,
            optax.GradientTransformation,
            optax.GradientTransformationExtraArgs,
        )
    }
    known = {case.factory for case in ESTIMATORS.values()} | set(SAMPLERS.values())
    known |= set(CALLING.values()) | set(PLAIN.values())
    assert len(factories) >= 16
    assert factories == known


def test_every_public_name_is_documented():
    """Args, Returns, an example and a source, for functions that users call."""
    modules = [zojax, zojax.perturbations, zojax.queries, zojax.weights, zojax.nnx]
    modules += [zojax.cores, zojax.external, zojax.shaping]
    for module in modules:
        for name in module.__all__:
            item = getattr(module, name)
            if not inspect.isfunction(item):
                continue
            doc = inspect.getdoc(item) or ""
            lacks = [w for w in ("Returns:", "Example:", "Source:") if w not in doc]
            if inspect.signature(item).parameters and "Args:" not in doc:
                lacks.append("Args:")
            assert not lacks, f"{module.__name__}.{name} lacks {lacks}"


@pytest.mark.parametrize("name", NAMES)
def test_structure_shapes_dtypes_and_jit(name):
    """Updates look like params; the state's shapes are fixed; eager and jit agree."""
    params, opt = tree(), build(name)
    state = opt.init(params)
    update = lambda s: opt.update(incoming(name, params), s, params, value_fn=loss)
    _, jitted_state, jitted = tree_step(name).run(params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(jitted, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(jitted_state, state)
    assert float(optax.tree.norm(jitted)) > 0
    abstract = jax.eval_shape(opt.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)
    if name in EAGER:
        eager, eager_state = update(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(eager, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(eager_state, state)
        chex.assert_trees_all_close(eager, jitted, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, dtype):
    """The update has the params' dtypes; loss differences stay in float32 or wider."""
    with jax.enable_x64(dtype == "float64"):
        params = tree(jnp.bfloat16 if dtype == "mixed" else dtype)
        if dtype == "mixed":
            params["c"] = params["c"].astype(jnp.float32)
        opt = build(name)
        state = opt.init(params)
        updates, state = quick_jit(
            lambda s: opt.update(incoming(name, params), s, params, value_fn=loss)
        )(state)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        assert all_finite(updates)
        assert float(optax.tree.norm(updates)) > 0
        mean = optax.tree.get(state, "query_mean")
        assert mean.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_scan_one_compile_and_resume(name):
    """A loop traces once, equals a scan, and resumes bit-equal from saved arrays."""
    params, opt = tree(), build(name)
    step, traces = tree_step(name)
    carry = params, opt.init(params)
    saved = None
    for n in range(100):
        if n == 60:
            # Plain arrays: np.asarray must take every leaf of the state (no typed key).
            saved = jax.tree.map(np.asarray, carry)
        *carry, _ = step(*carry)
        if n == 0:
            traced = len(traces)
    assert len(traces) == traced
    assert step._cache_size() == 1

    resumed = jax.tree.map(jnp.asarray, saved)
    for _ in range(40):
        *resumed, _ = step(*resumed)
    chex.assert_trees_all_equal(resumed, carry)

    body = step_with(name, opt)
    scanned, _ = quick_jit(
        lambda c: jax.lax.scan(lambda c, _: (body(*c), None), c, length=100)
    )((params, opt.init(params)))
    chex.assert_trees_all_close(scanned[0], carry[0], rtol=1e-3, atol=1e-3)
    assert int(optax.tree.get(scanned[1], "num_nonfinite")) == 0


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_params(name):
    """A vmapped run equals the runs one by one."""
    opt = build(name)
    starts = jnp.stack([jnp.arange(8.0), 1 - jnp.arange(8.0)])

    def run(x):
        step = lambda carry, _: (step_with(name, opt)(*carry), None)
        return jax.lax.scan(step, (x, opt.init(x)), length=4)[0][0]

    together = quick_jit(jax.vmap(run))(starts)
    alone = lambda x: steps_of(name)(x, 4, -1e-3)
    chex.assert_trees_all_close(together[0], alone(starts[0]), rtol=1e-3, atol=1e-3)
    chex.assert_trees_all_close(together[1], alone(starts[1]), rtol=1e-3, atol=1e-3)
    assert not np.allclose(together[0] - starts[0], together[1] - starts[1])


@pytest.mark.parametrize("name", NAMES)
def test_non_finite_objective(name):
    """Neither some nor all bad values put a NaN anywhere; the state counts them."""
    params, opt, step = tree(), build(name), switched_step(name)
    start = opt.init(params)
    for bad in (np.nan, np.inf, -np.inf):
        carry = params, start
        for switch in (0, 1, 2, 2, 1, 0):
            *carry, _ = step(*carry, switch, bad)
            # The log alone keeps the values as they came.
            values = optax.tree.get(carry[1], "query_values")
            assert all_finite(optax.tree.set(carry, query_values=None))
            assert np.isfinite(values).all() == (switch == 0) or switch == 1
            assert not np.isfinite(values).any() or switch != 2
        counted = int(optax.tree.get(carry[1], "num_nonfinite"))
        assert counted >= 2 * ESTIMATORS[name].num_queries

        stuck = step(params, start, 2, bad)[0]
        if not name.startswith("scale_by"):
            chex.assert_trees_all_equal(stuck, params)


@pytest.mark.parametrize("name", NAMES)
def test_constant_objective(name):
    """A constant loss, however large, gives exactly zero."""
    params, state = tree(), build(name).init(tree())
    for constant in (0.0, 1e6):
        _, _, updates = switched_step(name)(params, state, 2, constant)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.parametrize("name", NAMES)
def test_frozen_leaves(name):
    """Frozen leaves, integers among them, get a zero update and stay bit-identical."""
    params = {
        "w": jnp.linspace(0, 1, 8),
        "frozen": jnp.full(3, 1.1, jnp.bfloat16),
        "steps": jnp.asarray(7, jnp.int32),
    }
    mask = {"w": True, "frozen": False, "steps": False}
    opt = build(name, freeze(mask))
    value_fn = lambda p: loss({"w": p["w"], "frozen": p["frozen"]})
    seen = incoming(name, params)
    updates, _ = quick_jit(lambda s: opt.update(seen, s, params, value_fn=value_fn))(
        opt.init(params)
    )
    moved = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_shapes(updates, params)
    assert float(jnp.abs(updates["w"]).max()) > 0
    for leaf in ("frozen", "steps"):
        assert not updates[leaf].any()
        np.testing.assert_array_equal(moved[leaf], params[leaf])

    # Not counted in d: the trainable leaf moves as it would alone.
    alone = build(name)
    single = lambda p: loss(p)
    expected, _ = quick_jit(
        lambda s: alone.update(
            None if seen is None else {"w": seen["w"]},
            s,
            {"w": params["w"]},
            value_fn=lambda p: single({"w": p["w"], "frozen": params["frozen"]}),
        )
    )(alone.init({"w": params["w"]}))
    chex.assert_trees_all_close(updates["w"], expected["w"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_number_of_queries(name):
    """The promised number of calls of an external objective, and no more."""
    calls = []

    def external(x):
        calls.append(1)
        return np.float32(np.sum((x - 2) ** 2))

    def value_fn(x):
        result = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(external, result, x, vmap_method="sequential")

    x, opt = jnp.arange(8.0), build(name)
    step = quick_jit(step_with(name, opt, value_fn))
    carry = step(x, opt.init(x))
    jax.block_until_ready(carry)
    calls.clear()
    jax.block_until_ready(step(*carry))
    assert len(calls) == ESTIMATORS[name].num_queries


@pytest.mark.parametrize("name", NAMES)
def test_lowers_for_every_platform(name):
    """A full training step lowers for CPU, CUDA and TPU without such a device."""
    x, opt = jnp.arange(8.0), build(name)
    step = jax.jit(step_with(name, opt))
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(x, opt.init(x))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


@pytest.mark.parametrize("name", NAMES)
def test_new_closure_and_batch_do_not_retrace(name):
    """A jitted step takes a new batch each time, through an extra arg."""
    opt = build(name)
    value_fn = lambda x, batch: jnp.mean((x - batch) ** 2)

    @quick_jit
    def step(x, state, batch):
        closure = lambda x, batch: value_fn(x, batch)
        updates, state = opt.update(
            incoming(name, x), state, x, value_fn=closure, batch=batch, unknown=batch
        )
        return optax.apply_updates(x, jax.tree.map(lambda u: -0.01 * u, updates)), state

    carry = jnp.zeros(8), opt.init(jnp.zeros(8))
    for n in range(5):
        carry = step(*carry, jnp.full(8, float(n)))
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", NAMES)
def test_descends(name):
    """The update is a gradient: stepping against it lowers a quadratic (trap 17)."""
    x = jnp.arange(8.0) / 4
    if name in ("mezo", "spsa", "radazo"):  # already descent updates
        scale = 1.0
    elif name == "scale_by_radazo":
        scale = -1e-3
    else:
        scale = -2e-3
    after = steps_of(name)(x, 600, scale)
    assert float(loss(after)) < 0.7 * float(loss(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_state_can_be_donated(name):
    """Each leaf is a buffer of its own, and not one that the factory still needs."""
    params, opt = jnp.ones(5), build(name)
    use_up = jax.jit(
        lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state),
        donate_argnums=0,
    )
    expected = jax.tree.map(np.array, opt.init(params))
    use_up(opt.init(params))
    chex.assert_trees_all_equal(jax.tree.map(np.array, opt.init(params)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_init_makes_no_more_than_the_state(name):
    """A model that only just fits must not be copied to look at its shapes."""
    params, opt = jnp.ones((4, 128)), build(name)
    made = [
        v.aval.size
        for eqn in jax.make_jaxpr(opt.init)(params).eqns
        for v in eqn.outvars
    ]
    kept = [np.size(leaf) for leaf in jax.tree.leaves(opt.init(params))]
    assert max(made) <= max(kept)
