"""The objective, the methods, and the loop that attacks all images at once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from benchmarks.batching import shared_axes
from zojax.perturbations import gaussian, rademacher, simplex, sphere

BOUND = 0.2
SMOOTHING = 0.05  # the paper's


class Method(NamedTuple):
    """An estimator under comparison."""

    cost: int  # queries of a step
    estimator: Callable[..., optax.GradientTransformationExtraArgs]


def _method(factory, extra_queries=0, num_directions=10, **options):
    estimator = functools.partial(factory, num_directions=num_directions, **options)
    return Method(num_directions + extra_queries, estimator)


METHODS = {
    "vanilla": _method(zojax.two_point, 1, sampler=gaussian()),
    "vanilla-sphere": _method(zojax.two_point, 1, sampler=sphere()),
    "vanilla-rademacher": _method(zojax.two_point, 1, sampler=rademacher()),
    "mean": _method(zojax.zoar, history_size=0, sampler=gaussian()),
    "mean-sphere": _method(zojax.zoar, history_size=0, sampler=sphere()),
    "mean-rademacher": _method(zojax.zoar, history_size=0, sampler=rademacher()),
    "zoar": _method(zojax.zoar, history_size=5, sampler=gaussian()),
    "zoar-sphere": _method(zojax.zoar, history_size=5, sampler=sphere()),
    "zoar-rademacher": _method(zojax.zoar, history_size=5, sampler=rademacher()),
    "dap": _method(zojax.dap, 1),
    # It takes a power of two.
    "simplex": _method(zojax.two_point, 0, 8, sampler=simplex(), difference="mean"),
}


class Goal(NamedTuple):
    """What the attacker wants the classifier to say; see ``objective``."""

    words: str
    asked: Callable[[np.ndarray], np.ndarray]  # labels -> the classes it is about
    sign: float


GOALS = {
    "targeted": Goal("taken for the next class", lambda labels: (labels + 1) % 10, 1.0),
    "untargeted": Goal("taken for any other class", lambda labels: labels, -1.0),
}

Objective = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(theta, image f[h, w, c], class) -> a number, negative once the attack holds."""


def perturb(theta: jax.Array, image: jax.Array) -> jax.Array:
    """The image that theta stands for; it keeps to the bounds whatever theta is."""
    return jnp.clip(image + jnp.clip(theta, -BOUND, BOUND), 0, 1)


def objective(goal: Goal, classify: Callable[[jax.Array], jax.Array]) -> Objective:
    """Largest other log-probability less that of the class, or the reverse."""

    def loss(theta, image, asked):
        found = classify(perturb(theta, image))
        others = jnp.where(jnp.arange(found.size) == asked, -jnp.inf, found)
        return goal.sign * (others.max() - found[asked])

    return loss


class State(NamedTuple):
    """The attack on one image."""

    theta: jax.Array  # stays at the first success
    opt_state: Any
    success: jax.Array  # bool[]
    queries: jax.Array  # i32[], spent until the first success, or so far


def attack(
    method: Method,
    loss: Objective,
    images: jax.Array,
    asked: jax.Array,
    keys: jax.Array,
    *,
    queries: int,
    learning_rates: Sequence[float],
    start: str = "zero",
    smoothing: float = SMOOTHING,
    tick: Callable[[float], None] = lambda share: None,
) -> State:
    """Attacks all images f[n, h, w, c] with all L learning rates at once.

    The noise of an image is named by its key and the same for every learning rate.
    Steps that would exceed the budget of queries are not taken. The start is zero, or
    with "normal" N(0, I). The State has leading axes [n, L], but for keys and counts of
    the optimizer [n].
    """
    num_steps, rates = queries // method.cost, jnp.asarray(learning_rates)

    def optimizer(key, rate):
        return optax.chain(method.estimator(smoothing, key=key), zojax.radazo(rate))

    def begin(rate, key, image, asked):
        start_key, key = jax.random.split(key)
        theta = jnp.zeros_like(image)
        if start == "normal":
            theta = jax.random.normal(start_key, image.shape, image.dtype)
        opt_state = optimizer(key, rate).init(theta)
        success = loss(theta, image, asked) < 0
        return State(theta, opt_state, success, jnp.zeros((), jnp.int32))

    def step(state, rate, image, asked):
        theta, given = state.theta, {"image": image, "asked": asked, "value_fn": loss}
        # The key is in the state: the one given here is not read.
        update = optimizer(0, rate).update
        updates, opt_state = update(None, state.opt_state, theta, **given)
        moved = optax.apply_updates(theta, updates)
        # Whether an iterate holds is looked up to measure: that is not a query.
        return State(
            jnp.where(state.success, theta, moved),
            opt_state,
            state.success | (loss(moved, image, asked) < 0),
            state.queries + jnp.where(state.success, 0, method.cost),
        )

    one = rates[0], keys[0], images[0], asked[0]
    shared = shared_axes(jax.eval_shape(begin, *one))
    over_rates = jax.vmap(begin, (0, None, None, None), shared)
    begin_all = jax.vmap(over_rates, (None, 0, 0, 0))
    over_rates = jax.vmap(step, (shared, 0, None, None), shared)
    step_all = jax.jit(jax.vmap(over_rates, (0, None, 0, 0)), donate_argnums=0)

    state = jax.jit(begin_all)(rates, keys, images, asked)
    for n in range(num_steps):
        state = step_all(state, rates, images, asked)
        tick((n + 1) / num_steps)
        if state.success.all():
            break
    return state


def white_box(
    loss: Objective, images: jax.Array, asked: jax.Array, steps: int = 50
) -> np.ndarray:
    """Attacks with exact gradients: bool[n], what the bounds let succeed at least.

    Projected sign-gradient descent, which the black-box methods have no access to.
    """

    @jax.jit
    def step(theta, found):
        losses, slopes = jax.vmap(jax.value_and_grad(loss))(theta, images, asked)
        moved = theta - 0.05 * BOUND * jnp.sign(slopes)
        return jnp.clip(moved, -BOUND, BOUND), found | (losses < 0)

    theta, found = jnp.zeros_like(images), jnp.zeros(len(images), bool)
    for _ in range(steps + 1):  # the last one looks at the last move
        theta, found = step(theta, found)
    return np.asarray(found)
