"""Hyperparameters as entries of the state, by the annotations of a factory."""

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
import optax

from zojax._estimators.rounds import by_round
from zojax._estimators.step import Estimator
from zojax._numerics import value_dtype
from zojax._objective import check_params

P = ParamSpec("P")
T = TypeVar("T", bound=optax.GradientTransformation)


def _told_apart(signature: inspect.Signature) -> tuple[set[str], set[str]]:
    """Names of parameters that are numbers, and of those that are static.

    A number takes floats and arrays, so that a program may vary it. What has no
    annotation is neither: optax looks at its value.
    """
    told = {
        name: set(typing.get_args(parameter.annotation))
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not parameter.empty
    }
    numbers = {name for name, kinds in told.items() if {float, jax.Array} <= kinds}
    return numbers, set(told) - numbers


def _as_float(value: Any) -> Any:
    """A Python or numpy number as a float, so that all have the dtype of values."""
    return float(value) if isinstance(value, (int, float, np.number)) else value


def _of_points(factory: Callable[..., Estimator], name: str) -> Callable[..., Any]:
    """The factory with a way of asking in the place of its update."""

    @functools.wraps(factory)
    def make(*args, **kwargs):
        opt = factory(*args, **kwargs)
        ask = getattr(opt, name)

        def update(updates, state, params=None, *, values):
            return ask(state, params, *values, updates=updates), state

        return optax.GradientTransformationExtraArgs(opt.init, update)

    return make


def _estimator(
    inject: Callable[[Callable[..., Any]], optax.GradientTransformationExtraArgs],
    factory: Callable[..., Estimator],
    num_rounds: int,
) -> Estimator:
    """An estimator whose factory is called anew in each step.

    What is told and asked outside of jit is a program of its own, compiled once.
    """
    opt = inject(factory)

    def jitted(opt):
        return jax.jit(lambda u, s, params, told: opt.update(u, s, params, values=told))

    def asking(name):
        points = jitted(inject(_of_points(factory, name)))

        def ask(state, params, *values, updates=None):
            check_params(params)
            told = by_round(values, len(values))
            return points(updates, state, params, told)[0]

        return ask

    update_told = jitted(opt)

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        check_params(params)
        if value_fn is not None or extra_args.get("values") is None:
            return opt.update(updates, state, params, value_fn=value_fn, **extra_args)
        told = by_round(extra_args["values"], num_rounds)
        return update_told(updates, state, params, told)

    asks = asking("ask"), asking("ask_with_keys")
    return Estimator(opt.init, update, *asks, num_rounds)


def inject_hyperparams(
    factory: Callable[P, T], static_args: str | Iterable[str] = ()
) -> Callable[P, T]:
    """As optax.inject_hyperparams, without a list of what is static.

    Numbers of the factory become ``state.hyperparams``, where a step reads them: they
    change between steps of one program, and differ under vmap. Numbers are parameters
    annotated as floats or arrays, as smoothing, clip, decay and learning_rate are;
    all other annotated ones are static. They are kept in float32, or float64 under
    x64, whatever the dtype of params, and an array of that dtype in their place
    compiles nothing. A schedule shows its values there.

    Args:
      factory: any of zojax, or a function with annotations that returns an optax
        transformation. What is not annotated optax tells by its value.
      static_args: names of numbers that are not to be injected.

    Returns:
      A function of the same arguments. Of estimators it makes a
      :class:`zojax.Estimator`; the state's ``inner_state`` is that of the factory.

    Raises:
      ValueError: for a factory that is no function, or names that it has not; of the
        function that is returned, what the factory raises.

    Example:
      >>> import jax.numpy as jnp, zojax
      >>> opt = zojax.inject_hyperparams(zojax.zoar)(0.05, num_directions=8, key=0)
      >>> state = opt.init(jnp.ones(3))
      >>> state.hyperparams["smoothing"] = jnp.float32(0.1)
      >>> sorted(state.hyperparams), opt.ask(state, jnp.ones(3)).shape
      (['smoothing'], (8, 3))

    Source: optax.inject_hyperparams.
    """
    if not callable(factory):
        raise ValueError(f"factory must be a function, got {factory!r}")
    signature = inspect.signature(factory, eval_str=True)
    more = {static_args} if isinstance(static_args, str) else set(static_args)
    unknown = more - set(signature.parameters)
    if unknown:
        accepted = f"of {list(signature.parameters)}"
        raise ValueError(f"static_args must be {accepted}, got {sorted(unknown)}")
    numbers, static = _told_apart(signature)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> Any:
        made = factory(*args, **kwargs)  # with its checks, which a step has not
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {
            name: _as_float(x) if name in numbers - more else x
            for name, x in bound.arguments.items()
        }
        inject = lambda of: optax.inject_hyperparams(of, static | more, value_dtype())(
            **given
        )
        if isinstance(made, Estimator):
            return _estimator(inject, factory, made.num_rounds)
        return inject(factory)

    return make
