"""Minimises a function that JAX can neither differentiate nor call."""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zojax._checks import check_flag, check_int
from zojax._estimators.rounds import Queries
from zojax._estimators.step import Estimator
from zojax._numerics import PyTree, is_none
from zojax._objective import check_params
from zojax.external._attempt import Function, Query
from zojax.external._folder import Folder, opened
from zojax.external._measure import measuring


class Progress(NamedTuple):
    """How far a run is, after a step.

    Attributes:
      step: steps that were made, of this run and of those that it goes on with.
      values: f[n], what the function returned at the points of the step; NaN where it
        failed.
      params: pytree of numpy arrays, after the step.
      best_value, best_params: the best value of all, and the point that had it. Where
        values are noisy it is the luckiest: params are the result.
      num_evaluations: points that were evaluated, failed ones included.
      num_failed: of them, those without a finite value after all retries.
      num_timeouts: of them, those that passed the limit.
    """

    step: int
    values: np.ndarray
    params: PyTree
    best_value: float
    best_params: PyTree
    num_evaluations: int
    num_failed: int
    num_timeouts: int


class _State(NamedTuple):
    """What is saved after a step."""

    step: np.ndarray
    params: PyTree
    state: PyTree
    best_value: np.ndarray
    best_params: PyTree
    counts: np.ndarray  # i64[3], as in Progress
    first: np.ndarray  # id of the first query of the last step


def _at(points: PyTree, params: PyTree, i: int) -> PyTree:
    """Point i; frozen leaves are those of params themselves."""
    one = lambda at, p: p if at is None else at[i]
    return jax.tree.map(one, points, params, is_leaf=is_none)


def _queries(asked: Queries, params: PyTree, first: int) -> list[Query]:
    return [
        Query(first + i, _at(asked.points, params, i), np.asarray(key))
        for i, key in enumerate(asked.keys)
    ]


def _check_any(folder: Folder, ids: range) -> None:
    """Raises if nothing has succeeded in a run's first round: the function is wrong."""
    records = [folder.records[i] for i in ids]
    if all(record["value"] is None for record in records):
        first = records[0]
        text = first.get("traceback") or first["error"]
        kept = f" ({folder.path} has them: remove it to try again)"
        raise RuntimeError(
            f"each of the first {len(ids)} evaluations failed"
            f"{kept if folder.path else ''}; of the first:\n{text}"
        )


def _measured(
    folder: Folder, measure: Callable, queries: list[Query], step: int
) -> np.ndarray:
    """The values of a round; what is written down is not evaluated again."""
    left = [query for query in queries if query.id not in folder.records]
    for query, found, tries in measure(left):
        folder.tell(query, found, tries, step)
    return folder.values([query.id for query in queries])


def _with_best(
    state: _State, values: np.ndarray, queries: list[Query], sign: float
) -> _State:
    """The state, with the best value of a round and its point if it is the best."""
    costs = np.where(np.isfinite(values), sign * values, math.inf)
    i = int(np.argmin(costs))
    if not costs[i] < sign * state.best_value:
        return state
    point = jax.tree.map(np.asarray, queries[i].point)
    return state._replace(best_value=np.asarray(values[i]), best_params=point)


def _counted(counts: np.ndarray, records: list[dict]) -> np.ndarray:
    failed = sum(record["value"] is None for record in records)
    late = sum(record["timed_out"] for record in records)
    return counts + np.array([len(records), failed, late])


def _progress(state: _State, folder: Folder) -> Progress:
    values = folder.values(range(int(state.first), int(state.counts[0])))
    counts = map(int, state.counts)
    best = float(state.best_value), state.best_params
    return Progress(int(state.step), values, state.params, *best, *counts)


def _stepping(
    estimator: Estimator,
    opt: optax.GradientTransformationExtraArgs,
    measure: Callable,
    sign: float,
) -> Callable[[Folder, _State], _State]:
    """Makes the function of one step: ask, evaluate and tell, round by round.

    The estimator is the first in the chain ``opt``.
    """

    @jax.jit
    def update(params, state, values):
        told = tuple(sign * v for v in values)
        updates, state = opt.update(None, state, params, values=told)
        return optax.apply_updates(params, updates), state

    def ask(params, state, values):
        told = [sign * v for v in values]
        return estimator.ask_with_keys(state[0], params, *told)

    def step(folder, state):
        number, told = int(state.step), []
        first, now = int(state.counts[0]), (state.params, state.state)
        for turn in range(estimator.num_rounds):
            asked = folder.asked(number, turn, jax.eval_shape(ask, *now, told))
            if asked is None:
                asked = jax.device_get(ask(*now, told))
                folder.ask(asked, number, turn)
            queries = _queries(asked, state.params, first)
            first += len(queries)
            told.append(_measured(folder, measure, queries, number))
            state = _with_best(state, told[-1], queries, sign)
        ids = range(int(state.counts[0]), first)
        if number == 0:
            _check_any(folder, ids)
        counts = _counted(state.counts, [folder.records[i] for i in ids])
        folder.forget(before=ids.start)
        moved = jax.device_get(update(*now, told))
        return state._replace(
            step=state.step + 1,
            params=moved[0],
            state=moved[1],
            counts=counts,
            first=np.asarray(ids.start),
        )

    return step


def optimize(
    function: Function,
    params: PyTree,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    *,
    maximize: bool = False,
    executor: Any = None,
    timeout: float | None = None,
    retries: int = 0,
    workers: int | None = None,
    directory: str | os.PathLike | None = None,
    on_step: Callable[[Progress], Any] | None = None,
) -> Progress:
    """Minimises a Python function: a simulator, a program, a reward.

    Each step asks the estimator for its points, evaluates them in any order, and tells
    the values: theta <- theta + optimizer(g(values)).

    With a directory, what is asked and told is on disk before it is used. Killed at any
    moment and called again with the same arguments, the run goes on where it was: no
    evaluation that ended is made again, and the end is that of an unbroken run, bit for
    bit, if the function's value depends on the point (and query_key) alone. A larger
    num_steps goes on with a run that had ended.

    Args:
      function: point -> number, point being a pytree like params of numpy arrays. NaN,
        an infinity, an exception and a passed limit are failures, which a step leaves
        out. If it names them it gets ``query_id``, an int that no other point of the
        run has; ``query_key``, u32[2], a seed for what is random in it, which both
        sides of a direction share; ``timeout``, which it then keeps itself.
      params: pytree of arrays, the start.
      estimator: an :class:`zojax.Estimator`; it asks.
      optimizer: what follows it in an optax chain, as ``optax.adam(1e-2)``; after mezo
        and spsa, which have their step, ``optax.identity()``.
      num_steps: steps in all.
      maximize: whether the largest value is wanted. Values stay as function gave them.
      executor: a ``concurrent.futures`` executor (of processes or threads; loky's,
        mpi4py's, ``dask_client.get_executor()``), a pool of pebble, whose workers are
        ended when they are late, or any map, (function, items) -> results. By default
        one evaluation after the other in this process.
      timeout: seconds that one evaluation may take, from its start.
      retries: how often one that failed is tried again.
      workers: how many evaluations an executor has at a time; that of executor.
      directory: where the run is kept; made if it is not there.
      on_step: gets a :class:`Progress` after each step.

    Returns:
      The last :class:`Progress`.

    Raises:
      ValueError: for an argument out of its range, or a directory of another run.
      RuntimeError: if no evaluation of the first round succeeded, if a pool broke, or
        if all workers hang.

    Example:
      >>> import numpy as np, optax, zojax
      >>> f = lambda x: float(np.sum((x - 1.0) ** 2))
      >>> zoar, x = zojax.zoar(0.05, 8, key=0), np.zeros(4)
      >>> end = zojax.external.optimize(f, x, zoar, optax.adam(0.1), 60)
      >>> end.num_evaluations, f(end.params) < 0.05
      (480, True)

    Source: ask and tell, the interface of evolution strategies.
    """
    if not isinstance(estimator, Estimator):
        found = f"{estimator!r}; of a chain, the rest is the optimizer"
        raise ValueError(f"estimator must be a zojax.Estimator, got {found}")
    if not isinstance(optimizer, optax.GradientTransformation):
        accepted = "what follows the estimator in an optax chain, as optax.adam(1e-2)"
        raise ValueError(f"optimizer must be {accepted}, got {optimizer!r}")
    check_int("num_steps", num_steps, 0)
    check_flag("maximize", maximize)
    check_params(params)
    measure = measuring(function, executor, timeout, retries, workers)
    sign = -1.0 if maximize else 1.0
    opt = optax.chain(estimator, optimizer)
    step = _stepping(estimator, opt, measure, sign)
    # What a step returns, and so what is kept, is in the dtypes of JAX.
    params = jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), params)
    state = _State(
        step=np.zeros((), np.int64),
        params=params,
        state=jax.device_get(opt.init(params)),
        best_value=np.asarray(sign * math.inf),
        best_params=params,
        counts=np.zeros(3, np.int64),
        first=np.zeros((), np.int64),
    )
    with opened(directory) as folder:
        folder.begin((params, state.state))
        state = folder.load(state)
        while state.step < num_steps:
            state = step(folder, state)
            folder.save(state)
            if on_step is not None:
                on_step(_progress(state, folder))
        return _progress(state, folder)
