"""An estimator from its body: one way of asking, whoever answers.

Of a body (see rounds.py) come ``update(value_fn=...)``, which calls an objective,
``ask``, which hands out points, and ``update(values=...)``, told what they measured.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zojax import _docs as docs
from zojax._directions import Directions, as_gradient, direction_shapes
from zojax._estimators import rounds
from zojax._estimators.log import init_log, update_log
from zojax._keys import key_data, step_key
from zojax._numerics import PyTree, number_at
from zojax._objective import RESERVED, bind_value_fn, check_params


class Estimator(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation that can also be asked for its points.

    ``update(updates, state, params, *, value_fn, value=None, **extra_args)`` calls the
    objective: ``value_fn(params, ...)`` gets those extra args that it names, and if it
    names ``query_key`` a key for each direction. Where JAX cannot call it, the step is

        points = estimator.ask(state, params)
        updates, state = estimator.update(None, state, params, values=measure(points))

    with points a pytree like params whose leaves have a leading axis of queries, params
    first where their value is needed, and values one for each; NaN for one that failed.
    State and params name the points, so that nothing needs to be kept in between.

    The key of a run is that of its factory: ``jax.vmap(opt.init)`` over replicas gives
    them all one. Make the estimator under vmap, from a key each, for their own.

    Attributes:
      init: params -> state.
      update: see above. Of several rounds it takes ``values=(first, second)``.
      ask: (state, params, *values of earlier rounds, updates=None) -> points. In an
        optax chain the estimator's own state is the first: ``ask(state[0], params)``.
      ask_with_keys: the same, returning :class:`Queries`: points of which nothing that
        is frozen was copied, and a key for each.
      num_rounds: how many rounds a step has.
    """

    ask: Callable[..., PyTree]
    ask_with_keys: Callable[..., rounds.Queries]
    num_rounds: int

    def __new__(
        cls,
        init: Any,
        update: Any,
        ask: Callable[..., PyTree],
        ask_with_keys: Callable[..., rounds.Queries],
        num_rounds: int = 1,
    ) -> "Estimator":
        """A pair for optax, with three more attributes."""
        self = super().__new__(cls, init, update)
        self.ask, self.ask_with_keys, self.num_rounds = ask, ask_with_keys, num_rounds
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        """All five, for copies."""
        return (*self, self.ask, self.ask_with_keys, self.num_rounds)


def _run(body, step, respond):
    """Sends answers to the body until it has its estimate: (sums, changes, answers)."""
    asking, answers = body(step), []
    asked = next(asking)
    while True:
        answers.append(respond(asked))
        try:
            asked = asking.send(answers[-1])
        except StopIteration as end:
            return *end.value, answers


def _check_state(
    state: Any, kind: type, num_values: tuple[int, int], kept: dict[str, PyTree]
) -> None:
    """Raises unless a state is one that these settings and params make."""
    shapes = lambda tree: [jnp.shape(x) for x in jax.tree.leaves(tree)]
    ours = isinstance(state, kind)
    same = ours and state.log.query_values.shape == num_values
    if same and all(shapes(getattr(state, k)) == shapes(kept[k]) for k in kept):
        return
    found = "that of other settings or params" if ours else f"a {type(state).__name__}"
    raise ValueError(
        f"state must be a {kind.__name__} that init(params) of this estimator made,"
        f" got {found}; in an optax chain the estimator's own state is the first;"
        f" {docs.RESUMING}"
    )


def estimator(
    settings: rounds.Settings,
    body: rounds.Body,
    make_state: type,
    stages: tuple[Directions, ...],
    sides: tuple[float, ...],
    *,
    asks_params: bool = False,
    keep: Callable[[PyTree], dict[str, Any]] = lambda params: {},
) -> Estimator:
    """Makes an estimator of a body that yields a round for each of its stages.

    Its state has the fields key, count and log, and those of ``keep(params)``.
    """
    rounds.check_settings(settings, asks_params)
    key, num_rounds = key_data(settings.key), len(stages)
    num_values = sum(V.num_directions for V in stages), len(sides)

    def init(params):
        check_params(params)
        trees = [jax.tree.structure(direction_shapes(params, V)) for V in stages]
        if len(set(trees)) > 1:
            message = "sampler and base must freeze the same leaves, got directions"
            raise ValueError(f"{message} {trees}")
        return make_state(
            **keep(params),
            key=jnp.array(key),
            count=jnp.zeros((), jnp.int32),
            log=init_log(num_values, asks_params, settings.aux_like),
        )

    def step_of(updates, state, params):
        _check_state(state, make_state, num_values, jax.eval_shape(keep, params))
        mu = number_at(settings.smoothing, state.count)
        bound = None if settings.clip is None else number_at(settings.clip, state.count)
        now = step_key(state.key, state.count)
        return rounds.Step(params, updates, state, settings, now, mu, bound)

    def finish(step, respond):
        sums, changed, answers = _run(body, step, respond)
        measured = jnp.concatenate([answer.measured for answer in answers])
        first, state = answers[0], step.state
        changed["log"] = update_log(state.log, measured, first.at_params, first.aux)
        changed["count"] = optax.safe_increment(state.count)
        return as_gradient(sums, step.params), state._replace(**changed)

    # Outside of a jitted step these are programs of their own, compiled once.
    @jax.jit
    def update_told(updates, state, params, values):
        step = step_of(updates, state, params)
        return finish(step, rounds.telling(values, step))

    def asking(found):
        @jax.jit
        def ask_after(updates, state, params, values):
            step = step_of(updates, state, params)
            asking, respond = body(step), rounds.telling(values, step)
            asked = next(asking)
            for _ in values:
                asked = asking.send(respond(asked))
            return found(asked, params)

        def ask(state, params, *values, updates=None):
            check_params(params)
            if len(values) >= num_rounds:
                raise ValueError(
                    f"values must be those of earlier rounds, of {num_rounds} in all,"
                    f" got {len(values)}: tell them to update(values=...)"
                )
            told = rounds.by_round(values, len(values))
            return ask_after(updates, state, params, told)

        return ask

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        check_params(params)
        value, values = (extra_args.pop(name, None) for name in RESERVED)
        if (value_fn is None) == (values is None):
            # A trainer or a wrapper may have kept them to itself.
            lost = f"neither; {docs.TRAINER}, or {docs.EXTRA_ARGS}"
            raise ValueError(
                "update needs value_fn=, an objective to call, or values=, those of the"
                f" points of ask; got {lost if values is None else 'both'}"
            )
        if values is not None:
            told = rounds.by_round(values, num_rounds)
            return update_told(updates, state, params, told)
        step = step_of(updates, state, params)
        objective = bind_value_fn(value_fn, extra_args, settings.has_aux)
        return finish(step, rounds.calling(objective, value, step))

    asks = asking(rounds.points_of), asking(rounds.queries_of)
    return Estimator(init, update, *asks, num_rounds)


def followed_by(first: Estimator, *rest: optax.GradientTransformation) -> Estimator:
    """``optax.chain(first, *rest)`` that can be asked as its first part can."""
    chained = optax.chain(first, *rest)

    def asking(ask):
        return lambda state, *args, **kwargs: ask(state[0], *args, **kwargs)

    asks = asking(first.ask), asking(first.ask_with_keys)
    return Estimator(chained.init, chained.update, *asks, first.num_rounds)
