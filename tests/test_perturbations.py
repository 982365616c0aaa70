"""Samplers: isotropy, error limits, alignment, the random stream, freezing.

Monte Carlo claims allow 5 standard errors, estimated from the samples themselves, plus
1e-5 for float32 rounding (some moments have no variance at all). Keys are fixed.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.perturbations import (
    aligned,
    coordinate,
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

STANDARD_ERRORS = 5
ROUNDING = 1e-5

# d = 13 is no power of two: orthogonal() has blocks of 8, 4 and 1 entries.
PARAMS = {
    "matrix": jnp.ones((2, 4)),
    "vector": jnp.ones(4),
    "scalar": jnp.ones(()),
    "empty": jnp.ones((0,)),
}
D = 13
GUIDE = {
    "matrix": jnp.array([[3.0, -1.0, 0.0, 0.5], [0.0, 2.0, -4.0, 1.0]]),
    "vector": jnp.array([0.0, -2.5, 1.5, 0.25]),
    "scalar": jnp.array(-1.0),
    "empty": jnp.ones((0,)),
}
MASK = {"matrix": True, "vector": False, "scalar": True, "empty": True}  # d = 9


def flat(tree):
    """The leaves of a direction as one vector, in tree order."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def flat64(tree):
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def unflat(vector):
    """A vector as a pytree like PARAMS; tree order is that of the sorted names."""
    return {
        "empty": jnp.zeros((0,)),
        "matrix": jnp.asarray(vector[:8], jnp.float32).reshape(2, 4),
        "scalar": jnp.asarray(vector[8], jnp.float32),
        "vector": jnp.asarray(vector[9:], jnp.float32),
    }


def scaled_guide(scale):
    return jax.tree.map(lambda a: a * scale, GUIDE)


def broken_guide(value):
    """The guide with one bad entry, in one leaf only."""
    return {**GUIDE, "vector": GUIDE["vector"].at[2].set(value)}


def draws(sampler, num_directions, *, count, params):
    """Designs under ``count`` keys: [count, K, d] in float64."""

    @jax.jit
    @jax.vmap
    def draw(key):
        row = lambda k: flat(sampler(key, k, num_directions, params))
        return jax.vmap(row)(jnp.arange(num_directions))

    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(draw(keys), np.float64)


# Name: (guide -> sampler, numbers of directions).
DESIGNS = {
    "gaussian": (lambda a: gaussian(), [4]),
    "sphere": (lambda a: sphere(), [4]),
    "rademacher": (lambda a: rademacher(), [4]),
    "coordinate": (lambda a: coordinate(), [4]),
    "sparse": (lambda a: sparse(0.4), [4]),
    "orthogonal": (lambda a: orthogonal(), [1, 4, 13, 16, 26]),
    "simplex": (lambda a: simplex(), [2, 8, 16]),
    "aligned": (lambda a: aligned(a), [4]),
    "aligned-coordinate": (lambda a: aligned(a, coordinate()), [4]),
    "aligned-orthogonal": (lambda a: aligned(a, orthogonal()), [4]),
    "aligned-simplex": (lambda a: aligned(a, simplex()), [4]),
    "fixed": (lambda a: aligned(a, fixed_length=True), [4]),
    "fixed-sphere": (lambda a: aligned(a, sphere(), fixed_length=True), [4]),
    "restrict-sphere": (lambda a: restrict(sphere(), MASK), [4]),
    "restrict-coordinate": (lambda a: restrict(coordinate(), MASK), [4]),
    "restrict-orthogonal": (lambda a: restrict(orthogonal(), MASK), [4]),
    "restrict-simplex": (lambda a: restrict(simplex(), MASK), [4]),
    "restrict-fixed": (lambda a: restrict(aligned(a, fixed_length=True), MASK), [4]),
}
CASES = [(name, k) for name, (_, sizes) in DESIGNS.items() for k in sizes]
FIXED_LENGTH = [
    (name, k)
    for name, k in CASES
    if name not in ("gaussian", "sparse") and name[:7] != "aligned"
]
COUNT = 20_000
KEYS = jax.random.split(jax.random.key(0), COUNT)


def drawing(names, num_directions):
    """(keys, guide) -> the named designs on PARAMS, each [count, K, d]."""

    @jax.jit
    def draw(keys, guide):
        def rows(name):
            sampler = DESIGNS[name][0](guide)
            row = lambda key, k: flat(sampler(key, k, num_directions, PARAMS))
            ks = jnp.arange(num_directions)
            return jax.vmap(jax.vmap(row, (None, 0)), (0, None))(keys, ks)

        return {name: rows(name) for name in names}

    return draw


@functools.cache
def designs(num_directions):
    # All in one program, since compiling is most of the work.
    names = [name for name, k in CASES if k == num_directions]
    return jax.tree.map(np.asarray, drawing(names, num_directions)(KEYS, GUIDE))


def design(name, num_directions):
    """Designs under 20,000 fixed keys, with GUIDE: [count, K, d] in float32."""
    return designs(num_directions)[name]


@functools.cache
def guided_drawing():
    return drawing(["aligned", "fixed"], 4)


def guided_designs(guide):
    """The same for aligned() and its fixed length, with another guide."""
    return jax.tree.map(np.asarray, guided_drawing()(KEYS, guide))


@pytest.fixture(scope="module", autouse=True)
def _free_designs():
    yield
    designs.cache_clear()


def assert_mean(samples, expected):
    """Mean over the first axis = expected, within the stated standard errors."""
    error = np.abs(samples.mean(axis=0) - expected)
    standard_error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    allowed = STANDARD_ERRORS * standard_error + ROUNDING
    assert np.all(error <= allowed), (
        f"mean {samples.mean(axis=0)} is {np.max(error / allowed):.1f} times further"
        f" from {expected} than {STANDARD_ERRORS} standard errors ({standard_error})"
    )


# -- E[v v^T] = I, |v|^2 = d -----------------------------------------------------------


def assert_isotropic(v):
    """E[v v^T] = I for samples [count, d]."""
    x = v.astype(np.float64)
    moment, square = x.T @ x / len(x), (x**2).T @ x**2 / len(x)
    standard_error = np.sqrt(np.maximum(square - moment**2, 0) / len(x))
    error = np.abs(moment - np.eye(x.shape[1]))
    assert np.all(error <= STANDARD_ERRORS * standard_error + ROUNDING), moment.round(3)
    # The trace adds up what each diagonal entry alone would not show.
    assert_mean(np.sum(x**2, axis=1), x.shape[1])


@pytest.mark.parametrize(("name", "num_directions"), CASES)
def test_second_moment_is_the_identity(name, num_directions):
    """E[v v^T] = I for the first and the last row; d is 9 where a leaf is frozen."""
    v = design(name, num_directions)
    assert v.shape == (COUNT, num_directions, 9 if "restrict" in name else D)
    assert_isotropic(v[:, 0])
    if num_directions > 1:
        assert_isotropic(v[:, -1])


@pytest.mark.parametrize(
    "guide",
    [
        pytest.param(scaled_guide(1e-30), id="tiny"),
        pytest.param(scaled_guide(1e30), id="huge"),
        pytest.param(scaled_guide(0.0), id="zero"),
        pytest.param(broken_guide(np.nan), id="nan"),
        pytest.param(broken_guide(-np.inf), id="inf"),
    ],
)
def test_second_moment_with_extreme_guides(guide):
    for v in guided_designs(guide).values():
        assert_isotropic(v[:, 1])


@pytest.mark.parametrize(("name", "num_directions"), FIXED_LENGTH)
def test_length_is_fixed(name, num_directions):
    """|v|^2 = d over the whole tree, in each draw."""
    v = design(name, num_directions).astype(np.float64)
    np.testing.assert_allclose(np.sum(v**2, axis=-1), v.shape[-1], rtol=2e-6)


@pytest.mark.parametrize("name", ["sphere", "coordinate", "orthogonal", "fixed"])
def test_length_is_exact_in_float64(name):
    """The scale of a direction is computed in the dtype of the leaf."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
        sampler = DESIGNS[name][0](jax.tree.map(lambda p: 0.3 * p, params))
        v = jax.jit(lambda key: flat(sampler(key, 1, 3, params)))(jax.random.key(0))
        assert v.dtype == np.float64
        np.testing.assert_allclose(np.sum(v**2), D, rtol=1e-13)


def test_entries_follow_their_laws():
    """Fourth moments, which a law of the right variance may still miss.

    3 for normals, 3d/(d+2) on the sphere, d for coordinates, 1/p where a share p moves.
    A row of orthogonal() lies
    in a block of size b with chance b/d, at height sqrt(d/b): (b/d) (d/b)^2 = d/b.
    """
    blocks = np.array([D / 8] * 8 + [D / 4] * 4 + [D / 1])
    for name, expected in {
        "gaussian": 3.0,
        "sphere": 3 * D / (D + 2),
        "coordinate": D,
        "rademacher": 1.0,
        "sparse": 1 / 0.4,
    }.items():
        assert_mean(design(name, 4)[:, 0].astype(np.float64) ** 4, expected)
    assert_mean(design("orthogonal", 4)[:, 0].astype(np.float64) ** 4, blocks)


# -- limits of the mean squared error --------------------------------------------------

SLOPE = flat64(GUIDE)
SPARSE = np.zeros(D)
SPARSE[[1, 7, 12]] = [2.0, -1.0, 0.5]


def relative_errors(v, gradient, entries=slice(None)):
    """|V^T V g / K - g|^2 / |g|^2 for each design, on the named entries.

    V^T V g / K is any two-point estimate of a linear function.
    """
    v = v.astype(np.float64)
    estimate = ((v @ gradient)[:, None, :] @ v)[:, 0] / v.shape[1]
    error = (estimate - gradient)[:, entries]
    return np.sum(error**2, axis=1) / np.sum(gradient**2)


@pytest.mark.parametrize("num_directions", [1, 4])
@pytest.mark.parametrize(
    ("name", "numerator"),
    [
        ("gaussian", D + 1),
        ("sphere", D - 1),
        ("rademacher", D - 1),
        ("coordinate", D - 1),
        ("sparse", D - 2 + 1 / 0.4),
        ("aligned", D - 1),
        ("fixed", D - 1),
    ],
)
def test_error_of_independent_rows(name, numerator, num_directions):
    """MSE/|g|^2 = (d+1)/K for normals, (d-1)/K for minimum-variance rows.

    Aligned rows have the gradient itself for a guide.
    """
    v = design(name, 4)[:, :num_directions]
    assert_mean(relative_errors(v, SLOPE), numerator / num_directions)


@pytest.mark.parametrize("num_directions", [1, 4])
@pytest.mark.parametrize(
    ("name", "numerator"),
    [
        ("rademacher", 3 - 1),
        ("aligned", 3 - 1),
        ("sphere", D * (3 + 2) / (D + 2) - 1),
    ],
)
def test_error_on_the_entries_of_a_sparse_gradient(name, numerator, num_directions):
    """With s = 3 nonzero entries: (s-1)/K, and [d(s+2)/(d+2) - 1]/K for the sphere."""
    v = guided_designs(unflat(SPARSE)) if name == "aligned" else designs(4)
    errors = relative_errors(v[name][:, :num_directions], SPARSE, SPARSE != 0)
    assert_mean(errors, numerator / num_directions)


@pytest.mark.parametrize("num_directions", [1, 4, 16])
def test_error_of_orthogonal_rows(num_directions):
    """d/K - 1 up to K = d.

    Beyond, with K = d + m: the first d rows are exact and the other m estimate g with
    error d/m - 1, which counts with weight m/K.
    """
    expected = D / num_directions - 1
    if num_directions > D:
        extra = num_directions - D
        expected = (extra / num_directions) ** 2 * (D / extra - 1)
    v = design("orthogonal", num_directions)
    assert_mean(relative_errors(v, SLOPE), expected)


@pytest.mark.parametrize("num_directions", [13, 26])
def test_orthogonal_rows_are_exact_at_multiples_of_d(num_directions):
    """V^T V g / K = g to float32 rounding, whatever the key, on a tree of leaves."""
    v = design("orthogonal", num_directions)
    assert np.max(relative_errors(v, SLOPE)) < 1e-11


@pytest.mark.parametrize(
    ("d", "num_directions"), [(1, 3), (16, 16), (96, 96), (96, 192)]
)
def test_orthogonal_rows_are_exact_in_other_dimensions(d, num_directions):
    v = draws(orthogonal(), num_directions, count=10, params=jnp.ones(d))
    gradient = np.linspace(-1, 2, d) + 0.1
    assert np.max(relative_errors(v, gradient)) < 1e-11


def assert_orthogonal(v):
    gram = v @ v.transpose(0, 2, 1) / v.shape[-1]
    np.testing.assert_allclose(
        gram, np.broadcast_to(np.eye(v.shape[1]), gram.shape), atol=1e-6
    )


@pytest.mark.parametrize("num_directions", [4, 13])
def test_orthogonal_rows_are_orthogonal(num_directions):
    """v_j . v_k = d (j = k)."""
    assert_orthogonal(design("orthogonal", num_directions)[:500])


def test_orthogonal_rows_are_orthogonal_in_many_dimensions():
    """d = 1000 = 512 + 256 + 128 + 64 + 32 + 8, K = 37 is no divisor."""
    assert_orthogonal(draws(orthogonal(), 37, count=5, params=jnp.ones(1000)))


def test_blocks_of_orthogonal_rows_have_signs_of_their_own():
    """K = 2d is two orthogonal blocks of rows, K = 16 one and three rows."""
    for num_directions in (16, 26):
        v = design("orthogonal", num_directions)[:500]
        assert_orthogonal(v[:, :D])
        assert_orthogonal(v[:, D:])
    # The cosines between a row of one block and the rows of the other: all have a 1
    # only if the signs of the 8 entries differ by a Hadamard row, 16 cases of 256.
    cosines = np.abs(v[:, :D] @ v[:, D:].transpose(0, 2, 1)) / D
    assert np.mean(np.min(np.max(cosines, axis=2), axis=1) < 0.999) > 0.8


def mean_baseline_errors(v, gradient):
    """The error of sum_k (y_k - mean y) v_k / n on a linear function with an offset."""
    v = v.astype(np.float64)
    y = v @ gradient + 7.0
    weights = (y - y.mean(axis=1, keepdims=True)) / v.shape[1]
    error = (weights[:, None, :] @ v)[:, 0] - gradient
    return np.sum(error**2, axis=1) / np.sum(gradient**2)


def test_simplex_is_exact_once_it_has_enough_points():
    """n = 16 > d = 13, on a tree of leaves."""
    assert np.max(mean_baseline_errors(design("simplex", 16), SLOPE)) < 1e-20


@pytest.mark.parametrize(("d", "n"), [(1, 2), (7, 8), (96, 128)])
def test_simplex_is_exact_in_other_dimensions(d, n):
    """Error 0 with the mean baseline from n - 1 = d on: distinct Hadamard codes."""
    v = draws(simplex(), n, count=20, params=jnp.ones(d))
    assert np.max(mean_baseline_errors(v, np.linspace(-1, 2, d) + 0.1)) < 1e-20


@pytest.mark.parametrize(("d", "n"), [(6, 2), (21, 4), (60, 16)])
def test_error_of_the_simplex_where_codes_divide_d(d, n):
    """d/(n-1) - 1 exactly: each code is shared by d/(n-1) entries."""
    v = draws(simplex(), n, count=5000, params=jnp.ones(d))
    gradient = np.linspace(-1, 2, d) + 0.1
    assert_mean(mean_baseline_errors(v, gradient), d / (n - 1) - 1)


def test_error_of_the_simplex_with_uneven_codes():
    """d = 13, n = 8: six of the 7 codes have two entries and one has one.

    The error in an entry is the g_j that shares its code, so with |g_j| = 1 it is 12/13
    in all: about 13/7 - 1 = 0.857. At n = 2 it is d - 1, that of one antithetic pair.
    """
    gradient = np.resize([1.0, 1.0, -1.0], D)
    errors = mean_baseline_errors(design("simplex", 8), gradient)
    np.testing.assert_allclose(errors, 12 / 13, rtol=1e-12)
    assert_mean(mean_baseline_errors(design("simplex", 2), gradient), D - 1)


@pytest.mark.parametrize("n", [2, 8, 16])
def test_simplex_rows_sum_to_zero(n):
    v = design("simplex", n)
    np.testing.assert_array_equal(v.sum(axis=1), 0)
    np.testing.assert_array_equal(np.abs(v), 1)


def test_two_points_of_the_simplex_are_antithetic():
    v = design("simplex", 2)
    np.testing.assert_array_equal(v[:, 1], -v[:, 0])
    assert len(np.unique(v[:500, 0], axis=0)) > 400  # of 2^13 sign patterns


@pytest.mark.parametrize("bad", [1, 3, 6, 100])
def test_simplex_needs_a_power_of_two(bad):
    """The sampler and the estimator's factory both say so, also through wrappers."""
    message = re.escape("num_directions must be a power of two >= 2") + f".*got {bad}$"
    for sampler in (
        simplex(),
        restrict(simplex(), MASK),
        aligned(GUIDE, simplex()),
        restrict(aligned(GUIDE, restrict(simplex(), MASK)), MASK),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(jax.random.key(0), 0, bad, PARAMS)
        with pytest.raises(ValueError, match=message):
            zojax.two_point(1e-3, bad, key=0, sampler=sampler)
        zojax.two_point(1e-3, 4, key=0, sampler=sampler)


@pytest.mark.parametrize(
    ("name", "num_directions"),
    [
        ("gaussian", 4),
        ("sphere", 4),
        ("rademacher", 4),
        ("coordinate", 4),
        ("aligned", 4),
        ("fixed", 4),
        ("orthogonal", 4),
        ("orthogonal", 13),
    ],
)
def test_rows_suit_a_baseline_from_the_same_step(name, num_directions):
    """E[v_j v_k^T] = 0 for two rows, or leave-one-out is biased.

    two_point(difference="leave_one_out") estimates, on a linear function of slope g,
    (1/K) sum_k [y_k - mean of the other y] v_k, with expectation g - E[v_k v_j^T] g.
    """
    v = design(name, num_directions).astype(np.float64)
    gradient = SLOPE + 2.0
    y = v @ gradient
    others = (y.sum(axis=1, keepdims=True) - y) / (num_directions - 1)
    estimate = ((y - others)[:, None, :] @ v)[:, 0] / num_directions
    assert_mean(estimate, gradient)


# -- aligned ---------------------------------------------------------------------------


def assert_aligned(v, guide):
    """(v . a)^2 = |a|^2 over the whole tree, with signs that are fair."""
    a = flat64(guide)
    cosine = v.astype(np.float64) @ (a / np.linalg.norm(a))
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-5)
    signs = np.sign(cosine)
    assert_mean(signs, 0)
    assert_mean(signs[:, 0] * signs[:, 1], 0)


@pytest.mark.parametrize("name", [name for name in DESIGNS if "aligned" in name])
def test_aligned_with_the_guide(name):
    """Whatever the base, also where X itself is along no other axis."""
    assert_aligned(design(name, 4), GUIDE)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_aligned_with_a_guide_of_any_scale(scale):
    guide = scaled_guide(scale)
    for name, v in guided_designs(guide).items():
        assert_aligned(v, guide)
        if name == "fixed":
            length = np.sum(v.astype(np.float64) ** 2, axis=-1)
            np.testing.assert_allclose(length, D, rtol=1e-5)


def test_aligned_in_many_dimensions():
    """The projection is accurate at d = 10,000, where |X| is 100."""
    guide = jnp.sin(jnp.arange(10_000.0)) + 2.0  # not centred: sums do not cancel
    a = flat64(guide)
    for fixed_length in (False, True):
        sampler = aligned(guide, fixed_length=fixed_length)
        v = draws(sampler, 2, count=10, params=guide)
        np.testing.assert_allclose(np.abs(v @ a) / np.linalg.norm(a), 1, atol=5e-5)


def test_alignment_is_global_over_the_tree():
    """One a and one norm: no leaf is aligned on its own."""
    v = design("aligned", 4)[:, 0]
    for part in (slice(0, 8), slice(9, 13)):
        along = v[:, part] @ SLOPE[part] / np.linalg.norm(SLOPE[part])
        assert np.std(np.abs(along)) > 0.1


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("aligned", "gaussian"),
        ("aligned-coordinate", "coordinate"),
        ("aligned-orthogonal", "orthogonal"),
    ],
)
def test_alignment_keeps_what_is_orthogonal_to_the_guide(name, base):
    """v - X is along a: the projection changes nothing else."""
    unit = SLOPE / np.linalg.norm(SLOPE)
    moved = design(name, 4).astype(np.float64) - design(base, 4)
    np.testing.assert_allclose(moved, (moved @ unit)[..., None] * unit, atol=2e-6)
    # With xi = +-1 and X . a / |a| of variance 1, v differs from X by sqrt(2) or so.
    assert np.std(moved @ unit) > 1


@pytest.mark.parametrize(
    "guide",
    [
        pytest.param(scaled_guide(0.0), id="zero"),
        pytest.param(broken_guide(np.nan), id="nan"),
        pytest.param(broken_guide(np.inf), id="inf"),
        pytest.param(broken_guide(-np.inf), id="minus-inf"),
    ],
)
def test_unusable_guide(guide):
    """v = X bit for bit; with fixed length +-sqrt(d) X/|X|."""
    x = design("gaussian", 4)
    v = guided_designs(guide)
    np.testing.assert_array_equal(v["aligned"], x)
    x = x.astype(np.float64)
    expected = math.sqrt(D) * x / np.linalg.norm(x, axis=-1, keepdims=True)
    sign = np.sign(np.sum(v["fixed"] * expected, axis=-1, keepdims=True))
    np.testing.assert_allclose(v["fixed"], sign * expected, rtol=2e-6)


@pytest.mark.parametrize("fixed_length", [False, True])
def test_aligned_in_one_dimension(fixed_length):
    """At d = 1 an aligned direction is a fair sign, whatever the guide is."""

    @jax.jit
    def draw(keys, a):
        sampler = aligned(a, rademacher(), fixed_length=fixed_length)
        return jax.vmap(lambda key: sampler(key, 0, 1, a))(keys)

    keys = jax.random.split(jax.random.key(0), 500)
    for a in (-2.0, 1e-30, 1e30, 0.0, np.nan, np.inf):
        v = np.asarray(draw(keys, jnp.full((1,), a)), np.float64)
        np.testing.assert_allclose(np.abs(v), 1, atol=1e-6)
        assert_mean(v, 0)


def test_frozen_entries_of_the_guide_do_not_count():
    """NaN, or nothing, at a frozen leaf does not switch the alignment off."""
    a = flat64({name: leaf for name, leaf in GUIDE.items() if MASK[name]})
    for sampler in (
        aligned(broken_guide(np.nan), restrict(sphere(), MASK)),
        restrict(aligned(broken_guide(np.nan)), MASK),
        restrict(aligned({**GUIDE, "vector": None}), MASK),
    ):
        v = draws(sampler, 1, count=50, params=PARAMS)[:, 0]
        assert v.shape == (50, 9)
        np.testing.assert_allclose(np.abs(v @ a) / np.linalg.norm(a), 1, atol=1e-5)


@pytest.mark.parametrize(
    "base",
    [
        pytest.param(lazy(gaussian()), id="lazy"),
        pytest.param(low_rank(1), id="low_rank"),
        pytest.param(restrict(lazy(rademacher()), MASK), id="restrict-lazy"),
        pytest.param(restrict(low_rank(2), MASK), id="restrict-low_rank"),
    ],
)
def test_aligned_needs_rows_that_may_be_held(base):
    """The error names the way out, from_rows(base.row): the same rows, held."""
    message = r"base must be a sampler whose rows may be held.*from_rows\(base\.row\)"
    for fixed_length in (False, True):
        with pytest.raises(ValueError, match=message):
            aligned(GUIDE, base, fixed_length=fixed_length)
    held = from_rows(base.row)
    samplers = (base, aligned(GUIDE, held), aligned(GUIDE, held, fixed_length=True))
    # Three in one program, since compiling is most of the work.
    all_of = lambda *names: [sampler(*names) for sampler in samplers]
    together = draws(all_of, 2, count=50, params=PARAMS)
    x, v, fixed = np.split(together, 3, axis=-1)
    mask = MASK if x.shape[-1] == 9 else dict.fromkeys(GUIDE, True)
    a = flat64({name: leaf for name, leaf in GUIDE.items() if mask[name]})
    unit = a / np.linalg.norm(a)
    for rows in (v, fixed):
        np.testing.assert_allclose(np.abs(rows @ unit), 1, atol=1e-5)
    across_x, across_v, across_fixed = (
        rows - (rows @ unit)[..., None] * unit for rows in (x, v, fixed)
    )
    np.testing.assert_allclose(across_v, across_x, atol=1e-5)
    # With a fixed length they are also stretched, and turned by a sign.
    np.testing.assert_allclose(np.sum(fixed**2, axis=-1), len(a), rtol=1e-5)
    lengths = [np.linalg.norm(rows, axis=-1) for rows in (across_x, across_fixed)]
    inner = np.sum(across_x * across_fixed, axis=-1)
    np.testing.assert_allclose(np.abs(inner), lengths[0] * lengths[1], rtol=1e-5)


# -- the random stream -----------------------------------------------------------------

SAMPLERS = {
    "gaussian": gaussian(),
    "sphere": sphere(),
    "rademacher": rademacher(),
    "coordinate": coordinate(),
    "orthogonal": orthogonal(),
    "simplex": simplex(),
    "aligned": aligned(GUIDE),
    "fixed": aligned(GUIDE, fixed_length=True),
    "restrict": restrict(gaussian(), MASK),
}
ALL_SAMPLERS = pytest.mark.parametrize("name", list(SAMPLERS))


def test_leaves_of_one_shape_differ():
    """Also at paths that end alike; all |correlations| < 5/sqrt(1000)."""
    leaf = jnp.ones(1000)
    params = {"a": leaf, "b": leaf, "c": {"a": leaf}, "d": [leaf, leaf]}
    for sampler in (gaussian(), rademacher()):
        v = jax.jit(lambda key, draw=sampler: draw(key, 0, 1, params))(
            jax.random.key(0)
        )
        correlation = np.corrcoef([flat64(x) for x in jax.tree.leaves(v)])
        off_diagonal = correlation - np.eye(5)
        assert np.max(np.abs(off_diagonal)) < STANDARD_ERRORS / math.sqrt(1000)


@pytest.mark.parametrize("sampler", [gaussian(), rademacher()])
def test_adding_a_leaf_leaves_the_noise_of_the_others(sampler):
    key = jax.random.key(3)
    few = {"b": jnp.ones((2, 4)), "d": jnp.ones(4)}
    many = {"a": jnp.ones(4), "c": {"x": jnp.ones((2, 4))}, "e": jnp.ones(()), **few}
    v, w = sampler(key, 2, 4, few), sampler(key, 2, 4, many)
    for name in few:
        np.testing.assert_array_equal(v[name], w[name])


def test_bfloat16_noise_is_drawn_in_float32():
    """Normals drawn in bfloat16 would take at most 2^7 values."""
    draw = jax.jit(gaussian().row, static_argnums=2)
    low = draw(jax.random.key(0), 0, 1, jnp.ones(4096, jnp.bfloat16))
    full = draw(jax.random.key(0), 0, 1, jnp.ones(4096, jnp.float32))
    assert low.dtype == jnp.bfloat16
    assert len(np.unique(flat64(low))) > 400
    np.testing.assert_array_equal(low, full.astype(jnp.bfloat16))


@pytest.mark.parametrize("sampler", [gaussian(), rademacher()])
def test_x64_does_not_change_the_noise(sampler):
    v = flat64(sampler(jax.random.key(1), 1, 4, PARAMS))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda p: np.asarray(p, np.float64), PARAMS)
        w = sampler(jax.random.key(1), 1, 4, wide)
        assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(w))
        np.testing.assert_array_equal(flat64(w), v)


@ALL_SAMPLERS
def test_shapes_and_dtypes_follow_params(name):
    """Leaf by leaf, also where dtypes are mixed."""
    params = {**PARAMS, "matrix": jnp.ones((2, 4), jnp.bfloat16)}
    draw = lambda key: SAMPLERS[name](key, 0, 4, params)
    v = jax.eval_shape(draw, jax.random.key(0))
    assert set(v) == set(params)
    for leaf, x in v.items():
        if name == "restrict" and not MASK[leaf]:
            assert x is None
        else:
            assert (x.shape, x.dtype) == (params[leaf].shape, params[leaf].dtype)


@pytest.fixture(scope="module")
def forms():
    """Rows 0..3 of each sampler: eager, under jit, under vmap, and in bfloat16."""
    key, rows = jax.random.key(4), jnp.arange(4)

    def row(key, k, params):
        return {name: flat(draw(key, k, 4, params)) for name, draw in SAMPLERS.items()}

    jitted, stack = jax.jit(row), lambda *x: np.stack(x)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    return {
        "eager": jax.tree.map(stack, *(row(key, k, PARAMS) for k in range(4))),
        "jit": jax.tree.map(stack, *(jitted(key, k, PARAMS) for k in range(4))),
        "vmap": jax.jit(jax.vmap(row, (None, 0, None)))(key, rows, PARAMS),
        "bfloat16": jax.tree.map(stack, *(jitted(key, k, narrow) for k in range(4))),
    }


@pytest.mark.parametrize("factory", [gaussian, sphere])
def test_large_draws_take_turns(factory):
    """Bit for bit those made alone, and beside them the words of one at a time."""
    number, like = 8, jax.ShapeDtypeStruct((2**9, 2**9), jnp.float32)
    sampler, key = factory(), jax.random.key(2)
    row = lambda k: sampler(key, k, number, like)
    together = jax.jit(jax.vmap(row)).lower(jnp.arange(number)).compile()
    temporary = together.memory_analysis().temp_size_in_bytes
    assert temporary < 2 * number * 4 * like.size
    v, alone = together(jnp.arange(number)), jax.jit(row)
    for k in (0, number - 1):
        np.testing.assert_allclose(v[k], alone(k), rtol=3e-7 * (factory is sphere))


@ALL_SAMPLERS
def test_eager_jit_and_vmap_draw_the_same(name, forms):
    """Bit for bit, but where a norm or an inner product over the tree is taken.

    There XLA may sum in another order: equal to a few units in the last place.
    """
    ulps = 8 if name in ("sphere", "aligned", "fixed") else 0
    for form in ("jit", "vmap"):
        np.testing.assert_allclose(
            forms[form][name], forms["eager"][name], rtol=0, atol=ulps * 2.0**-23
        )


@ALL_SAMPLERS
def test_bfloat16_directions_are_the_float32_ones_rounded(name, forms):
    """Rounded once; twice for aligned, whose base direction is rounded too."""
    v, full = forms["bfloat16"][name], forms["jit"][name]
    assert v.dtype == jnp.bfloat16
    if name in ("aligned", "fixed"):
        np.testing.assert_allclose(v.astype(np.float32), full, atol=8 * 2.0**-8)
    else:
        np.testing.assert_array_equal(v, full.astype(jnp.bfloat16))


@pytest.mark.parametrize(("name", "num_directions"), CASES)
def test_a_key_and_a_row_name_the_draw(name, num_directions):
    """Twenty keys give many designs, and the rows of a design differ."""
    v = design(name, num_directions)[:20]
    # A single row of coordinate() or orthogonal() may well come back.
    assert len(np.unique(v.reshape(20, -1), axis=0)) >= 14
    if "coordinate" not in name:  # with replacement
        num_rows = min(num_directions, D)
        assert all(len(np.unique(rows[:D], axis=0)) == num_rows for rows in v)


@pytest.mark.parametrize("name", ["gaussian", "sphere", "rademacher", "coordinate"])
def test_independent_rows_do_not_depend_on_their_number(name):
    v = SAMPLERS[name](jax.random.key(0), 1, 2, PARAMS)
    w = SAMPLERS[name](jax.random.key(0), 1, 50, PARAMS)
    np.testing.assert_array_equal(flat64(v), flat64(w))


def test_typed_keys_legacy_keys_and_seeds_agree():
    """zojax.evaluate draws the same for each form of a key, and seed 0 is a seed."""
    slope = 2.0 ** jnp.arange(-4, 9)  # one value for each sign vector
    values = lambda key: zojax.evaluate(
        lambda x: jnp.dot(x, slope, precision="highest"),
        jnp.zeros(13),
        zojax.Directions(rademacher(), key, 4),
        1.0,
    )[0]
    typed = values(jax.random.key(7))
    np.testing.assert_array_equal(typed, values(jax.random.PRNGKey(7)))
    np.testing.assert_array_equal(typed, values(7))
    np.testing.assert_array_equal(values(0), values(jax.random.key(0)))
    assert np.any(values(0) != values(1))


def test_seeds_of_an_estimator_differ():
    """Seed 0 is a seed, and no key is a default."""
    x = jnp.ones(4)

    def gradient(key):
        estimator = zojax.two_point(1e-3, 2, key=key, sampler=rademacher())
        state = estimator.init(x)
        return estimator.update(None, state, x, value_fn=jnp.sum)[0]

    zero = gradient(0)
    assert np.any(zero != gradient(1))
    np.testing.assert_array_equal(zero, gradient(jax.random.key(0)))
    np.testing.assert_array_equal(zero, gradient(jax.random.PRNGKey(0)))
    with pytest.raises(TypeError, match="key"):
        zojax.two_point(1e-3, 2)


# -- packed signs ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100])
def test_packed_signs_are_fair_and_uncorrelated(size):
    """Each entry, each pair and each product of three neighbours, within 5/sqrt(n).

    A wrong unpacking repeats, skips or shares bits of a word, or a whole word.
    """
    v = draws(rademacher(), 1, count=COUNT, params=jnp.ones(size))[:, 0]
    np.testing.assert_array_equal(np.abs(v), 1)
    bound = STANDARD_ERRORS / math.sqrt(COUNT)
    assert np.max(np.abs(v.mean(axis=0))) < bound
    assert np.max(np.abs(v.T @ v / COUNT - np.eye(size))) < bound
    triples = v[:, :-2] * v[:, 1:-1] * v[:, 2:]
    assert np.max(np.abs(triples.mean(axis=0)), initial=0) < bound
    if size > 30:
        # 20,000 draws of 2^31 patterns: 0.1 repetitions are expected.
        assert len(np.unique(v, axis=0)) >= COUNT - 2


# -- restrict --------------------------------------------------------------------------

NESTED = {
    "head": {"w": jnp.ones((2, 4)), "b": jnp.ones(4)},
    "body": {"w": jnp.ones((2, 4)), "ids": jnp.arange(3), "none": None},
    "none": None,
}
HEAD = {"w": True, "b": True}
BODY = {"w": False, "ids": False, "none": None}
HEAD_MASKS = pytest.mark.parametrize(
    "mask",
    [
        pytest.param({"head": HEAD, "body": BODY, "none": None}, id="full"),
        pytest.param({"head": True, "body": False, "none": False}, id="prefix"),
        pytest.param(
            {"head": np.bool_(True), "body": np.bool_(False), "none": True}, id="numpy"
        ),
        pytest.param(
            lambda params: {name: name == "head" for name in params}, id="callable"
        ),
    ],
)


@HEAD_MASKS
@ALL_SAMPLERS
def test_frozen_leaves_are_none(name, mask):
    sampler = gaussian() if name == "restrict" else SAMPLERS[name]
    if name in ("aligned", "fixed"):
        sampler = aligned(NESTED, fixed_length=name == "fixed")
    draw = lambda key: restrict(sampler, mask)(key, 0, 4, NESTED)
    v = jax.eval_shape(draw, jax.random.key(0))
    assert v["body"] == {"w": None, "ids": None, "none": None}
    assert v["none"] is None
    assert v["head"]["w"].shape == (2, 4)
    assert v["head"]["b"].shape == (4,)


@HEAD_MASKS
@pytest.mark.parametrize("sampler", [gaussian(), rademacher()])
def test_freezing_leaves_the_other_draws(sampler, mask):
    """Trainable leaves draw bit for bit what they draw when nothing is frozen."""
    floats = {**NESTED, "body": {"w": jnp.ones((2, 4)), "none": None}}
    v = restrict(sampler, mask)(jax.random.key(0), 3, 4, NESTED)
    w = sampler(jax.random.key(0), 3, 4, floats)
    for name in ("w", "b"):
        np.testing.assert_array_equal(v["head"][name], w["head"][name])


def test_frozen_entries_do_not_count_in_d():
    """Of 13 floats and 3 integers, 4 are trainable: one coordinate moves by 2."""
    mask = {"head": {"w": False, "b": True}, "body": False, "none": False}
    draw = lambda base: flat64(
        restrict(base, mask)(jax.random.key(0), 0, 4, NESTED)["head"]["b"]
    )
    np.testing.assert_array_equal(np.sort(np.abs(draw(coordinate()))), [0, 0, 0, 2])
    np.testing.assert_array_equal(np.abs(draw(orthogonal())), 1)
    np.testing.assert_allclose(np.sum(draw(sphere()) ** 2), 4, rtol=1e-6)


@ALL_SAMPLERS
def test_mask_of_one_bool(name):
    """True trains all leaves and False none; params may hold None."""
    params = {**PARAMS, "none": None}
    sampler = gaussian() if name == "restrict" else SAMPLERS[name]
    if name in ("aligned", "fixed"):
        guide = {**GUIDE, "none": None}
        sampler = aligned(guide, fixed_length=name == "fixed")
    key = jax.random.key(0)
    v = jax.eval_shape(lambda: restrict(sampler, True)(key, 0, 4, params))
    assert v == jax.eval_shape(lambda: sampler(key, 0, 4, params))
    assert v["none"] is None
    assert len(jax.tree.leaves(v)) == 4
    assert jax.tree.leaves(restrict(sampler, False)(key, 0, 4, params)) == []


@pytest.mark.parametrize("sampler", [gaussian(), orthogonal()])
def test_none_in_params_changes_nothing(sampler):
    v = sampler(jax.random.key(0), 1, 3, {**PARAMS, "aside": {"none": None}})
    assert v.pop("aside") == {"none": None}
    np.testing.assert_array_equal(
        flat64(v), flat64(sampler(jax.random.key(0), 1, 3, PARAMS))
    )


def test_callable_masks_see_params():
    """As in optax.masked: params -> mask; here it freezes what is not float."""
    is_float = lambda p: jnp.issubdtype(p.dtype, jnp.floating)
    sampler = restrict(rademacher(), lambda params: jax.tree.map(is_float, params))
    v = sampler(jax.random.key(0), 0, 1, NESTED)
    assert v["body"]["ids"] is None
    assert v["body"]["w"].shape == (2, 4)
    assert len(jax.tree.leaves(v)) == 3


@pytest.mark.parametrize("bad", [1, 0.0, "head", np.ones(2, bool), np.int32(1)])
def test_masks_hold_bools_only(bad):
    """A static mask fails in the factory, a callable one when it is called."""
    mask = {"head": bad, "body": False, "none": None}
    message = "mask must be a pytree prefix of bools.*got a leaf"
    with pytest.raises(ValueError, match=message):
        restrict(gaussian(), mask)
    sampler = restrict(gaussian(), lambda params: mask)
    with pytest.raises(ValueError, match=message):
        sampler(jax.random.key(0), 0, 1, NESTED)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(None, id="none"),
        pytest.param({"head": True}, id="missing"),
        pytest.param({"head": True, "tail": False, "none": None}, id="renamed"),
        pytest.param([True, False, False], id="list"),
        pytest.param(
            {"head": {"w": {"x": True}, "b": True}, "body": False, "none": None},
            id="too-deep",
        ),
    ],
)
def test_masks_must_fit_params(bad):
    """In the sampler and, before any step, in an estimator's init."""
    sampler = restrict(gaussian(), bad)
    message = "mask must be a pytree prefix of params"
    with pytest.raises(ValueError, match=message):
        sampler(jax.random.key(0), 0, 1, NESTED)
    with pytest.raises(ValueError, match=message):
        zojax.two_point(1e-3, 2, key=0, sampler=sampler).init(NESTED)


@ALL_SAMPLERS
def test_integer_leaves_need_freezing(name):
    """The error names the leaf, its dtype and the way out."""
    params = {**PARAMS, "none": None, "ids": jnp.arange(3)}
    base = gaussian() if name == "restrict" else SAMPLERS[name]
    if name in ("aligned", "fixed"):
        guide = {**GUIDE, "ids": jnp.zeros(3), "none": None}
        base = aligned(guide, fixed_length=name == "fixed")
    mask = {name: name != "ids" for name in params}
    trained = dict.fromkeys(params, True)
    key = jax.random.key(0)
    message = r"params\['ids'\] has dtype int32.*freeze it with .*restrict"
    for sampler in (base, restrict(base, trained)):
        with pytest.raises(ValueError, match=message):
            sampler(key, 0, 4, params)
    v = jax.eval_shape(lambda: restrict(base, mask)(key, 0, 4, params))
    assert v["ids"] is None
    assert sum(leaf.size for leaf in jax.tree.leaves(v)) == D
