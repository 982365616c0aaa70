"""Every public factory once: the cases that the common tests run over.

A case builds an optimizer with a fixed key; ``wrap`` is applied to each of its samplers
(the identity, or ``restrict`` to freeze leaves). test_registry_is_complete fails for a
public factory that is missing here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import zojax
from zojax._estimators.step import followed_by
from zojax.perturbations import (
    aligned,
    coordinate,
    from_rows,
    gaussian,
    lazy,
    low_rank,
    orthogonal,
    rademacher,
    restrict,
    simplex,
    sparse,
    sphere,
)

Wrap = Callable[[zojax.Sampler], zojax.Sampler]


class Case(NamedTuple):
    """An estimator (or a chain that begins with it) and what it promises."""

    factory: Callable
    make: Callable[[Wrap], zojax.Estimator]
    num_queries: int  # calls of value_fn in a step, without value=
    reads_updates: bool = False


def materializing(opt: zojax.Estimator) -> zojax.Estimator:
    """Lets a lazy sampler serve objectives that know nothing of it."""

    def update(updates, state, params=None, *, value_fn=None, **extra_args):
        if value_fn is None:
            return opt.update(updates, state, params, **extra_args)

        @functools.wraps(value_fn)
        def of_arrays(at, *args, **kwargs):
            return value_fn(zojax.materialize(at), *args, **kwargs)

        return opt.update(updates, state, params, value_fn=of_arrays, **extra_args)

    asks = opt.ask, opt.ask_with_keys
    return zojax.Estimator(opt.init, update, *asks, opt.num_rounds)


MU, K = 1e-2, 4

ESTIMATORS: dict[str, Case] = {
    "forward": Case(
        zojax.two_point,
        lambda wrap: zojax.two_point(MU, K, key=1, sampler=wrap(gaussian())),
        K + 1,
    ),
    "central": Case(
        zojax.two_point,
        lambda wrap: zojax.two_point(
            MU, K, key=1, sampler=wrap(coordinate()), difference="central"
        ),
        2 * K,
    ),
    "simplex": Case(
        zojax.two_point,
        lambda wrap: zojax.two_point(
            MU, K, key=1, sampler=wrap(simplex()), difference="mean"
        ),
        K,
    ),
    "leave_one_out": Case(
        zojax.two_point,
        lambda wrap: zojax.two_point(
            MU,
            K,
            key=1,
            sampler=wrap(orthogonal()),
            difference="leave_one_out",
            chunk_size=3,
        ),
        K,
    ),
    "lazy": Case(
        zojax.two_point,
        lambda wrap: materializing(
            zojax.two_point(
                MU,
                K,
                key=1,
                sampler=wrap(lazy(rademacher())),
                difference="central",
                chunk_size=1,
            )
        ),
        2 * K,
    ),
    "low_rank": Case(
        zojax.two_point,
        lambda wrap: zojax.two_point(
            MU, K, key=1, sampler=wrap(low_rank(1)), difference="central"
        ),
        2 * K,
    ),
    "dap": Case(
        zojax.dap,
        lambda wrap: zojax.dap(
            MU, K, key=1, sampler=wrap(sphere()), base=wrap(gaussian())
        ),
        K + 1,
    ),
    "dap_updates": Case(
        zojax.dap,
        lambda wrap: zojax.dap(
            MU, K, key=1, guide="updates", base=wrap(gaussian()), fixed_length=True
        ),
        K + 1,
        reads_updates=True,
    ),
    "dap_average": Case(
        zojax.dap,
        lambda wrap: zojax.dap(
            MU,
            K,
            key=1,
            guide="average",
            base=wrap(rademacher()),
            difference="central",
            chunk_size=1,
        ),
        2 * K,
    ),
    "dap_replay": Case(
        zojax.dap,
        lambda wrap: materializing(
            zojax.dap(
                MU,
                K,
                key=1,
                sampler=wrap(lazy(rademacher())),
                base=wrap(lazy(gaussian())),
                storage="replay",
                chunk_size=1,
            )
        ),
        K + 1,
    ),
    "aligned_projection": Case(
        zojax.aligned_projection,
        lambda wrap: zojax.aligned_projection(MU, K, key=1, sampler=wrap(orthogonal())),
        K + 1,
    ),
    "zoar": Case(
        zojax.zoar,
        lambda wrap: zojax.zoar(MU, K, key=1, history_size=3, sampler=wrap(gaussian())),
        K,
    ),
    "zoar_replay": Case(
        zojax.zoar,
        lambda wrap: zojax.zoar(
            MU,
            K,
            key=1,
            history_size=2,
            sampler=wrap(rademacher()),
            storage="replay",
            symmetric=True,
            chunk_size=3,
        ),
        2 * K,
    ),
    "mean_baseline": Case(
        zojax.zoar,
        lambda wrap: zojax.zoar(
            MU,
            K,
            key=1,
            history_size=0,
            sampler=wrap(sphere()),
            leave_one_out=True,
        ),
        K,
    ),
    "reinforce": Case(
        zojax.reinforce,
        lambda wrap: zojax.reinforce(MU, K, key=1, sampler=wrap(gaussian())),
        K + 1,
    ),
    "reinforce_sphere": Case(
        zojax.reinforce,
        lambda wrap: zojax.reinforce(
            MU,
            K,
            key=1,
            baseline="optimal",
            search="sphere",
            sampler=wrap(sphere()),
            chunk_size=1,
        ),
        K,
    ),
    "mezo": Case(
        zojax.mezo,
        lambda wrap: zojax.mezo(1e-3, MU, key=1, sampler=wrap(rademacher())),
        2,
    ),
    "shaped": Case(
        zojax.zoar,
        lambda wrap: zojax.zoar(
            MU,
            K,
            key=1,
            history_size=2,
            sampler=wrap(rademacher()),
            clip=10.0,
            shaping=lambda y: y / 2,
        ),
        K,
    ),
    "spsa": Case(
        zojax.spsa,
        lambda wrap: zojax.spsa(
            1e-3, MU, key=1, num_directions=2, sampler=wrap(rademacher())
        ),
        4,
    ),
    "scale_by_radazo": Case(
        zojax.scale_by_radazo,
        lambda wrap: followed_by(
            zojax.two_point(MU, 1, key=1, sampler=wrap(gaussian())),
            zojax.scale_by_radazo(),
        ),
        2,
    ),
    "radazo": Case(
        zojax.radazo,
        lambda wrap: followed_by(
            zojax.zoar(MU, K, key=1, sampler=wrap(gaussian())), zojax.radazo(1e-3)
        ),
        K,
    ),
    "second_order_spsa": Case(
        zojax.second_order_spsa,
        lambda wrap: zojax.second_order_spsa(
            MU, 10.0, key=1, sampler=wrap(rademacher())
        ),
        4,
    ),
}

# What needs a value_fn in every step, and so cannot be told values: test_spall.py.
CALLING: dict[str, Callable] = {"block_steps": zojax.block_steps}

# What asks nothing and goes anywhere in a chain: test_iterates.py.
PLAIN: dict[str, Callable] = {
    "average_iterates": zojax.average_iterates,
    "decay_towards_start": zojax.decay_towards_start,
}

# Samplers by factory; test_perturbations.py holds their statistics.
SAMPLERS: dict[str, Callable] = {
    "aligned": aligned,
    "coordinate": coordinate,
    "from_rows": from_rows,
    "gaussian": gaussian,
    "lazy": lazy,
    "low_rank": low_rank,
    "orthogonal": orthogonal,
    "rademacher": rademacher,
    "restrict": restrict,
    "simplex": simplex,
    "sparse": sparse,
    "sphere": sphere,
}
