"""A small user's program, for the type checker; nothing here needs a cast."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zojax
from zojax.perturbations import from_rows, rademacher


def loss(params: dict[str, jax.Array], target: float) -> jax.Array:
    return jnp.sum((params["w"] - target) ** 2)


def row(
    key: jax.Array, k: jax.Array, num_directions: int, params: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    noise = jax.random.laplace(jax.random.fold_in(key, k), params["w"].shape)
    return {"w": noise / 2**0.5}


def train(steps: int) -> float:
    estimator: zojax.Estimator = zojax.zoar(1e-2, 8, key=0, sampler=rademacher())
    opt = optax.chain(estimator, zojax.radazo(1e-2))
    params = {"w": jnp.zeros(4)}
    state = opt.init(params)
    for _ in range(steps):
        points = estimator.ask(state[0], params)
        values: list[float] = [float(np.sum(x**2)) for x in np.asarray(points["w"])]
        updates, state = opt.update(None, state, params, values=values)
        params = optax.apply_updates(params, updates)
    log: zojax.QueryLog = state[0].log
    return float(log.query_mean)


def calibrated(steps: int) -> float:
    simulate = lambda x: float(np.sum((x - 1) ** 2))
    x = np.zeros(3)
    gains: zojax.SpallGains = zojax.calibrate_spall_gains(
        simulate, x, 0.1, steps, key=0, c=0.1
    )
    opt: zojax.Estimator = zojax.spsa(*gains, key=0)
    deviation: jax.Array = zojax.noise_deviation(simulate, x, key=0)
    chained = optax.chain(opt, zojax.average_iterates(steps // 2))
    hessian: jax.Array = zojax.second_order_spsa(0.1, 0.1, key=0).init(x).hessian
    del chained, hessian
    return float(deviation)


def diagnosed(mu: float) -> float:
    params = {"w": jnp.zeros(4)}
    found: zojax.Diagnosis = zojax.diagnose(loss, params, mu, 4, key=0, target=1.0)
    better: float | None = found.suggested_smoothing
    make = zojax.inject_hyperparams(zojax.zoar)
    opt: zojax.Estimator = make(mu if better is None else better, 8, key=0)
    return float(opt.init(params).hyperparams["smoothing"])


def parts(key: jax.Array) -> jax.Array:
    sampler: zojax.Sampler = from_rows(row)
    V = zojax.Directions(sampler, key, num_directions=4, chunk_size=2)
    params, mu = {"w": jnp.zeros(4)}, 1e-2
    values, _ = zojax.evaluate(lambda p: loss(p, 1.0), params, V, mu)
    weights = zojax.weights.mean_baseline(values[:, 0], mu)
    g = zojax.as_gradient(zojax.combine(weights, params, V), params)
    value, twin = zojax.value_and_grad(loss, mu, 4)(params, key, target=1.0)
    return jnp.sum(g["w"]) + jnp.sum(twin["w"]) + value
