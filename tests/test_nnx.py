"""split_loss: what an nnx model changes as it runs is carried, or that is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import zojax
from zojax.nnx import split_loss
from zojax.perturbations import rademacher

X, Y = jnp.sin(jnp.arange(32.0)).reshape(8, 4), jnp.ones(8)


class Net(nnx.Module):
    """A hidden layer, normalised, with a mask."""

    def __init__(self, rngs, rate=0.5):
        self.inner = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.outer = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.dropout(self.norm(self.inner(x))))[:, 0]


def loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def estimator(difference="forward", **options):
    signs = rademacher()
    return zojax.two_point(
        1e-2, 4, key=0, sampler=signs, difference=difference, **options
    )


def steps(difference="forward", number=3, rate=0.5):
    """The model, and the state that was carried through some steps."""
    model = Net(nnx.Rngs(0), rate)
    value_fn, params, kept = split_loss(loss, model)
    opt = estimator(difference, has_aux=True, aux_like=kept)
    step = jax.jit(
        lambda kept, state: opt.update(
            None, state, params, value_fn=value_fn, model_state=kept, x=X, y=Y
        )
    )
    state = opt.init(params)
    for _ in range(number):
        _, state = step(kept, state)
        kept = state.log.aux
    assert step._cache_size() == 1
    return model, kept, state


def test_statistics_are_those_of_training_mode():
    """The first query is at params: three steps are three forward passes there."""
    model, kept, _ = steps()
    alone = Net(nnx.Rngs(0))
    for _ in range(3):
        alone(X)
    nnx.update(model, kept.state)
    for name in ("mean", "var"):
        found, expected = getattr(model.norm, name), getattr(alone.norm, name)
        np.testing.assert_allclose(found[...], expected[...], rtol=1e-5)
        assert not np.allclose(found[...], 0 if name == "mean" else 1)
    assert int(model.dropout.rngs.count[...]) == int(alone.dropout.rngs.count[...])


def test_the_model_is_left_alone():
    model, kept, _ = steps()
    np.testing.assert_array_equal(model.norm.mean[...], np.zeros(6))
    assert kept.state


def test_one_mask_a_step_and_another_in_the_next():
    """Without a perturbation to speak of all queries of a step agree."""
    model = Net(nnx.Rngs(0))
    value_fn, params, kept = split_loss(loss, model)
    V = zojax.Directions(rademacher(), 0, 4)
    f = lambda p: value_fn(p, kept, x=X, y=Y)
    values, aux = zojax.evaluate(f, params, V, 1e-12, has_aux=True)
    np.testing.assert_allclose(values, values[0, 0] * np.ones((4, 1)), rtol=1e-6)
    after, _ = value_fn(params, aux, x=X, y=Y)
    assert not np.allclose(after, values[0, 0], rtol=1e-3)


@pytest.mark.parametrize("make", [zojax.two_point, zojax.zoar, zojax.dap])
def test_state_that_would_be_thrown_away_is_an_error(make):
    model = Net(nnx.Rngs(0))
    value_fn, params, kept = split_loss(loss, model)
    for options, words in (
        ({"has_aux": True}, "aux_like must be given.*aux_like=model_state"),
        ({}, "pass has_aux=True"),
    ):
        opt = make(1e-2, 4, key=0, **options)
        with pytest.raises(ValueError, match=words):
            opt.update(
                None,
                opt.init(params),
                params,
                value_fn=value_fn,
                model_state=kept,
                x=X,
                y=Y,
            )


def test_data_that_was_not_given_is_named():
    model = Net(nnx.Rngs(0))
    value_fn, params, kept = split_loss(loss, model)
    opt = estimator(has_aux=True, aux_like=kept)
    with pytest.raises(ValueError, match=r"needs \['y'\]"):
        opt.update(
            None, opt.init(params), params, value_fn=value_fn, model_state=kept, x=X
        )


@pytest.mark.parametrize("wrong", [lambda model, **data: 0.0, lambda model, *data: 0.0])
def test_a_loss_names_its_arguments(wrong):
    with pytest.raises(ValueError, match="loss must name each argument"):
        split_loss(wrong, Net(nnx.Rngs(0)))


def test_other_parameters_stay_as_they_are():
    """wrt picks what is perturbed; the rest is that of the model."""
    model = Net(nnx.Rngs(0), rate=0.0)
    outer = nnx.All(nnx.Param, nnx.PathContains("outer"))
    value_fn, params, kept = split_loss(loss, model, wrt=outer)
    assert len(jax.tree.leaves(params)) == 2
    value, _ = value_fn(params, kept, x=X, y=Y)
    np.testing.assert_allclose(value, loss(Net(nnx.Rngs(0), rate=0.0), X, Y), rtol=1e-6)
    opt = estimator(has_aux=True, aux_like=kept)
    updates, _ = opt.update(
        None, opt.init(params), params, value_fn=value_fn, model_state=kept, x=X, y=Y
    )
    assert float(optax.tree.norm(updates)) > 0
