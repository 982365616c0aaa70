"""What a state says about the last step's queries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zojax._numerics import PyTree, value_dtype


class QueryLog(NamedTuple):
    """What the objective answered, for logging: part of every estimator's state.

    Attributes:
      query_mean: f[], mean of the finite values at the *perturbed* points of the last
        step in which there was one. Not f(params).
      base_value: f[], the last finite f(params), where the estimator uses it (queried
        or passed as ``value=``); None where it does not.
      num_nonfinite: i32[], query values that were NaN or infinite, over all steps.
      aux: the aux of the first query of the last step (at params where the estimator
        queries there, else at the first perturbed point); None unless ``aux_like``.
    """

    query_mean: jax.Array
    base_value: jax.Array | None
    num_nonfinite: jax.Array
    aux: PyTree


def init_log(aux_like: PyTree, with_base: bool) -> QueryLog:
    # Each leaf is a buffer of its own: a state may be donated.
    zero = lambda: jnp.zeros((), value_dtype())
    aux = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), aux_like)
    return QueryLog(
        zero(), zero() if with_base else None, jnp.zeros((), jnp.int32), aux
    )


def update_log(
    log: QueryLog, values: jax.Array, base: jax.Array | None, aux: PyTree
) -> QueryLog:
    """Enters the values [K, P] and the base value of a step."""
    finite = jnp.isfinite(values)
    total = jnp.sum(jnp.where(finite, values / values.size, 0.0))
    mean = total * values.size / jnp.maximum(finite.sum(), 1)
    query_mean = jnp.where(finite.any(), mean, log.query_mean)
    nonfinite = jnp.sum(~finite, dtype=jnp.int32)
    if base is not None:
        nonfinite += jnp.asarray(~jnp.isfinite(base), jnp.int32)
        base = jnp.where(jnp.isfinite(base), base, log.base_value)
    if log.aux is not None:
        check_aux(log.aux, aux)
    return QueryLog(
        query_mean.astype(log.query_mean.dtype),
        base,
        log.num_nonfinite + nonfinite,
        None if log.aux is None else aux,
    )


def check_aux(expected: PyTree, aux: PyTree) -> None:
    """Raises unless the aux of value_fn looks like the ``aux_like`` of the factory."""
    describe = lambda x: (jnp.shape(x), jnp.result_type(x))
    same_tree = jax.tree.structure(expected) == jax.tree.structure(aux)
    if not same_tree or jax.tree.map(describe, expected) != jax.tree.map(describe, aux):
        raise ValueError(
            "aux_like must have the structure, shapes and dtypes of the aux that"
            f" value_fn returns, got {jax.tree.map(describe, expected)} for"
            f" {jax.tree.map(describe, aux)}"
        )


def check_aux_arguments(has_aux: bool, aux_like: PyTree) -> None:
    if aux_like is not None and not has_aux:
        raise ValueError("aux_like needs has_aux=True, got has_aux=False")
