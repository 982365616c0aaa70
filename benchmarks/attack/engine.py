"""The objective, the methods, and the loop that attacks all images at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax

BOUND = 0.2
BLOCK = 10  # steps between two movements of the progress bar

Classify = Callable[[jax.Array], jax.Array]
"""Image f[28, 28, 1] -> log-probabilities f[10]."""


# -- the methods -----------------------------------------------------------------------


class Method(NamedTuple):
    """An estimator under comparison."""

    label: str
    estimator: Callable[..., optax.GradientTransformationExtraArgs]
    extra_queries: int  # per step, beside one for each direction
    options: dict[str, Any]

    def cost(self, directions: int) -> int:
        """Queries of one step."""
        return directions + self.extra_queries


METHODS = {
    "vanilla": Method("vanilla", zojax.two_point, 1, {}),
    "mean": Method("mean baseline", zojax.zoar, 0, {"history_size": 0}),
    "zoar": Method("ZoAR", zojax.zoar, 0, {"history_size": 5}),
    "dap": Method("two-stage DAP", zojax.dap, 1, {}),
}


# -- the attack ------------------------------------------------------------------------


def perturb(theta: jax.Array, image: jax.Array) -> jax.Array:
    """The image that theta stands for; it keeps to the bounds whatever theta is."""
    return jnp.clip(image + jnp.clip(theta, -BOUND, BOUND), 0, 1)


def margin(log_probs: jax.Array, target: jax.Array) -> jax.Array:
    """(Largest other log-probability) - (the target's)."""
    others = jnp.where(jnp.arange(log_probs.size) == target, -jnp.inf, log_probs)
    return others.max() - log_probs[target]


class State(NamedTuple):
    """The attack on one image."""

    theta: jax.Array
    opt_state: Any
    success: jax.Array  # bool[], whether an iterate has fooled the classifier
    queries: jax.Array  # i32[], spent until then, or so far
    adversarial: jax.Array  # f[28, 28, 1], the first success, or the last iterate


def attack(
    method: Method,
    classify: Classify,
    images: jax.Array,
    targets: jax.Array,
    keys: jax.Array,
    *,
    queries: int,
    smoothing: float,
    directions: int,
    learning_rate: float,
    start: str = "zero",
    on_block: Callable[[int, State], None] = lambda steps, state: None,
) -> State:
    """Attacks all images at once, each with a key of its own.

    Args:
      method: one of METHODS.
      classify: the victim.
      images: f[n, 28, 28, 1] in [0, 1].
      targets: i32[n].
      keys: n typed keys.
      queries: budget of an image; steps that would exceed it are not taken.
      smoothing, directions: mu and K.
      learning_rate: of R-AdaZO.
      start: "zero", or "normal" for theta_0 ~ N(0, I).
      on_block: is called after every block with (steps done, batched State).

    Returns:
      A State with a leading axis n.
    """
    cost = method.cost(directions)
    num_steps = queries // cost

    def optimizer(key):
        return optax.chain(
            method.estimator(smoothing, directions, key=key, **method.options),
            zojax.radazo(learning_rate),
        )

    def objective(theta, image, target):
        return margin(classify(perturb(theta, image)), target)

    def look(state, image, target):
        """Freezes what is recorded at the first success."""
        adversarial = perturb(state.theta, image)
        return state._replace(
            success=state.success | (classify(adversarial).argmax() == target),
            adversarial=jnp.where(state.success, state.adversarial, adversarial),
        )

    def begin(key, image, target):
        start_key, key = jax.random.split(key)
        theta = jnp.zeros_like(image)
        if start == "normal":
            theta = jax.random.normal(start_key, image.shape, image.dtype)
        zero, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        opt_state = optimizer(key).init(theta)
        return look(State(theta, opt_state, no, zero, image), image, target)

    def step(state, image, target):
        # The key is in the state: the one given here is not read.
        updates, opt_state = optimizer(0).update(
            None,
            state.opt_state,
            state.theta,
            value_fn=objective,
            image=image,
            target=target,
        )
        moved = state._replace(
            theta=optax.apply_updates(state.theta, updates),
            opt_state=opt_state,
            queries=state.queries + jnp.where(state.success, 0, cost),
        )
        return look(moved, image, target)

    @jax.jit
    def block(state, images, targets, first):
        def advance(state, number):
            # The last block may reach beyond the budget.
            moved = jax.lax.cond(
                number < num_steps,
                lambda state: jax.vmap(step)(state, images, targets),
                lambda state: state,
                state,
            )
            return moved, None

        return jax.lax.scan(advance, state, first + jnp.arange(BLOCK))[0]

    state = jax.jit(jax.vmap(begin))(keys, images, targets)
    for first in range(0, num_steps, BLOCK):
        state = jax.block_until_ready(block(state, images, targets, first))
        on_block(min(first + BLOCK, num_steps), state)
        if state.success.all():
            break
    return state


def white_box(
    classify: Classify, images: jax.Array, targets: jax.Array, steps: int = 50
) -> np.ndarray:
    """Attacks with exact gradients: bool[n], what the bounds let succeed at least.

    Projected sign-gradient descent, which the black-box methods have no access to.
    """

    def loss(theta, image, target):
        return margin(classify(perturb(theta, image)), target)

    @jax.jit
    def step(theta, found):
        margins, slopes = jax.vmap(jax.value_and_grad(loss))(theta, images, targets)
        moved = theta - 0.05 * BOUND * jnp.sign(slopes)
        return jnp.clip(moved, -BOUND, BOUND), found | (margins < 0)

    theta, found = jnp.zeros_like(images), jnp.zeros(len(images), bool)
    for _ in range(steps):
        theta, found = step(theta, found)
    return np.asarray(found)
