"""Traps 1 to 7 and 20: what works inside optax's wrappers, and what is refused."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

import zojax
from zojax.perturbations import gaussian, orthogonal, rademacher, restrict

X = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}


def loss(params):
    return sum(jnp.sum((leaf - 5) ** 2) for leaf in jax.tree.leaves(params))


def exact(smoothing=1e-3, num_directions=3):
    """Central differences along a full orthogonal basis: the gradient to rounding."""
    return zojax.two_point(
        smoothing, num_directions, key=0, sampler=orthogonal(), difference="central"
    )


def run(opt, params, steps, **kwargs):
    @jax.jit
    def step(params, state):
        updates, state = opt.update(None, state, params, **kwargs)
        return optax.apply_updates(params, updates), state

    state = opt.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_chain_with_gradient_optimizers():
    """A chain with clipping and Adam runs as with a gradient."""
    opt = optax.chain(exact(), optax.clip_by_global_norm(1.0), optax.adam(0.1))
    params, _ = run(opt, X, 150, value_fn=loss)
    assert float(loss(params)) < 1e-2


@pytest.mark.parametrize("wrapper", ["masked", "partition"])
def test_masking_the_estimator_is_refused(wrapper):
    """Trap 1: MaskedNodes would reach value_fn; the error says what to write."""
    if wrapper == "masked":
        opt = optax.masked(exact(), {"a": True, "b": False})
    else:
        opt = optax.partition(
            {"zo": optax.chain(exact(), optax.sgd(0.1)), "off": optax.set_to_zero()},
            {"a": "zo", "b": "off"},
        )
    with pytest.raises(ValueError, match=r"restrict\(sampler, mask\)"):
        opt.init(X)


def test_estimator_first_then_partition():
    """Trap 1: the estimator sees all of params, each label its own optimizer."""
    opt = optax.chain(
        exact(),
        optax.partition(
            {"fast": optax.sgd(0.1), "off": optax.set_to_zero()},
            {"a": "fast", "b": "off"},
        ),
    )
    params, _ = run(opt, X, 1, value_fn=loss)
    np.testing.assert_array_equal(params["b"], X["b"])
    np.testing.assert_allclose(params["a"], X["a"] - 0.1 * 2 * (X["a"] - 5), rtol=1e-3)


def test_multi_steps_goes_after_the_estimator():
    """Trap 2: around the estimator MultiSteps keeps the last micro-batch's estimate."""
    value_fn = lambda p, batch: jnp.sum(p["a"] * batch) + jnp.sum(p["b"])
    batches = jnp.array([[1.0, 0.0], [0.0, 3.0]])

    def total(opt):
        state, params = opt.init(X), X
        for batch in batches:
            zeros = jax.tree.map(jnp.zeros_like, X)  # MultiSteps averages what comes in
            updates, state = opt.update(
                zeros, state, params, value_fn=value_fn, batch=batch
            )
            params = optax.apply_updates(params, updates)
        return X["a"] - params["a"]

    averages = optax.chain(
        exact(), optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    )
    last_only = optax.MultiSteps(
        optax.chain(exact(), optax.sgd(1.0)), 2
    ).gradient_transformation()
    np.testing.assert_allclose(total(averages), [0.5, 1.5], rtol=1e-2)
    np.testing.assert_allclose(total(last_only), [0.0, 3.0], rtol=1e-2, atol=1e-2)


def test_apply_if_finite_goes_after_the_estimator():
    """Trap 3: around the estimator it checks the ignored incoming updates."""
    blow_up = optax.stateless(lambda u, p: jax.tree.map(lambda x: x * jnp.nan, u))
    nans = jax.tree.map(lambda x: x * jnp.nan, X)

    # A NaN made between the estimator and the optimizer is stopped.
    protected = optax.chain(exact(), blow_up, optax.apply_if_finite(optax.sgd(0.1), 3))
    params, _ = run(protected, X, 2, value_fn=loss)
    chex.assert_trees_all_equal(params, X)

    # Around the estimator: incoming NaNs, which it ignores, stop the step...
    around = optax.apply_if_finite(optax.chain(exact(), optax.sgd(0.1)), 3)
    updates, _ = around.update(nans, around.init(X), X, value_fn=loss)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, X))
    # ... and after it the same NaNs do no harm.
    after = optax.chain(exact(), optax.apply_if_finite(optax.sgd(0.1), 3))
    updates, _ = after.update(nans, after.init(X), X, value_fn=loss)
    assert float(optax.tree.norm(updates)) > 0.1


def test_flatten_hands_a_flat_vector_to_value_fn():
    """Trap 4: put optax.flatten after the estimator."""
    seen = []

    def shape_of(params):
        seen.append(jax.tree.map(jnp.shape, params))
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    around = optax.flatten(exact())
    around.update(X, around.init(X), X, value_fn=shape_of)
    assert seen[0] == (3,)
    seen.clear()
    after = optax.chain(exact(), optax.flatten(optax.sgd(0.1)))
    after.update(None, after.init(X), X, value_fn=shape_of)
    assert seen[0] == {"a": (2,), "b": (1, 1)}


def test_inject_hyperparams_needs_static_args():
    """Trap 5: numbers can be injected; keys, counts and samplers are static."""
    static = ("num_directions", "key", "sampler", "history_size", "chunk_size")
    make = optax.inject_hyperparams(zojax.zoar, static_args=static)
    opt = make(
        optax.linear_schedule(0.1, 0.2, 10),
        4,
        key=3,
        sampler=gaussian(),
        history_size=2,
    )
    state = opt.init(X)
    for _ in range(3):
        updates, state = jax.jit(lambda s: opt.update(None, s, X, value_fn=loss))(state)
    # optax evaluates the schedule at the count before the step: 0.1, 0.11, 0.12.
    np.testing.assert_allclose(state.hyperparams["smoothing"], 0.12, rtol=1e-5)
    plain = zojax.zoar(
        optax.linear_schedule(0.1, 0.2, 10),
        4,
        key=3,
        sampler=gaussian(),
        history_size=2,
    )
    plain_state = plain.init(X)
    for _ in range(3):
        expected, plain_state = plain.update(None, plain_state, X, value_fn=loss)
    chex.assert_trees_all_close(updates, expected, rtol=1e-3, atol=1e-3)

    with pytest.raises(ValueError, match=r"num_directions .* name it in static_args"):
        optax.inject_hyperparams(zojax.zoar, static_args=("key", "history_size"))(
            0.1, 4, key=3
        ).init(X)
    with pytest.raises(TypeError):  # the sampler is taken for a schedule
        optax.inject_hyperparams(zojax.zoar, static_args=("num_directions", "key"))(
            0.1, 4, key=3, sampler=gaussian()
        ).init(X)


def test_line_search_beside_an_estimator():
    """Trap 5: a line search (some refuse extra args) runs on; ours ignores unknowns."""
    opt = optax.chain(
        exact(), optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)
    )
    value, grad = jax.value_and_grad(loss)(X)
    updates, _ = opt.update(None, opt.init(X), X, value_fn=loss, value=value, grad=grad)
    assert float(loss(optax.apply_updates(X, updates))) < float(value)
    exact().update(None, exact().init(X), X, value_fn=loss, unknown=1)


def test_state_fields_can_be_found_by_name():
    """Trap 5: no field of ours collides with those of optax beside it, but count."""
    opt = optax.chain(zojax.zoar(1e-2, 4, key=0), optax.adam(1e-3))
    _, state = run(opt, X, 2, value_fn=loss)
    assert np.isfinite(optax.tree.get(state, "query_mean"))
    assert int(optax.tree.get(state, "num_nonfinite")) == 0


def test_state_survives_casts_and_numpy():
    """Trap 6: the key is raw words, so casts and np.asarray take the state."""
    opt = optax.chain(zojax.zoar(1e-2, 4, key=jax.random.key(5)), optax.adam(1e-3))
    _, state = run(opt, X, 3, value_fn=loss)
    cast = optax.tree.cast(state, jnp.float32)
    chex.assert_trees_all_equal(cast[0].key, state[0].key)
    for leaf in jax.tree.leaves(state):
        assert np.asarray(leaf).dtype != object
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def test_typed_legacy_and_int_keys_agree():
    """The same seed gives the same run, however the key is written."""
    runs = [
        run(zojax.two_point(1e-2, 2, key=key), X, 2, value_fn=loss)[0]
        for key in (0, jax.random.key(0), jax.random.PRNGKey(0))
    ]
    chex.assert_trees_all_equal(*runs)
    other = run(zojax.two_point(1e-2, 2, key=1), X, 2, value_fn=loss)[0]
    assert not np.array_equal(runs[0]["a"], other["a"])


def test_key_is_required():
    """Trap 11: no silent default key."""
    for factory in (zojax.two_point, zojax.zoar, zojax.dap, zojax.reinforce):
        with pytest.raises(TypeError, match="key"):
            factory(1e-2, 4)


def test_seeds_can_be_vmapped():
    """The factory takes a traced key: a sweep over seeds is one program."""

    def final(seed):
        opt = zojax.mezo(1e-2, key=jax.random.key(seed))
        state, x = opt.init(X["a"]), X["a"]
        for _ in range(2):
            updates, state = opt.update(None, state, x, value_fn=loss)
            x = optax.apply_updates(x, updates)
        return x

    together = jax.jit(jax.vmap(final))(jnp.arange(3))
    np.testing.assert_allclose(together[2], final(2), rtol=1e-3)
    assert not np.allclose(together[0], together[1])


def test_weight_decay_leaves_frozen_leaves_alone():
    """Trap 20: mask the decay as well; frozen leaves then stay bit-identical."""
    mask = {"a": True, "b": False}
    opt = optax.chain(
        zojax.two_point(1e-3, 4, key=0, sampler=restrict(gaussian(), mask)),
        optax.adamw(0.1, weight_decay=0.1, mask=mask),
    )
    params, _ = run(opt, X, 5, value_fn=loss)
    np.testing.assert_array_equal(params["b"], X["b"])
    assert not np.array_equal(params["a"], X["a"])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.tanh(nn.Dense(8)(x)))


def regression():
    x = jnp.linspace(-1, 1, 16)[:, None]
    return x, jnp.sin(2 * x)


def test_flax_linen_train_state():
    """TrainState's tx takes value_fn; apply_gradients would not pass it on."""
    x, y = regression()
    model = Net()
    params = model.init(jax.random.key(0), x)
    tx = optax.chain(
        zojax.two_point(1e-2, 8, key=0, sampler=rademacher(), difference="central"),
        optax.adam(0.03),
    )
    state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def value_fn(params, x, y):
        return jnp.mean((model.apply(params, x) - y) ** 2)

    @jax.jit
    def step(state, x, y):
        updates, opt_state = state.tx.update(
            None, state.opt_state, state.params, value_fn=value_fn, x=x, y=y
        )
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    first = value_fn(params, x, y)
    for _ in range(150):
        state = step(state, x, y)
    assert int(state.step) == 150
    assert float(value_fn(state.params, x, y)) < 0.1 * float(first)


def test_nnx_optimizer():
    """nnx.Optimizer.update passes value_fn on to the transformation."""
    x, y = regression()

    class NnxNet(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(1, 8, rngs=rngs)
            self.out = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.tanh(self.hidden(x)))

    model = NnxNet(nnx.Rngs(0))
    graph = nnx.graphdef(model)
    tx = optax.chain(
        zojax.two_point(1e-2, 8, key=0, sampler=rademacher(), difference="central"),
        optax.adam(0.03),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def value_fn(params, x, y):
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    @nnx.jit
    def step(model, optimizer, x, y):
        # The estimator ignores incoming updates; nnx wants a tree like params.
        params = nnx.state(model, nnx.Param)
        optimizer.update(model, params, value_fn=value_fn, x=x, y=y)

    first = value_fn(nnx.state(model, nnx.Param), x, y)
    for _ in range(150):
        step(model, optimizer, x, y)
    last = value_fn(nnx.state(model, nnx.Param), x, y)
    assert float(last) < 0.1 * float(first)
