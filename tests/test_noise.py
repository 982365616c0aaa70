"""Noise as it lies: which bit of which word each sign is, by hand in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zojax
from zojax.perturbations import _noise as noise
from zojax.perturbations import gaussian, lazy, materialize, rademacher

KEY = jax.random.key(5)


def words(*shape):
    return np.asarray(jax.random.bits(KEY, shape, jnp.uint32))


def bit(word, i):
    """+1 where bit i, counted from the highest, is 0."""
    return 1.0 - 2.0 * ((word >> (31 - i)) & 1).astype(np.float32)


def drawn(*shape):
    found = noise.fair_signs(KEY, shape)
    assert found.dtype == jnp.float32
    return np.asarray(found)


@pytest.mark.parametrize("rows", [64, 70, 16])
def test_a_word_of_a_matrix_is_32_signs_of_a_column(rows):
    found, word = drawn(rows, 200), words(-(-rows // 32), 200)
    i, j = np.indices((rows, 200))
    np.testing.assert_array_equal(found, bit(word[i // 32, j], i % 32))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 3, 64, 128), 2), ((64, 3, 7, 7), 0), ((32, 40, 130), 0), ((33, 64, 130), 1)],
)
def test_words_lie_along_the_axis_that_wastes_least(shape, axis):
    packed = tuple(-(-n // 32) if i == axis else n for i, n in enumerate(shape))
    at = list(np.indices(shape))
    which = at[axis] % 32
    at[axis] = at[axis] // 32
    np.testing.assert_array_equal(drawn(*shape), bit(words(*packed)[tuple(at)], which))


@pytest.mark.parametrize(
    "shape", [(), (1,), (33,), (4, 5), (15, 200), (0,), (0, 200), (70_001,)]
)
def test_signs_of_a_vector_are_those_of_its_words_one_after_the_other(shape):
    size = np.prod(shape, dtype=int)
    word, e = words(-(-size // 32)), np.arange(size)
    expected = bit(word[e // 32], e % 32).reshape(shape)
    np.testing.assert_array_equal(drawn(*shape), expected)


@pytest.mark.parametrize("number", [1, 4, 30])
def test_the_program_of_a_tpu_unpacks_the_same_signs(number):
    found = np.asarray(noise._in_lanes(jnp.asarray(words(number)))).reshape(-1)
    e = np.arange(32 * number)
    np.testing.assert_array_equal(found[: len(e)], bit(words(number)[e // 32], e % 32))


@pytest.mark.parametrize("number", [5, 32, 70])
def test_rows_of_a_table_share_words_by_32(number):
    key = lambda n: jax.random.key_data(jax.random.fold_in(KEY, n))
    found = np.asarray(noise.draw_stack(noise.SIGNS, KEY, number, (6,)))
    assert found.shape == (number, 6)
    for i, row in enumerate(found):
        of_row = jax.random.wrap_key_data(key(i // 32))
        word = np.asarray(jax.random.bits(of_row, (6,), jnp.uint32))
        np.testing.assert_array_equal(row, bit(word, i % 32))


@pytest.mark.parametrize("base", [rademacher(), gaussian()])
@pytest.mark.parametrize("shape", [(70, 5), (70,), (4, 64, 130)])
def test_slices_drawn_alone_are_those_of_the_whole(base, shape):
    sampler, x = lazy(base, True), jnp.zeros(shape)
    row = sampler(KEY, 3, 8, x)
    point = sampler.line(KEY, 3, 8, x)(1.0)
    some = jnp.array([[3, 1], [2, 2]])
    np.testing.assert_array_equal(materialize(point), row)
    np.testing.assert_array_equal(materialize(point[some]), row[some])
    scanned = jax.lax.scan(lambda c, part: (c, materialize(part)), 0, point)[1]
    np.testing.assert_array_equal(scanned, row)


def test_signs_that_share_words_are_independent():
    """Products of pairs of entries of 64 rows, over 4,000 keys, within 5 errors."""
    V = zojax.Directions(lazy(rademacher(), True), 0, 4000)
    draw = lambda k: V.sampler(V.key, k, 4000, jnp.zeros((64, 3)))
    v = np.asarray(jax.vmap(draw)(jnp.arange(4000))).reshape(4000, -1)
    products = v.T @ v / 4000
    off = products[~np.eye(len(products), dtype=bool)]
    assert abs(off).max() < 5.5 / np.sqrt(4000)  # of 36,672 numbers
    assert abs(v.mean(axis=0)).max() < 5 / np.sqrt(4000)
