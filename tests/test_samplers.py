"""What a sampler is: its fields kept or refused by compositions, and one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.perturbations import (
    aligned,
    from_rows,
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
    sparse,
    sphere,
)

KEY = jax.random.key(4)
PARAMS = {"w": jnp.linspace(-1, 1, 12).reshape(3, 4), "b": jnp.ones(5)}
MASK = {"w": True, "b": False}
SAMPLERS = {
    "gaussian": gaussian(),
    "orthogonal": orthogonal(),
    "simplex": simplex(),
    "aligned": aligned(jax.tree.map(jnp.sin, PARAMS), rademacher()),
    "lazy": lazy(rademacher()),
    "lazy, stacked": lazy(gaussian(), {"w": True, "b": False}),
    "low rank": low_rank(2),
    "sparse": sparse(0.5),
    "lazy, sparse": lazy(sparse(0.5, gaussian())),
    "one's own": from_rows(
        lambda key, k, num, params: jax.tree.map(
            lambda p: jax.random.normal(jax.random.fold_in(key, k), p.shape), params
        )
    ),
}
RESTRICTED = ("gaussian", "aligned", "lazy, stacked", "low rank")
SAMPLERS |= {
    f"restricted {name}": restrict(SAMPLERS[name], MASK) for name in RESTRICTED
}


def formed(sampler, point):
    """The arrays that a point stands for, by the two public ways."""
    return zojax.materialize(sampler.adapt(lambda p: p)(point))


@pytest.mark.parametrize("name", SAMPLERS)
def test_line_and_combine_are_those_of_the_rows(name):
    """params + s v_k on both sides from one line, and sums of any of the rows."""
    sampler, num = SAMPLERS[name], 4
    rows = [jax.device_get(sampler(KEY, k, num, PARAMS)) for k in range(num)]
    line = sampler.line(KEY, 2, num, PARAMS)
    for scale in (0.5, -0.5):
        point = formed(sampler, line(jnp.float32(scale)))
        for leaf, p in PARAMS.items():
            v = rows[2][leaf]
            expected = p if v is None else p + scale * v
            np.testing.assert_allclose(point[leaf], expected, rtol=1e-5, atol=1e-6)
    weights = jnp.array([[2.0, -1.0], [0.0, 3.0]])
    sums = sampler.combine(weights, KEY, jnp.array([3, 1]), num, PARAMS)
    for leaf in PARAMS:
        if rows[0][leaf] is None:
            assert sums[leaf] is None
            continue
        expected = np.tensordot(weights, np.stack([rows[3][leaf], rows[1][leaf]]), 1)
        np.testing.assert_allclose(sums[leaf], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_sparse_direction_leaves_the_other_entries_as_they_are(dtype):
    """Bit for bit, and on both sides; with p = 1 it leaves none."""
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda p: jnp.asarray(p, dtype), PARAMS)
        line = sparse(0.3).line(KEY, 0, 1, params)
        start = np.concatenate([p.ravel() for p in jax.tree.leaves(params)])
        points = [line(jnp.float32(s)) for s in (0.5, -0.5)]
        ends = [np.concatenate([x.ravel() for x in jax.tree.leaves(p)]) for p in points]
        moved = [end != start for end in ends]
        np.testing.assert_array_equal(*moved)
        assert 0 < moved[0].sum() < 17
        assert all((v != 0).all() for v in sparse(1)(KEY, 0, 1, params).values())


@pytest.mark.parametrize("share", [0, -0.5, 1.5, np.nan, True, "all"])
def test_a_share_out_of_range(share):
    with pytest.raises(ValueError, match="share must be a number > 0 and <= 1"):
        sparse(share)
    with pytest.raises(ValueError, match=r"base must be gaussian\(\) or rade"):
        sparse(0.5, sphere())


@pytest.mark.parametrize("sampler", [lazy(rademacher()), low_rank(1)])
def test_aligned_directions_hold_no_copies_unannounced(sampler):
    """Refused, restricted or not, by aligned and by dap; said with from_rows, taken."""
    guide = jax.tree.map(jnp.ones_like, PARAMS)
    for base in (sampler, restrict(sampler, MASK)):
        with pytest.raises(ValueError, match=r"base must be.*may be held.*from_rows"):
            aligned(guide, base)
        with pytest.raises(ValueError, match=r"base must be.*may be held.*from_rows"):
            zojax.dap(1e-2, 4, key=0, base=base)
    held = aligned(guide, from_rows(sampler.row))
    assert held.holds_rows
    a, v = (
        np.concatenate([x.ravel() for x in jax.tree.leaves(t)])
        for t in (guide, held(KEY, 0, 1, PARAMS))
    )
    np.testing.assert_allclose((a @ v) ** 2, a @ a, rtol=1e-4)


def test_entries_do_not_pass_a_mask():
    """lazy(restrict(...)) would draw frozen leaves; restrict goes outside."""
    for factory in (lazy, lambda base: low_rank(1, base)):
        for base in (restrict(gaussian(), MASK), sphere()):
            with pytest.raises(ValueError, match=r"base must be gaussian\(\) or rade"):
                factory(base)
    assert restrict(lazy(gaussian()), MASK)(KEY, 0, 1, PARAMS)["b"] is None


@pytest.mark.parametrize(
    ("sampler", "design"),
    [
        (gaussian(), "independent"),
        (orthogonal(), "orthogonal"),
        (restrict(orthogonal(), MASK), "orthogonal"),
        (simplex(), "zero_sum"),
        (restrict(simplex(), MASK), "zero_sum"),
        (aligned(PARAMS, rademacher()), "independent"),
        (aligned(PARAMS, simplex()), "joint"),
        (from_rows(simplex().row, design="zero_sum"), "zero_sum"),
    ],
)
def test_designs(sampler, design):
    assert sampler.design == design


LEAVE_ONE_OUT = {
    "two_point": lambda s: zojax.two_point(
        1e-2, 4, key=0, sampler=s, difference="leave_one_out"
    ),
    "zoar": lambda s: zojax.zoar(1e-2, 4, key=0, sampler=s, leave_one_out=True),
    "mean baseline": lambda s: zojax.zoar(
        1e-2, 4, key=0, sampler=s, leave_one_out=True, history_size=0
    ),
    "reinforce": lambda s: zojax.reinforce(
        1e-2, 4, key=0, sampler=s, baseline="leave_one_out"
    ),
    "value_and_grad": lambda s: zojax.value_and_grad(
        jnp.sum, 1e-2, 4, sampler=s, difference="leave_one_out"
    ),
}


@pytest.mark.parametrize("name", LEAVE_ONE_OUT)
def test_a_mean_over_directions_that_sum_to_zero_is_not_corrected(name):
    """It was 8/7 of the gradient with 8 directions."""
    for sampler in (simplex(), restrict(simplex(), True)):
        with pytest.raises(ValueError, match="whose directions sum to zero"):
            LEAVE_ONE_OUT[name](sampler)
    LEAVE_ONE_OUT[name](orthogonal())


def test_numbers_of_directions_are_checked_through_compositions():
    for sampler in (simplex(), restrict(simplex(), MASK), aligned(PARAMS, simplex())):
        with pytest.raises(ValueError, match="a power of two"):
            zojax.Directions(sampler, 0, 3)


def kept(period):
    """Rows in a subspace of one dimension that is drawn anew every ``period`` steps."""

    def at_step(words, count):
        epoch = jax.random.fold_in(jax.random.wrap_key_data(words), count // period)

        def row(key, k, num_directions, params):
            axis = jax.random.rademacher(epoch, params.shape, jnp.float32)
            return axis * jax.random.normal(jax.random.fold_in(key, k), ())

        return from_rows(row)

    return from_rows(at_step(jnp.zeros(2, jnp.uint32), 0).row)._replace(at_step=at_step)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: restrict(s, True)])
def test_something_kept_over_several_steps(wrap):
    """Steps of a period ask along one axis; a replayed history knows the old one."""
    x = jnp.zeros(6)
    options = {"key": 1, "sampler": wrap(kept(2)), "history_size": 3}
    opts = [zojax.zoar(1.0, 2, storage=s, **options) for s in ("sums", "replay")]
    states, axes = [opt.init(x) for opt in opts], []
    for _ in range(4):
        points = np.asarray(opts[0].ask(states[0], x))
        np.testing.assert_array_equal(points, opts[1].ask(states[1], x))
        axes.append(np.sign(points[0] * points[0, 0]))
        np.testing.assert_allclose(np.abs(points[0]), np.abs(points[0, 0]), rtol=1e-6)
        values = points @ np.arange(6)
        pairs = zip(opts, states, strict=True)
        told = [opt.update(None, state, x, values=values) for opt, state in pairs]
        updates, states = zip(*told, strict=True)
        np.testing.assert_allclose(*updates, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(axes[0], axes[1])
    np.testing.assert_array_equal(axes[2], axes[3])
    assert np.any(axes[1] != axes[2])


def test_something_kept_by_a_base():
    """aligned hands it on."""
    guide, x = jnp.arange(6.0), jnp.zeros(6)
    opt = zojax.dap(1.0, 2, key=1, guide="updates", base=kept(2))
    state, found = opt.init(x), []
    for _ in range(2):
        points = np.asarray(opt.ask(state, x, updates=guide))[1:]
        # What is not along the guide is the same axis in both steps.
        across = points - np.outer(points @ guide, guide) / (guide @ guide)
        found.append(across[0] / np.linalg.norm(across[0]))
        _, state = opt.update(guide, state, x, values=np.ones(3))
    np.testing.assert_allclose(abs(found[0] @ found[1]), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: zojax.two_point(1e-2, 2, key=0, sampler=s),
        lambda s: zojax.zoar(1e-2, 2, key=0, sampler=s),
        lambda s: zojax.dap(1e-2, 2, key=0, sampler=s),
        lambda s: zojax.reinforce(1e-2, 2, key=0, sampler=s),
        lambda s: zojax.aligned_projection(1e-2, 2, key=0, sampler=s),
        lambda s: zojax.value_and_grad(jnp.sum, 1e-2, 2, sampler=s),
        lambda s: zojax.Directions(s, 0, 2),
        lambda s: restrict(s, True),
        lambda s: zojax.check_smoothing(jnp.ones(3), 1e-2, key=0, sampler=s),
    ],
)
def test_a_bare_function_is_no_sampler(make):
    row = gaussian().row
    with pytest.raises(ValueError, match=r"sampler must be a zojax.Sampler.*from_rows"):
        make(row)
    if make(from_rows(orthogonal().row, design="orthogonal")) is None:
        pytest.fail("a sampler is taken")


def test_wrong_bases_and_rows_are_named():
    with pytest.raises(ValueError, match=r"base must be a zojax\.Sampler"):
        zojax.dap(1e-2, 4, key=0, base="gaussian")
    with pytest.raises(ValueError, match="row must be a function"):
        from_rows(3)
    with pytest.raises(ValueError, match=r"design must be one of .*'zero_sum'"):
        from_rows(gaussian().row, design="other")
    with pytest.raises(ValueError, match="sampler must be a design of orthogonal"):
        zojax.aligned_projection(1e-2, 2, key=0, sampler=gaussian())
    stacked = lazy(rademacher(), True), lazy(rademacher())
    opt = zojax.dap(
        1e-2, 4, key=0, sampler=stacked[0], base=stacked[1], storage="replay"
    )
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="the same leaves stacked"):
        opt.update(None, opt.init(x), x, value_fn=lambda x: 0.0)
