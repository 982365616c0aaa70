"""The aligned projection against QR in float64, and its geometry by Monte Carlo."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax import perturbations

KEY = 3
ORTHOGONAL = perturbations.orthogonal()
# Compiling takes longer than running here.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def flat(tree):
    """A pytree as one float64 vector, in tree order."""
    return np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(tree)])


@functools.partial(jit, static_argnums=1)
def _rows(count, num, params):
    step_key = jax.random.fold_in(jax.random.key(KEY), count)
    draw = lambda k: ORTHOGONAL(step_key, k, num, params)
    return jax.vmap(draw)(jnp.arange(num))


def rows(count, num, params):
    """The fresh directions of a step, from the documented key."""
    leaves = jax.tree.leaves(_rows(count, num, params))
    return np.concatenate([np.asarray(x, float).reshape(num, -1) for x in leaves], 1)


def projection(v, gradient):
    """P gradient, P the orthogonal projection on the span of the rows v."""
    q, _ = np.linalg.qr(v.T)
    return q @ (q.T @ gradient)


D = 10
GRADIENT = np.sin(np.arange(1.0, D + 1))


def linear(p):
    """A linear function of a pytree, plus a constant."""
    x = jnp.concatenate([p["a"].ravel(), p["b"]])
    return jnp.asarray(GRADIENT, x.dtype) @ x + 2.0


def zeros():
    return {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}


# -- the projection --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"chunk_size": 2}, {"difference": "central", "chunk_size": 1}],
    ids=str,
)
def test_estimate_is_the_projection_on_guide_and_fresh_rows(kwargs):
    """g = P grad at every step; a <- decay a + (1 - decay) g, decay by schedule."""
    num, decay = 4, lambda count: 0.7 + 0.05 * count
    with jax.enable_x64(True):
        opt = zojax.aligned_projection(0.1, num, key=KEY, decay=decay, **kwargs)
        p = zeros()
        state, a = opt.init(p), np.zeros(D)
        update = jit(lambda s: opt.update(None, s, p, value_fn=linear))
        for count in range(4):
            v = rows(count, num, p)
            if count > 0:
                v[0] = a  # the guide takes the place of row 0
            expected = projection(v, GRADIENT)
            # A real projection: neither nothing nor everything is left.
            assert 0.1 < np.linalg.norm(expected) / np.linalg.norm(GRADIENT) < 0.99
            g, state = update(state)
            np.testing.assert_allclose(flat(g), expected, rtol=1e-7, atol=1e-7)
            a = decay(count) * a + (1 - decay(count)) * expected
            np.testing.assert_allclose(flat(state.guide), a, rtol=1e-7, atol=1e-7)


def test_as_many_directions_as_entries_give_the_gradient():
    """K = d spans everything, with or without a guide among the rows."""
    p = {"a": jnp.zeros(3), "b": jnp.zeros(1)}
    slope = np.array([1.0, -2.0, 0.5, 3.0])
    f = lambda p: jnp.asarray(slope[:3]) @ p["a"] + slope[3] * p["b"][0]
    with jax.enable_x64(True):
        opt = zojax.aligned_projection(0.1, 4, key=KEY)
        state = opt.init(p)
        update = jit(lambda s: opt.update(None, s, p, value_fn=f))
        g, _ = update(state)
        np.testing.assert_allclose(flat(g), slope, rtol=1e-6)
        guide = {"a": jnp.array([0.3, 1.0, -0.2]), "b": jnp.array([0.9])}
        g, _ = update(state._replace(guide=guide))
        np.testing.assert_allclose(flat(g), slope, rtol=1e-6)


SLOPE = np.cos(np.arange(8.0))


@functools.cache
def with_guide():
    """Returns guide -> (rows without it, the estimate) for K = 4 on a linear f."""
    x, f = jnp.zeros(8), lambda z: jnp.dot(jnp.asarray(SLOPE, z.dtype), z)
    opt = zojax.aligned_projection(0.1, 4, key=KEY)
    state = opt.init(x)

    @jit
    def estimate(guide):
        return opt.update(None, state._replace(guide=guide), x, value_fn=f)[0]

    v = rows(0, 4, x)
    return lambda guide: (v.copy(), estimate(jnp.asarray(guide, jnp.float32)))


def test_a_guide_inside_the_span_of_the_other_rows_adds_nothing():
    """Row 0 stays that of orthogonal(), without rounding blown up by 1/0."""
    v, _ = with_guide()(np.zeros(8))
    expected = projection(v, SLOPE)
    for weights in (
        [0.0, 1.0, 0.0],
        [1.0, 2.0, 3.0],
        [0.1, 0.7, -0.3],
        [0.3, 0.3, 1.1],
    ):
        _, g = with_guide()(weights @ v[1:])
        np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-30, 1e30])
def test_the_scale_of_the_guide_does_not_matter(scale):
    guide = np.sin(np.arange(8.0))
    v, g = with_guide()(scale * guide)
    v[0] = guide
    np.testing.assert_allclose(g, projection(v, SLOPE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_an_unusable_guide_leaves_plain_orthogonal_rows(bad):
    """Where the guide is zero or not finite, all K rows are orthogonal()."""
    v, g = with_guide()(np.where(np.arange(8) == 2, bad, 0.0))
    np.testing.assert_allclose(g, projection(v, SLOPE), rtol=1e-4, atol=1e-5)


# -- geometry --------------------------------------------------------------------------


def test_squared_cosine_of_the_estimate():
    """cos^2(g, grad) averages c + (1 - c) (K - 1) / (d - 1).

    20,000 designs; 5 standard errors and 1e-2, since Hadamard rows under random signs
    are isotropic to second order only.
    """
    d, num = 16, 5
    gradient = np.sin(1.0 + np.arange(d))
    gradient /= np.linalg.norm(gradient)
    other = np.cos(3.0 * np.arange(d) ** 2)
    other -= (other @ gradient) * gradient
    other /= np.linalg.norm(other)
    f = lambda z: jnp.dot(jnp.asarray(gradient, z.dtype), z)
    x = jnp.zeros(d)
    opt = zojax.aligned_projection(0.5, num, key=KEY)

    @jit
    def estimates(guide):
        state = opt.init(x)._replace(guide=guide)
        one = lambda n: opt.update(None, state._replace(count=n), x, value_fn=f)[0]
        return jax.vmap(one)(jnp.arange(20_000))

    for cosine in (0.0, 0.5, 0.9):
        guide = cosine * gradient + np.sqrt(1 - cosine**2) * other
        g = np.asarray(estimates(jnp.asarray(guide, jnp.float32)), float)
        squared = (g @ gradient) ** 2 / np.sum(g**2, axis=1)
        error = squared.std(ddof=1) / np.sqrt(len(squared))
        c = cosine**2
        expected = c + (1 - c) * (num - 1) / (d - 1)
        assert abs(squared.mean() - expected) < 5 * error + 1e-2
        assert error < 2e-3


def test_beats_the_plain_sphere_under_sgd_at_equal_queries():
    """Best final loss over a grid of steps, mean of 3 keys: less than three quarters.

    d = 256, eigenvalues 0.01 to 1, K = 64, 100 steps; both grids reach the steps that
    are too long. Measured here: about 0.45 of the sphere's loss (decay 0.9).
    """
    d, num, steps = 256, 64, 100
    eigenvalues, start = jnp.geomspace(1e-2, 1.0, d), jnp.ones(d)
    f = lambda x: 0.5 * jnp.sum(eigenvalues * x**2)

    def best(opt, grid):
        def final(seed, rate):
            state = opt.init(start)._replace(
                key=jax.random.key_data(jax.random.key(seed))
            )

            def step(carry, _):
                x, state = carry
                g, state = opt.update(None, state, x, value_fn=f)
                return (x - rate * g, state), None

            (x, _), _ = jax.lax.scan(step, (start, state), length=steps)
            return f(x) / f(start)

        over_seeds = jax.vmap(final, (0, None))
        losses = jax.jit(jax.vmap(over_seeds, (None, 0)))(
            jnp.arange(3), jnp.array(grid)
        )
        losses = np.where(np.isfinite(losses), losses, np.inf).mean(axis=1)
        assert 0 < np.argmin(losses) < len(grid) - 1  # the best step is inside the grid
        return losses.min()

    sphere = perturbations.sphere()
    plain = best(
        zojax.two_point(1e-3, num, key=0, sampler=sphere), [0.7, 0.85, 1.0, 1.2]
    )
    projected = best(zojax.aligned_projection(1e-3, num, key=0), [1.4, 1.6, 1.8, 2.0])
    assert projected < 0.75 * plain


# -- queries ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "value", "expected"),
    [
        ({}, None, 5),
        ({}, 5.0, 4),
        ({"chunk_size": 3}, None, 5),
        ({"difference": "central"}, None, 8),
    ],
    ids=str,
)
def test_number_of_calls(kwargs, value, expected):
    """K + 1, K with value=, 2K for central differences; the guide costs none."""
    points = []

    def simulator(x):
        points.append(np.array(x))
        return np.float32(np.sum(np.square(x)))

    def value_fn(x):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(simulator, shape, x, vmap_method="sequential")

    opt = zojax.aligned_projection(0.1, 4, key=KEY, **kwargs)
    x = jnp.arange(8.0)
    update = jit(lambda s: opt.update(None, s, x, value_fn=value_fn, value=value))
    state = opt.init(x)
    for count in (1, 2):
        _, state = jax.block_until_ready(update(state))
        assert len(points) == count * expected
    central = kwargs.get("difference") == "central"
    at_params = sum((point == np.arange(8.0)).all() for point in points)
    assert at_params == (0 if central or value is not None else 2)


def test_aux_is_from_params_or_else_from_the_first_perturbed_point():
    x = jnp.arange(4.0)
    f = lambda x: (jnp.sum(x**2), x)
    opt = zojax.aligned_projection(0.1, 2, key=KEY, has_aux=True, aux_like=x)
    update = jit(lambda s, **kw: opt.update(None, s, x, value_fn=f, **kw)[1])
    assert update(opt.init(x)).log.aux.tolist() == [0.0, 1.0, 2.0, 3.0]
    first = np.arange(4.0) + 0.1 * rows(0, 2, x)[0]
    aux = update(opt.init(x), value=5.0).log.aux
    np.testing.assert_allclose(aux, first, rtol=1e-6, atol=1e-7)


# -- values that are not finite, frozen leaves -----------------------------------------


def test_bad_values_are_left_out():
    """The projection on the span of the rows that have a finite value."""
    num, x = 5, jnp.zeros(8)
    drawn = rows(0, num, x)
    up = (drawn[1:] > 0).sum(axis=0)
    # Along one entry some fresh rows move up and what the guide adds to them does not;
    # along another it moves up and some fresh rows do not.
    guide = np.sin(1.0 + np.arange(8.0))
    added = guide - projection(drawn[1:], guide)
    added *= np.sqrt(8.0) / np.linalg.norm(added)
    some = (up > 0) & (up < num - 1)
    still = int(np.argmin(np.where(some, added, np.inf)))
    pushed = int(np.argmax(np.where(some, added, -np.inf)))

    def f(z, limit, entry):
        return jnp.where(z[entry] > limit, jnp.nan, jnp.dot(jnp.asarray(SLOPE), z))

    opt = zojax.aligned_projection(0.1, num, key=KEY)

    @jit
    def update(state, limit, entry):
        return opt.update(None, state, x, value_fn=f, limit=limit, entry=entry)

    fresh = opt.init(x)
    guided = fresh._replace(guide=jnp.asarray(guide, jnp.float32))
    for state, entry in ((fresh, still), (guided, still), (guided, pushed)):
        v = rows(0, num, x)
        if state is guided:
            v[0] = added
        keep = 0.1 * v[:, entry] <= 0.05
        assert keep[1:].any()
        assert keep.sum() < num
        if state is guided:
            assert keep[0] == (entry == still)
        g, after = update(state, 0.05, entry)
        expected = projection(v[keep], SLOPE)
        np.testing.assert_allclose(g, expected, rtol=1e-4, atol=1e-5)
        assert int(after.log.num_nonfinite) == num - keep.sum()
        g, last = update(after, -jnp.inf, entry)
        assert g.tolist() == [0.0] * 8
        assert int(last.log.num_nonfinite) == num - keep.sum() + num + 1
        np.testing.assert_allclose(last.guide, 0.9 * after.guide, rtol=1e-6)


def test_huge_finite_values_leave_the_guide_finite():
    """Estimates and the average of estimates that reach the end of float32."""
    x = jnp.zeros(8)
    opt = zojax.aligned_projection(1e-3, 4, key=KEY, decay=0.5)
    f = lambda z, scale: scale * jnp.sum(z)

    def step(state, scale):
        g, state = opt.update(None, state, x, value_fn=f, scale=scale)
        return state, (g, state.guide)

    huge = jnp.geomspace(1e34, 3e38, 200)
    scales = jax.vmap(lambda b: jnp.array([1.0, b, b, b, 1.0]))(huge)
    run = jit(jax.vmap(lambda s: jax.lax.scan(step, opt.init(x), s)[1]))
    g, guides = run(scales)
    assert np.isfinite(g).all()
    assert np.isfinite(guides).all()


def test_constant_loss_gives_exactly_zero():
    x = jnp.ones(4)
    opt = zojax.aligned_projection(0.1, 3, key=KEY)
    update = jit(lambda s: opt.update(None, s, x, value_fn=lambda _: 1e6 + 0.1))
    state = opt.init(x)
    for _ in range(2):
        g, state = update(state)
        assert g.tolist() == [0.0] * 4


def test_a_restricted_sampler():
    """Frozen leaves are not perturbed, hold no guide and get a zero gradient."""
    p = {"a": jnp.zeros((2, 4)), "b": jnp.full(3, 2.0)}
    num, mask = 3, {"a": True, "b": False}
    f = lambda p: (
        jnp.dot(jnp.asarray(SLOPE, jnp.float32), p["a"].ravel()) * p["b"].sum()
    )
    restricted = perturbations.restrict(ORTHOGONAL, lambda _: mask)
    opt = zojax.aligned_projection(0.1, num, key=KEY, sampler=restricted)
    assert opt.init(p).guide["b"] is None
    restricted = perturbations.restrict(ORTHOGONAL, mask)
    opt = zojax.aligned_projection(0.1, num, key=KEY, sampler=restricted)
    state = opt.init(p)
    assert state.guide["b"] is None
    update = jit(lambda s: opt.update(None, s, p, value_fn=f))
    a = None
    for count in range(2):
        v = rows(count, num, {"a": p["a"], "b": None})
        if a is not None:
            v[0] = a
        g, state = update(state)
        a = projection(v, 6 * SLOPE)  # the frozen leaf sums to 6, unperturbed
        np.testing.assert_allclose(flat(g["a"]), a, rtol=1e-4, atol=1e-4)
        assert g["b"].tolist() == [0.0] * 3


def test_bfloat16_params_keep_a_float32_guide():
    x = jnp.zeros(8, jnp.bfloat16)
    f = lambda z: jnp.dot(jnp.asarray(SLOPE, jnp.float32), z.astype(jnp.float32))
    opt = zojax.aligned_projection(0.125, 3, key=KEY)
    g, state = jit(lambda s: opt.update(None, s, x, value_fn=f))(opt.init(x))
    assert g.dtype == jnp.bfloat16
    assert state.guide.dtype == jnp.float32
    expected = projection(rows(0, 3, x), SLOPE)
    np.testing.assert_allclose(state.guide, 0.1 * expected, rtol=1e-4, atol=1e-5)


# -- arguments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"smoothing": 0}, r"smoothing must be a number > 0, .*schedule, got 0$"),
        ({"num_directions": 1}, r"num_directions must be an int >= 2, got 1$"),
        ({"num_directions": 2.0}, r"num_directions must be an int >= 2, got 2.0$"),
        ({"num_directions": True}, r"num_directions must be an int >= 2, got True$"),
        ({"decay": 1.0}, r"decay must be a number >= 0 and < 1.*got 1.0$"),
        ({"decay": -0.5}, r"decay must be a number >= 0 and < 1.*got -0.5$"),
        ({"decay": np.nan}, r"decay must be a number >= 0 and < 1.*got nan$"),
        ({"difference": "mean"}, r"difference must be one of \('forward'.*got 'mean'$"),
        ({"chunk_size": 0}, r"chunk_size must be an int >= 1 or None, got 0$"),
        ({"sampler": 3}, r"sampler must be a zojax.Sampler.*got 3$"),
        (
            {"sampler": perturbations.gaussian()},
            r"sampler must be a design of orthogonal directions, .*got Sampler",
        ),
        ({"key": None}, r"key must be .*got None$"),
        ({"aux_like": 0.0}, r"aux_like needs has_aux=True"),
    ],
)
def test_bad_arguments_are_refused_in_the_factory(arguments, match):
    with pytest.raises(ValueError, match=match):
        zojax.aligned_projection(
            **({"smoothing": 0.1, "num_directions": 4, "key": 0} | arguments)
        )


def test_more_directions_than_entries_are_refused_in_init():
    opt = zojax.aligned_projection(0.1, 5, key=0)
    opt.init(jnp.ones(5))
    with pytest.raises(
        ValueError,
        match="num_directions must be at most the 4 trainable entries, got 5",
    ):
        opt.init({"a": jnp.ones(3), "b": jnp.ones(1)})
    restricted = perturbations.restrict(ORTHOGONAL, {"a": True, "b": False})
    frozen = zojax.aligned_projection(0.1, 4, key=0, sampler=restricted)
    with pytest.raises(ValueError, match="at most the 3 trainable entries, got 4"):
        frozen.init({"a": jnp.ones(3), "b": jnp.ones(9)})
