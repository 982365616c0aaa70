"""An estimator from its body: one way of asking, whoever answers.

:func:`estimator` makes three things of a body (see rounds.py): ``update(value_fn=...)``
calls an objective, ``ask`` hands out the points of a round, and ``update(values=...)``
takes what somebody else measured there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from zojax._directions import as_gradient
from zojax._estimators.answers import by_round, calling, handed_out, told
from zojax._estimators.log import init_log, update_log
from zojax._estimators.rounds import Body, Settings, Step
from zojax._keys import step_key
from zojax._numerics import PyTree, number_at
from zojax._objective import check_params


class Ask(Protocol):
    """(state, params, *values of earlier rounds, updates) -> points of the next."""

    def __call__(
        self, state: Any, params: PyTree, *values: Any, updates: PyTree = None
    ) -> PyTree: ...


class Estimator(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that can also be asked for its points.

    ``update(updates, state, params, *, value_fn, value=None, **extra_args)`` calls the
    objective. ``value_fn(params, ...)`` gets those extra args that it names, and if it
    names ``query_key`` a key of its own for each direction. For an objective that JAX
    cannot call, the same step is

        points = estimator.ask(state, params)
        updates, state = estimator.update(None, state, params, values=measure(points))

    with points a pytree like params whose leaves have a leading axis of queries, and
    values one number for each, in their order, from anywhere; NaN for one that failed.
    Nothing is asked twice: state and params name the points. An estimator of several
    rounds is asked for each with the values of those before, ``ask(state, params,
    first)``, and told all of them, ``values=(first, second)``. In an optax chain the
    estimator's own state is the first: ``ask(state[0], params)``.

    Attributes:
      init: params -> state.
      update: see above.
      ask: (state, params, *values of earlier rounds, updates=None) -> points.
      num_rounds: how many rounds a step has.
    """

    ask: Ask
    num_rounds: int

    def __new__(
        cls,
        init: optax.TransformInitFn,
        update: optax.TransformUpdateExtraArgsFn,
        ask: Ask,
        num_rounds: int = 1,
    ) -> Estimator:
        """A pair for optax, with two more attributes."""
        self = super().__new__(cls, init, update)
        self.ask, self.num_rounds = ask, num_rounds
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        """All four, for copies."""
        return (*self, self.ask, self.num_rounds)


def estimator(
    settings: Settings,
    body: Body,
    make_state: Callable[..., Any],
    init: Callable[[PyTree], dict[str, Any]],
    *,
    num_values: tuple[int, int],
    asks_params: bool = False,
    num_rounds: int = 1,
) -> Estimator:
    """Makes an estimator of a body.

    Args:
      settings: as :func:`check_settings` returns them.
      body: see the module's docstring.
      make_state: a NamedTuple with fields key, count and log, and those of init.
      init: params -> what the state keeps beside; raises where params do not fit.
      num_values: (K, P), of all rounds together.
      asks_params: whether f(params) is asked.
      num_rounds: how many rounds body yields.

    Returns:
      An :class:`Estimator`.
    """

    def init_fn(params):
        check_params(params)
        return make_state(
            **init(params),
            key=jnp.array(settings.key),
            count=jnp.zeros((), jnp.int32),
            log=init_log(num_values, asks_params, settings.aux_like),
        )

    def step_of(params, updates, state):
        check_params(params)
        at_count = lambda number: number_at(number, state.count)
        return Step(
            params=params,
            updates=updates,
            state=state,
            settings=settings,
            key=step_key(state.key, state.count),
            smoothing=at_count(settings.smoothing),
            bound=None if settings.clip is None else at_count(settings.clip),
        )

    def run(step, respond):
        rounds, heard = body(step), []
        asked = next(rounds)
        while True:
            answer, raw = respond(asked)
            heard.append(raw)
            try:
                asked = rounds.send(answer)
            except StopIteration as end:
                sums, changed = end.value
                break
        values = jnp.concatenate([h.values for h in heard])
        log = update_log(step.state.log, values, heard[0].at_params, heard[0].aux)
        state = step.state._replace(
            count=optax.safe_increment(step.state.count), log=log, **changed
        )
        return as_gradient(sums, step.params), state

    # Outside of a jitted step these two are programs of their own, compiled once.
    @jax.jit
    def update_told(updates, state, params, values):
        step = step_of(params, updates, state)
        return run(step, told(values, step))

    @jax.jit
    def ask_after(state, params, values, updates):
        step = step_of(params, updates, state)
        rounds, respond = body(step), told(values, step)
        asked = next(rounds)
        for _ in values:
            asked = rounds.send(respond(asked)[0])
        return handed_out(asked, params)

    def ask(state, params, *values, updates=None):
        check_params(params)
        if len(values) >= num_rounds:
            raise ValueError(
                f"values must be those of earlier rounds, of {num_rounds} in all, got"
                f" {len(values)}: tell them to update(values=...)"
            )
        return ask_after(state, params, values, updates)

    def update_fn(
        updates,
        state,
        params=None,
        *,
        value_fn=None,
        value=None,
        values=None,
        **extra_args,
    ):
        check_params(params)
        if (value_fn is None) == (values is None):
            given = "neither" if values is None else "both"
            raise ValueError(
                "update needs value_fn=, an objective to call, or values=, those of"
                f" the points of ask(state, params); got {given}"
            )
        if values is not None:
            heard = by_round(values, num_rounds)
            return update_told(updates, state, params, heard)
        step = step_of(params, updates, state)
        return run(step, calling(value_fn, value, extra_args, step))

    return Estimator(init_fn, update_fn, ask, num_rounds)


def followed_by(first: Estimator, *rest: optax.GradientTransformation) -> Estimator:
    """``optax.chain(first, *rest)`` that can be asked as its first part can."""
    chained = optax.chain(first, *rest)

    def ask(state, params, *values, updates=None):
        return first.ask(state[0], params, *values, updates=updates)

    return Estimator(chained.init, chained.update, ask, first.num_rounds)
