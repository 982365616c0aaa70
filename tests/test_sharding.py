"""Params spread over eight host devices: the same estimate as on one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from registry import ESTIMATORS


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_sharded_params(name):
    """Trap 9: noise and estimate do not depend on where the parameters live."""
    case = ESTIMATORS[name]
    opt = case.make(lambda sampler: sampler)
    mesh = Mesh(np.array(jax.devices()), ("shard",))
    assert mesh.size == 8
    params = {"w": jnp.linspace(0, 1, 64).reshape(16, 4), "b": jnp.ones(4)}
    spread = {
        "w": jax.device_put(params["w"], NamedSharding(mesh, PartitionSpec("shard"))),
        "b": jax.device_put(params["b"], NamedSharding(mesh, PartitionSpec())),
    }
    value_fn = lambda p: jnp.mean((p["w"] @ p["b"] - 1) ** 2)

    @jax.jit
    def step(params, state):
        incoming = jax.tree.map(jnp.ones_like, params) if case.reads_updates else None
        updates, state = opt.update(incoming, state, params, value_fn=value_fn)
        return updates, state

    one, _ = step(params, opt.init(params))
    many, state = step(spread, opt.init(spread))
    assert float(optax.tree.norm(one)) > 0
    chex.assert_trees_all_close(one, many, rtol=2e-3, atol=1e-4)
    assert np.isfinite(optax.tree.get(state, "query_mean"))
