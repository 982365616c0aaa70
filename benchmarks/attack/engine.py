"""The objective, the methods, and the loop that attacks all images at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from benchmarks.attack.data import NUM_CLASSES
from benchmarks.batching import shared_axes
from zojax.perturbations import gaussian, rademacher, simplex, sphere

BOUND = 0.2
BLOCK = 10  # steps between two movements of the progress bar

Classify = Callable[[jax.Array], jax.Array]
"""Image f[h, w, c] -> log-probabilities f[10]."""


# -- the methods -----------------------------------------------------------------------


class Method(NamedTuple):
    """An estimator under comparison."""

    label: str
    estimator: Callable[..., optax.GradientTransformationExtraArgs]
    extra_queries: int = 0  # per step, beside one for each direction
    options: dict[str, Any] = {}  # noqa: RUF012, read only
    power_of_two: bool = False  # takes only such numbers of directions

    def directions(self, most: int) -> int:
        """Directions of a step, where there may be so many."""
        return 1 << (most.bit_length() - 1) if self.power_of_two else most

    def cost(self, most: int) -> int:
        """Queries of one step."""
        return self.directions(most) + self.extra_queries


def _vanilla(label, sampler):
    return Method(label, zojax.two_point, 1, {"sampler": sampler})


def _zoar(label, sampler, history_size):
    options = {"sampler": sampler, "history_size": history_size}
    return Method(label, zojax.zoar, options=options)


METHODS = {
    "vanilla": _vanilla("vanilla, gaussian", gaussian()),
    "vanilla-sphere": _vanilla("vanilla, sphere", sphere()),
    "vanilla-rademacher": _vanilla("vanilla, Rademacher", rademacher()),
    "mean": _zoar("mean, gaussian", gaussian(), 0),
    "mean-sphere": _zoar("mean, sphere", sphere(), 0),
    "mean-rademacher": _zoar("mean, Rademacher", rademacher(), 0),
    "zoar": _zoar("ZoAR, gaussian", gaussian(), 5),
    "zoar-sphere": _zoar("ZoAR, sphere", sphere(), 5),
    "zoar-rademacher": _zoar("ZoAR, Rademacher", rademacher(), 5),
    "dap": Method("two-stage DAP", zojax.dap, 1),
    "simplex": Method(
        "simplex",
        zojax.two_point,
        options={"sampler": simplex(), "difference": "mean"},
        power_of_two=True,
    ),
}


# -- the goals -------------------------------------------------------------------------


def perturb(theta: jax.Array, image: jax.Array) -> jax.Array:
    """The image that theta stands for; it keeps to the bounds whatever theta is."""
    return jnp.clip(image + jnp.clip(theta, -BOUND, BOUND), 0, 1)


def margin(log_probs: jax.Array, target: jax.Array) -> jax.Array:
    """(Largest other log-probability) - (the target's)."""
    others = jnp.where(jnp.arange(log_probs.size) == target, -jnp.inf, log_probs)
    return others.max() - log_probs[target]


class Goal(NamedTuple):
    """What the attacker wants of the classifier; `asked` is the class it is about."""

    label: str
    asked: Callable[[np.ndarray], np.ndarray]  # of the labels
    loss: Callable[[jax.Array, jax.Array], jax.Array]  # negative once it holds
    holds: Callable[[jax.Array, jax.Array], jax.Array]  # (prediction, asked)


GOALS = {
    "targeted": Goal(
        "taken for the next class",
        lambda labels: (labels + 1) % NUM_CLASSES,
        margin,
        lambda prediction, target: prediction == target,
    ),
    "untargeted": Goal(
        "taken for any other class",
        lambda labels: labels,
        lambda log_probs, label: -margin(log_probs, label),
        lambda prediction, label: prediction != label,
    ),
}


# -- the attack ------------------------------------------------------------------------


class State(NamedTuple):
    """The attack on one image."""

    theta: jax.Array
    opt_state: Any
    success: jax.Array  # bool[], whether the goal has held at an iterate
    queries: jax.Array  # i32[], spent until then, or so far
    adversarial: jax.Array  # f[h, w, c], the first success, or the last iterate


def attack(
    method: Method,
    goal: Goal,
    classify: Classify,
    images: jax.Array,
    asked: jax.Array,
    keys: jax.Array,
    *,
    queries: int,
    smoothing: float,
    directions: int,
    learning_rates: Sequence[float],
    start: str = "zero",
    on_block: Callable[[int, State], None] = lambda steps, state: None,
) -> State:
    """Attacks all images with all learning rates at once.

    Args:
      method: one of METHODS.
      goal: one of GOALS.
      classify: the victim.
      images: f[n, h, w, c] in [0, 1].
      asked: i32[n], the class that the goal is about.
      keys: n typed keys; the noise of an image is the same for every learning rate.
      queries: budget of an attack; steps that would exceed it are not taken.
      smoothing, directions: mu and the largest K.
      learning_rates: of R-AdaZO, L of them.
      start: "zero", or "normal" for theta_0 ~ N(0, I).
      on_block: is called after every block with (steps done, batched State).

    Returns:
      A State with leading axes [n, L], but for keys and counts of the optimizer [n].
    """
    cost = method.cost(directions)
    num_steps = queries // cost

    learning_rates = jnp.asarray(learning_rates)

    def optimizer(key, learning_rate):
        estimator = method.estimator(
            smoothing, method.directions(directions), key=key, **method.options
        )
        return optax.chain(estimator, zojax.radazo(learning_rate))

    def objective(theta, image, asked):
        return goal.loss(classify(perturb(theta, image)), asked)

    def look(state, image, asked):
        """Freezes what is recorded at the first success."""
        adversarial = perturb(state.theta, image)
        holds = goal.holds(classify(adversarial).argmax(), asked)
        return state._replace(
            success=state.success | holds,
            adversarial=jnp.where(state.success, state.adversarial, adversarial),
        )

    def begin(learning_rate, key, image, asked):
        start_key, key = jax.random.split(key)
        theta = jnp.zeros_like(image)
        if start == "normal":
            theta = jax.random.normal(start_key, image.shape, image.dtype)
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        opt_state = optimizer(key, learning_rate).init(theta)
        return look(State(theta, opt_state, no, zero, image), image, asked)

    def step(state, learning_rate, image, asked):
        # The key is in the state: the one given here is not read.
        updates, opt_state = optimizer(0, learning_rate).update(
            None,
            state.opt_state,
            state.theta,
            value_fn=objective,
            image=image,
            asked=asked,
        )
        moved = state._replace(
            theta=optax.apply_updates(state.theta, updates),
            opt_state=opt_state,
            queries=state.queries + jnp.where(state.success, 0, cost),
        )
        return look(moved, image, asked)

    one = (learning_rates[0], keys[0], images[0], asked[0])
    shared = shared_axes(jax.eval_shape(begin, *one))
    begin_all = jax.vmap(
        jax.vmap(begin, (0, None, None, None), shared), (None, 0, 0, 0)
    )
    step_all = jax.vmap(
        jax.vmap(step, (shared, 0, None, None), shared), (0, None, 0, 0)
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def block(state, images, asked, first):
        def advance(state, number):
            # The last block may reach beyond the budget.
            moved = jax.lax.cond(
                number < num_steps,
                lambda state: step_all(state, learning_rates, images, asked),
                lambda state: state,
                state,
            )
            return moved, None

        return jax.lax.scan(advance, state, first + jnp.arange(BLOCK))[0]

    state = jax.jit(begin_all)(learning_rates, keys, images, asked)
    for first in range(0, num_steps, BLOCK):
        state = jax.block_until_ready(block(state, images, asked, first))
        on_block(min(first + BLOCK, num_steps), state)
        if state.success.all():
            break
    return state


def white_box(
    goal: Goal,
    classify: Classify,
    images: jax.Array,
    asked: jax.Array,
    steps: int = 50,
) -> np.ndarray:
    """Attacks with exact gradients: bool[n], what the bounds let succeed at least.

    Projected sign-gradient descent, which the black-box methods have no access to.
    """

    def loss(theta, image, asked):
        return goal.loss(classify(perturb(theta, image)), asked)

    @jax.jit
    def step(theta, found):
        losses, slopes = jax.vmap(jax.value_and_grad(loss))(theta, images, asked)
        moved = theta - 0.05 * BOUND * jnp.sign(slopes)
        return jnp.clip(moved, -BOUND, BOUND), found | (losses < 0)

    theta, found = jnp.zeros_like(images), jnp.zeros(len(images), bool)
    for _ in range(steps + 1):  # the last one looks at the last move
        theta, found = step(theta, found)
    return np.asarray(found)
